"""Evaluated runs as they lie on the disk: an lm-eval output with logged samples, or an output of `bft-trl score`."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.data.tables import read_json_object, read_parquet
from bft_trl.evaluation.names import ANSWER_COLUMNS

# The task of recorded answers: they say which gene sets they name, not which of our tasks these make up.
RECORDED = "gene_sets"


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task, and all that has to be equal for another's to be comparable.

    Attributes:
        scores: one row per document (index: a hash of its content), one column per metric.
        documents: the documents themselves, in the same order.
        settings: what has to be equal, by its name; compared where both runs know it.
        details: where encoder and background came from, for the floors.
        seed_means: per metric the mean of each seed, where these are several.
    """

    scores: pd.DataFrame
    documents: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    details: Mapping[str, Any]
    seed_means: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def names_gene_sets(self) -> bool:
        return "rougeL" in self.scores


@dataclass(frozen=True)
class Run:
    """One evaluated model: its tasks by name. `kind` is "model", or "floor" and "oracle" from `bft-trl score`."""

    name: str
    tasks: Mapping[str, TaskScores]
    kind: str = "model"


def load_runs(path: Path, *, name: str | None = None) -> list[Run]:
    """The runs in a folder: one of lm-eval's, or one per model and floor of an output of `bft-trl score`.

    Args:
        path: folder, or the file scores.json.
        name: None takes the folder's name; a `score` output of several models gives each its own.

    Raises FileNotFoundError or ValueError that names the file and what is wrong with it.
    """
    folder = path.parent if path.name == "scores.json" else path
    if not folder.is_dir():
        raise FileNotFoundError(f"`runs`: {path} is no folder with results.")
    if (folder / "scores.json").is_file():
        return _load_recorded(folder, name)
    return [Run(name or folder.resolve().name, _load_lm_eval(folder))]


def _load_recorded(folder: Path, name: str | None) -> list[Run]:
    described = read_json_object(folder / "scores.json")
    if described.get("format") != 1 or not isinstance(described.get("settings"), dict):
        raise ValueError(f"{folder / 'scores.json'}: not an output of this version's `bft-trl score`.")
    file = folder / "scores.parquet"
    table = read_parquet(file)
    missing = {*ANSWER_COLUMNS, "rougeL"} - set(table.columns)
    if missing:
        raise ValueError(f"{file}: has no column {sorted(missing)}. Run `bft-trl score` again.")
    texts = table[["model", "kind", "name"]].map(lambda value: isinstance(value, str)).all(axis=None)
    try:
        metrics = table.drop(columns=list(ANSWER_COLUMNS)).astype(float)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: a metric is no number ({error}). Run `bft-trl score` again.") from error
    if not texts or table["id"].isna().any() or not np.isfinite(metrics).all(axis=None):
        raise ValueError(f"{file}: rows lack a model, a name or a score. Run `bft-trl score` again.")
    settings = {key: described["settings"].get(key) for key in _SCORER}
    runs = []
    models = table.groupby(["model", "kind"], sort=False)
    several = sum(kind == "model" for _, kind in models.groups) > 1
    for (model, kind), rows in models:
        documents = rows[["id", "name"]].to_dict("records")
        scores = metrics.loc[rows.index].set_axis(_keys(documents))
        task = TaskScores(scores, documents, settings, described["settings"])
        runs.append(Run(name if name and kind == "model" and not several else model, {RECORDED: task}, kind))
    return runs


_FOREIGN = "not written by lm-eval 0.4.13 or a near version."
_SCORER = ("scorer_version", "encoder_fingerprint", "background_fingerprint")


def _load_lm_eval(folder: Path) -> dict[str, TaskScores]:
    # Not those of a panel, which `eval --panel` keeps below: it is compared in a page of its own. Hidden folders are
    # of an evaluation that is going on, or was killed.
    panel = [folder / "panel" / name for name in ("base", "tuned")]
    visible = (
        file
        for file in folder.rglob("results_*.json")
        if not any(file.is_relative_to(part) for part in panel)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    files = sorted(visible, key=lambda file: file.name)
    if not files:
        raise FileNotFoundError(
            f"`runs`: {folder} holds neither lm-eval's results_*.json nor a scores.json of `bft-trl score`."
        )
    parents = {file.parent for file in files}
    if len(parents) > 1:
        raise ValueError(
            f"`runs`: {folder} holds results of {len(parents)} models; name one of "
            f"{', '.join(sorted(parent.name for parent in parents))} as RUN."
        )
    tasks: dict[str, TaskScores] = {}
    models: list[dict[str, Any]] = []
    for file in files:  # oldest first: a task that was run again counts as it was run last
        results = read_json_object(file)
        missing = [key for key in ("configs", "versions", "n-shot") if not isinstance(results.get(key), dict)]
        missing += [key for key in ("lm_eval_version",) if key not in results]
        if missing:
            raise ValueError(f"{file}: has no {', '.join(missing)}: {_FOREIGN}")
        config = results.get("config")
        model = {key: config.get(key) for key in ("model", "model_args")} if isinstance(config, dict) else {}
        models = models or [model]
        if model not in models:
            raise ValueError(
                f"`runs`: {folder} holds results of {models[0]} and of {model}; evaluate each into a folder of "
                "its own."
            )
        date = file.stem.removeprefix("results_")
        for task in results["configs"]:
            samples = file.with_name(f"samples_{task}_{date}.jsonl")
            if not samples.is_file():
                raise FileNotFoundError(f"{samples}: no such file. Run lm-eval with --log_samples.")
            try:
                tasks[task] = _task_scores(task, results, samples)
            except (LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"{file}: not as expected ({error!r}): {_FOREIGN}") from error
    return tasks


def _task_scores(task: str, results: Mapping[str, Any], file: Path) -> TaskScores:
    samples = []
    # Not splitlines: texts may hold line ends that are none in JSON lines.
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            samples.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error}); was the run killed?") from error
    try:
        n_documents = len({sample["doc_id"] for sample in samples})
        # lm-eval logs a document once for each filter of its answer.
        samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        documents = [sample["doc"] for sample in samples]
        prompts = dict(zip(_keys(documents), (sample["prompt_hash"] for sample in samples), strict=True))
        rows = [{metric: sample[metric] for metric in sample["metrics"]} for sample in samples]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: a sample is not as expected ({error!r}): {_FOREIGN}") from error
    expected = results.get("n-samples", {}).get(task, {}).get("effective")
    if not samples or expected not in (None, n_documents):
        raise ValueError(f"{file}: has {n_documents} samples, {expected} were evaluated. Evaluate again.")
    scores = pd.DataFrame(rows, index=list(prompts))
    # Some of lm-eval's own metrics are aggregated from tuples: no per-document score, nothing to pair.
    scores = scores[[name for name in scores if pd.api.types.is_numeric_dtype(scores[name].infer_objects())]]
    if scores.empty or scores.columns.empty:
        raise ValueError(f"{file}: no metric with a number per document.")
    config = results["configs"][task]
    metadata = config.get("metadata") or {}
    generation = config.get("generation_kwargs") if config.get("output_type") == "generate_until" else None
    settings = {
        "lm-eval version": results["lm_eval_version"],
        "task version": results["versions"].get(task),
        "shots": results["n-shot"].get(task),
        "chat template": results.get("chat_template_sha"),
        "system instruction": results.get("system_instruction_sha"),
        "generation": generation,
        "filter": samples[0].get("filter"),
        "prompts": hashlib.sha256(json.dumps(sorted(prompts.items())).encode()).hexdigest()[:16],
        **({key: metadata.get(key) for key in _SCORER} if "scorer_version" in metadata else {}),
    }
    details = {key: metadata.get(key) for key in ("encoder", "background", "data_dir")}
    return TaskScores(scores.astype(float), documents, settings, details)


def combined(name: str, runs: Sequence[Run]) -> Run:
    """Runs of one method that differ in the seed as one: per document the mean score over the seeds.

    Raises ValueError where they are not comparable.
    """
    first, *others = runs
    for other in others:
        problems = differences(first, other)
        if problems or set(first.tasks) != set(other.tasks):
            raise ValueError(
                f"`{name}`: its runs are not of one method: " + "; ".join(problems or ["they have other tasks"])
            )
    tasks = {}
    for task, scores in first.tasks.items():
        parts = [run.tasks[task].scores.reindex(scores.scores.index) for run in runs]
        unequal = {metric for part in parts for metric in set(part) ^ set(scores.scores)}
        if unequal:
            raise ValueError(f"`{name}`: {task}: only some of its runs have {', '.join(sorted(unequal))}.")
        means = {metric: [float(part[metric].mean()) for part in parts] for metric in scores.scores}
        tasks[task] = replace(scores, scores=sum(parts[1:], parts[0]) / len(parts), seed_means=means)
    return Run(name, tasks, first.kind)


def differences(baseline: Run, run: Run) -> list[str]:
    """Why two runs cannot be compared, task by task; empty where they can."""
    found = []
    for task in sorted(set(baseline.tasks) & set(run.tasks)):
        ours, theirs = run.tasks[task], baseline.tasks[task]
        unequal = [
            f"{key} ({_short(ours.settings[key])}, baseline {_short(theirs.settings[key])})"
            for key in ours.settings
            if key in theirs.settings and ours.settings[key] != theirs.settings[key]
        ]
        missing, extra = (len(a.scores.index.difference(b.scores.index)) for a, b in ((theirs, ours), (ours, theirs)))
        if missing or extra:
            # Other documents have other prompts: that is no second reason.
            unequal = [text for text in unequal if not text.startswith("prompts ")]
            unequal.append(
                f"documents ({len(ours.scores)}, baseline {len(theirs.scores)}; {missing} only in the baseline, "
                f"{extra} only in the run)"
            )
        if unequal:
            found.append(f"{task}: '{run.name}' differs from '{baseline.name}' in {', '.join(unequal)}")
    return found


def aligned(baseline: Run, run: Run) -> Run:
    """`run` with its gene-set task under the baseline's name, where one of the two was recorded elsewhere."""
    tasks = dict(run.tasks)
    ours = [name for name, scores in tasks.items() if scores.names_gene_sets]
    theirs = [name for name, scores in baseline.tasks.items() if scores.names_gene_sets]
    for name in ours:
        for other in theirs:
            same = set(tasks[name].scores.index) == set(baseline.tasks[other].scores.index)
            if other not in tasks and RECORDED in (name, other) and (same or len(ours) == len(theirs) == 1):
                tasks[other] = tasks.pop(name)
                break
    return replace(run, tasks=tasks)


def _keys(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hashes of the documents' content; equal documents are numbered. Of a gene set, id and name are what counts."""
    seen: Counter[str] = Counter()
    keys = []
    for document in documents:
        content: Any = document
        if "id" in document and "name" in document:
            content = [str(document["id"]), document["name"]]
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]
        keys.append(f"{key}-{seen[key]}")
        seen[key] += 1
    return keys


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)
