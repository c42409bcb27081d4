"""The results format: one row per scored unit in `scores.parquet`, settings of tasks and models in `settings.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.io import write_files

COLUMNS = ["task", "metric", "unit", "model", "seed", "score"]


def write_scores(
    output_dir: Path, scores: pd.DataFrame, settings: Mapping[str, Any], more: Mapping[str, bytes] | None = None
) -> None:
    """Writes `scores.parquet` and `settings.json` into `output_dir`, atomically.

    Args:
        output_dir: folder.
        scores: one row per unit: task, metric, unit (the document's id, else its index), model, seed and score.
        settings: "tasks": what must agree between runs that are compared, and "higher_is_better" per metric, by task;
            "models": fingerprint and "kind" ("model" if it is not given, "baseline", "control", ...) by model.
        more: further files by name.
    """
    table = scores[COLUMNS].astype({"unit": str, "seed": "int32", "score": "float64"})
    text = json.dumps(settings, indent=2, ensure_ascii=False, default=str) + "\n"
    # settings.json is last: where it is, the results are complete.
    files = dict(more or {}) | {"scores.parquet": table.to_parquet(index=False), "settings.json": text.encode()}
    write_files({output_dir / name: content for name, content in files.items()})


def read_scores(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Returns scores and settings as [`write_scores`] takes them. Raises ValueError that names the file."""
    try:
        return pd.read_parquet(folder / "scores.parquet", columns=COLUMNS), read_settings(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: its scores.parquet or settings.json cannot be read ({error}).") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns `settings.json` of a folder."""
    return json.loads((folder / "settings.json").read_text(encoding="utf-8"))


def kind_of(settings: Mapping[str, Any], model: str) -> str:
    """Returns "model", or what else the rows of a name are: "baseline", "control", "enrichment" or "oracle"."""
    return settings["models"].get(model, {}).get("kind", "model")
