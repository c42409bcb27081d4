"""The documents of a comparison for its page: reference, and the answer and the scores of each run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bft_trl.comparison.runs import Run
from bft_trl.evaluation.names import recorded_name
from bft_trl.prompts import parse_choice

_LONGEST = 160


def document_tables(base: Run, others: Sequence[Run], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a table per task whose documents are known, ready for JSON.

    Each has the task, the names of the runs (the baseline first), the metrics, and the documents: id, what is asked,
    reference, answers (one per run, of the first seed) and scores (by metric one per run, None where a run has none).
    `signs` are -1 for metrics of which less is better.
    """
    tables = []
    for task in tasks:
        metrics = [metric for of, metric in base.scores if of == task]
        runs = [run for run in (base, *others) if task in run.answers.index.get_level_values("task")]
        if base not in runs or len(runs) < 2:
            continue
        lower = [
            name for name, better in base.settings.get(task, {}).get("higher_is_better", {}).items() if not better
        ]
        units = base.scores[task, metrics[0]].index
        texts = [run.answers.loc[task].reindex(units) for run in runs]
        scores = {metric: [_scores(run, task, metric, units) for run in runs] for metric in metrics}
        documents = []
        for place, unit in enumerate(units):
            parts = json.loads(texts[0]["document"].iloc[place] or "{}")
            documents.append(
                {
                    "id": str(unit),
                    "asked": _short(", ".join(parts["genes"]) if "genes" in parts else parts.get("question", "")),
                    "reference": _shown(texts[0]["reference"].iloc[place], parts),
                    "answers": [_shown(table["answer"].iloc[place], parts) for table in texts],
                    "scores": [[column[place] for column in scores[metric]] for metric in metrics],
                }
            )
        signs = [-1 if metric.partition("[")[0] in lower else 1 for metric in metrics]
        names = [run.name + _seeds(run) for run in runs]
        tables.append({"task": task, "runs": names, "metrics": metrics, "signs": signs, "documents": documents})
    return tables


def _scores(run: Run, task: str, metric: str, units: pd.Index) -> list[float | None]:
    if (task, metric) not in run.scores:
        return [None] * len(units)
    values = run.unit_scores(task, metric).reindex(units)
    return [None if pd.isna(value) else round(float(value), 3) for value in values]


def _seeds(run: Run) -> str:
    """A note for runs of several seeds, whose scores are means."""
    n_seeds = max(table.shape[1] for table in run.scores.values())
    return f" (mean of {n_seeds} seeds, answer of the first)" if n_seeds > 1 else ""


def _shown(answer: Any, parts: Mapping[str, Any]) -> str | None:
    """The name that an answer proposes, or its label with the option; else its text, shortened. None for none."""
    if not isinstance(answer, str) or not answer.strip():
        return None
    if "labels" in parts:
        label = answer if answer in parts["labels"] else parse_choice(answer, parts["labels"])
        option = dict(zip(parts["labels"], parts["options"], strict=True)).get(label or "")
        if label is not None:
            return _short(f"{label}. {option}" if option else label)
    name = recorded_name(answer) if "genes" in parts else None
    return _short(name or answer)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
