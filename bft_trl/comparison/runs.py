"""Evaluated runs to compare: folders in the results format, or of lm-eval with logged samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.evaluation.samples import RECORDED, read_lm_eval
from bft_trl.evaluation.scores import ANSWER_COLUMNS, kind_of, read_answers, read_scores


@dataclass(frozen=True)
class Run:
    """Scores of a model or a baseline.

    Attributes:
        name: shown on the page.
        kind: "model", "recorded" (answers of another system), "baseline", "control", ...
        scores: (task, metric) to a table of units x seeds.
        settings: task to its settings.
        answers: columns of `answers.parquet`, with (task, unit) as index; without rows for results without texts.
        inputs: encoder, background and data_dir of the names' scores.
    """

    name: str
    kind: str
    scores: Mapping[tuple[str, str], pd.DataFrame]
    settings: Mapping[str, Mapping[str, Any]]
    answers: pd.DataFrame = field(default_factory=lambda: _by_unit(pd.DataFrame(columns=ANSWER_COLUMNS)))
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks in order."""
        return list(dict.fromkeys(task for task, _ in self.scores))

    def unit_scores(self, task: str, metric: str) -> pd.Series:
        """Returns the mean over the seeds per unit."""
        table = self.scores[task, metric]
        return pd.Series(table.to_numpy().mean(axis=1), index=table.index)

    def restricted(self, units: Mapping[str, pd.Index]) -> "Run":
        """Returns the run with no other units of each task than these; tasks that are not named are left out."""
        kept = {key: table for key, table in self.scores.items() if key[0] in units}
        scores = {key: table[table.index.isin(units[key[0]])] for key, table in kept.items()}
        return replace(self, scores=scores)


def load_runs(path: Path, *, name: str | None = None) -> list[Run]:
    """Returns the runs in a folder, one per model and baseline.

    Args:
        path: folder.
        name: of the model, if there is one; None takes the folder's name for an evaluation, else the model's own.

    Raises FileNotFoundError or ValueError that names the file and what is wrong with it.
    """
    if (path / "scores.parquet").is_file():
        (scores, settings), answers = read_scores(path), read_answers(path)
    elif path.is_dir() and any(path.rglob("results_*.json")):
        scores, answers, settings = read_lm_eval(path)
    else:
        raise FileNotFoundError(f"`runs`: {path} has neither scores.parquet nor lm-eval's results_*.json.")
    if scores.duplicated(["task", "metric", "unit", "model", "seed"]).any():
        raise ValueError(f"{path / 'scores.parquet'}: repeated rows for a task, metric, unit, model and seed.")
    kinds = {model: kind_of(settings, model) for model in scores["model"].unique()}
    models = [model for model, kind in kinds.items() if kind == "model"]
    if name is not None and len(models) > 1:
        raise ValueError(f"`runs`: {name}={path} has several models: {models}. Leave the name out.")
    runs = []
    for model, rows in scores.groupby("model", sort=False):
        shown = model
        if [model] == models:
            shown = name or (path.resolve().name if "request" in settings else model)
        tables = {
            key: part.pivot(index="unit", columns="seed", values="score").loc[part["unit"].unique()]
            for key, part in rows.groupby(["task", "metric"], sort=False)
        }
        texts = _by_unit(answers[answers["model"] == model])
        runs.append(Run(shown, kinds[model], tables, settings["tasks"], texts, settings.get("inputs", {})))
    return runs


def combine_seeds(name: str, runs: Sequence[Run]) -> Run:
    """Returns runs of one method that differ in the seed as one run. Raises ValueError if they are not comparable."""
    first, *others = runs
    problems = [problem for other in others for problem in differences(first, other)]
    problems += [
        f"'{run.name}' has other tasks or metrics" for run in others if run.scores.keys() != first.scores.keys()
    ]
    if problems:
        raise ValueError(f"`{name}`: its runs are not of one method: {'; '.join(problems)}")
    tables = {
        key: pd.concat([run.scores[key].loc[table.index] for run in runs], axis=1, ignore_index=True)
        for key, table in first.scores.items()
    }
    return replace(first, name=name, scores=tables)


def differences(baseline: Run, run: Run) -> list[str]:
    """Returns why two runs cannot be compared, one text per task; empty if they can."""
    found: dict[str, str] = {}
    for task, metric in baseline.scores.keys() & run.scores.keys():
        ours, theirs = (of.scores[task, metric].index for of in (run, baseline))
        missing, extra = len(theirs.difference(ours)), len(ours.difference(theirs))
        if missing or extra:
            counts = f"{missing} only in the baseline, {extra} only in the run"
            remedy = "`--common_documents` compares what all runs have"
            found[task] = f"documents ({len(ours)}, baseline {len(theirs)}; {counts}). {remedy}"
        elif task not in found:
            settings, others = run.settings.get(task, {}), baseline.settings.get(task, {})
            unequal = [
                f"{key} ({str(settings[key])[:40]}, baseline {str(others[key])[:40]})"
                for key in settings
                if key in others and key != "higher_is_better" and settings[key] != others[key]
            ]
            unequal += _unequal_texts(baseline, run, task, ours)
            if unequal:
                found[task] = ", ".join(unequal)
    return [f"{task}: '{run.name}' differs from '{baseline.name}' in {found[task]}" for task in sorted(found)]


def _unequal_texts(baseline: Run, run: Run, task: str, units: pd.Index) -> list[str]:
    """Questions, references and prompts that differ; a system whose prompt is not known differs in none."""
    index = [(task, unit) for unit in units]
    ours, theirs = (of.answers.reindex(index) for of in (run, baseline))
    found = []
    for column, name in (("key", "question"), ("reference", "reference"), ("prompt", "prompt")):
        known = ours[column].notna() & theirs[column].notna()
        n_unequal = int((known & (ours[column] != theirs[column])).sum())
        if n_unequal:
            found.append(f"the {name} of {n_unequal} of {len(units)} documents")
    return found


def _by_unit(answers: pd.DataFrame) -> pd.DataFrame:
    return answers.set_index(["task", "unit"])


def align_runs(baseline: Run, run: Run) -> Run:
    """Returns `run` with recorded answers under the name that the baseline has for their task, or the reverse."""
    ours, theirs = (
        {task: set(table.index) for (task, _), table in of.scores.items() if "scorer_version" in of.settings[task]}
        for of in (run, baseline)
    )
    for name, units in ours.items():
        for other, others in theirs.items():
            likely = units == others or len(ours) == len(theirs) == 1
            if RECORDED in (name, other) and other not in run.tasks and likely:
                names = {task: task for task in run.tasks} | {name: other}
                scores = {(names[task], metric): table for (task, metric), table in run.scores.items()}
                settings = {names[task]: run.settings[task] for task in run.tasks}
                texts = run.answers.rename(index=names, level="task")
                return replace(run, scores=scores, settings=settings, answers=texts)
    return run
