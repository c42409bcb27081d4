"""The results format: scores per unit in `scores.parquet`, `answers.parquet`, and settings in `settings.json`."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.io import read_json_object, write_files

COLUMNS = ["task", "metric", "unit", "model", "seed", "score"]
ANSWER_COLUMNS = ["task", "unit", "model", "answer", "reference", "document", "key", "prompt"]


def write_scores(
    output_dir: Path,
    scores: pd.DataFrame,
    settings: Mapping[str, Any],
    more: Mapping[str, bytes] | None = None,
    *,
    answers: pd.DataFrame | None = None,
) -> None:
    """Writes `scores.parquet`, `answers.parquet` and `settings.json` into `output_dir`, atomically.

    Args:
        output_dir: folder.
        scores: one row per unit: task, metric, unit (the document's id, else its index), model, seed and score.
        settings: "tasks": what must agree between runs that are compared, and "higher_is_better" per metric, by task;
            "models": fingerprint and "kind" ("model" if it is not given, "baseline", "control", ...) by model.
        more: further files by name.
        answers: one row per task, unit and model: answer and reference (texts), document (JSON of the parts that
            scoring needs, see [`document_parts`]), and hashes of what is asked (key) and of the prompt; None for
            results without texts.
    """
    table = scores[COLUMNS].astype({"unit": str, "seed": "int32", "score": "float64"})
    text = json.dumps(settings, indent=2, ensure_ascii=False, default=str) + "\n"
    # settings.json is last: where it is, the results are complete.
    files = dict(more or {})
    if answers is not None:
        files["answers.parquet"] = answers[ANSWER_COLUMNS].to_parquet(index=False)
    files |= {"scores.parquet": table.to_parquet(index=False), "settings.json": text.encode()}
    write_files({output_dir / name: content for name, content in files.items()})


def read_scores(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Returns scores and settings as [`write_scores`] takes them. Raises ValueError that names the file."""
    try:
        scores, settings = pd.read_parquet(folder / "scores.parquet", columns=COLUMNS), read_settings(folder)
        if unknown := set(scores["task"]) - settings["tasks"].keys():
            raise ValueError(f"settings.json lacks the tasks {sorted(unknown)}")
        return scores, settings
    except ValueError as error:
        raise ValueError(f"{folder}: its scores.parquet or settings.json cannot be read ({error}).") from error


def read_answers(folder: Path) -> pd.DataFrame:
    """Returns the answers as [`write_scores`] takes them; an empty table if the folder has none."""
    path = folder / "answers.parquet"
    if not path.is_file():
        return pd.DataFrame(columns=ANSWER_COLUMNS)
    try:
        return pd.read_parquet(path, columns=ANSWER_COLUMNS)
    except ValueError as error:  # also of a version that wrote other columns
        raise ValueError(f"{path} cannot be read ({error}). Evaluate or score again.") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns `settings.json` of a folder. Raises ValueError that names the file and what it lacks."""
    settings = read_json_object(folder / "settings.json")
    for key in ("tasks", "models"):
        found = settings.get(key)
        if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
            raise ValueError(f"{folder / 'settings.json'}: {key!r} must be an object of objects, not {found!r}.")
    return settings


def kind_of(settings: Mapping[str, Any], model: str) -> str:
    """Returns "model", or what else the rows of a name are: "baseline", "control", "enrichment" or "oracle"."""
    return settings["models"].get(model, {}).get("kind", "model")


def absolute(path: str | Path) -> str:
    """Returns an absolute path for a file or folder that exists, and other texts (Hub ids, "none") as they are."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def document_parts(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the parts of a document that scoring needs: id, name and genes, or question, labels, options and answer.

    None for documents of other tasks.
    """
    for parts in (("id", "name", "genes"), ("question", "labels", "options", "answer")):
        if document.keys() >= set(parts):
            values = [document[part] for part in parts]
            lists = [isinstance(value, Iterable) and not isinstance(value, str) for value in values]
            return {p: list(v) if many else str(v) for p, v, many in zip(parts, values, lists, strict=True)}
    return None


def document_key(parts: Mapping[str, Any]) -> str:
    """Returns a hash of what a document asks: name and genes in any order, or question and options.

    Case and white space do not count. Equal documents of different files have equal keys.
    """
    first, rest = ("name", "genes") if "genes" in parts else ("question", "options")
    asked, *others = (" ".join(str(part).lower().split()) for part in (parts[first], *parts[rest]))
    text = json.dumps([asked, *(sorted(others) if rest == "genes" else others)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
