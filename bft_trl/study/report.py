"""The result of a study: scores and costs per objective, the comparison with SFT over seeds, and the regime map."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.comparison.answers import document_tables
from bft_trl.comparison.compare import compare_loaded
from bft_trl.comparison.forest import forest_plot
from bft_trl.comparison.page import html_page
from bft_trl.comparison.runs import Run
from bft_trl.comparison.statistics import ALPHA
from bft_trl.io import write_files
from bft_trl.study.plan import Trial
from bft_trl.study.records import Records
from bft_trl.study.regime_map import regime_map
from bft_trl.study.steps import BASE, Steps, base_run

logger = logging.getLogger(__name__)

_COSTS = ("nll", "train_seconds", "memory_gib", "tokens_per_second")


def write_report(steps: Steps, records: Records, *, seed: int = 0, n_resamples: int = 9999) -> dict[str, Any]:
    """Writes study.json, .csv, index.html, forest.png and .svg, and regime_map.png and .svg; returns the first.

    Args:
        steps, records: of the study; an objective counts with the seeds that are done.
        seed: of the bootstrap.
        n_resamples: number of bootstrap samples.

    Raises ValueError if nothing can be compared with SFT yet.
    """
    done = _done_trials(steps, records)
    runs = {name: _run(name, done, steps, records) for name in steps.study.objectives}
    base = runs.pop(steps.study.baseline)
    others = [run for run in runs.values() if run.scores]
    if not base.scores or not others:
        raise ValueError(f"The study has nothing to compare with {base.name} yet.")
    result = compare_loaded(base, others, _references(steps, records), {}, seed=seed, n_resamples=n_resamples)
    result |= {"table": _table(steps, records, done), "failed": _failed(records), "seeds": list(steps.study.seeds)}
    result["map"] = _map_points(steps, records, result["rows"])
    result["headline"] = headline(result)
    _write(result, document_tables(base, others, list(result["tasks"])), steps.output_dir)
    return result


def label(model: str, data: str, task: str) -> str:
    """Returns the name of a task on the page."""
    return f"{data}, {model}: {task.removeprefix('bft_')}"


def _done_trials(steps: Steps, records: Records) -> dict[tuple[str, str, str], list[Trial]]:
    """Returns the runs of all seeds that are evaluated on test documents, by base model, data set and objective."""
    found: dict[tuple[str, str, str], list[Trial]] = {}
    for step in steps.known(records):
        if step.trial and step.kind == "test" and records.status(step.run, "test") == "done":
            found.setdefault(step.trial.cell, []).append(step.trial)
    return found


def _run(name: str, done: dict[tuple[str, str, str], list[Trial]], steps: Steps, records: Records) -> Run:
    """The test scores of an objective on all base models and data sets, units x seeds."""
    scores: dict[tuple[str, str], pd.DataFrame] = {}
    settings: dict[str, dict[str, Any]] = {}
    answers = []
    for (model, data, objective), trials in done.items():
        if objective != name:
            continue
        rows = records.scores[records.scores["run"].isin([t.id for t in trials]) & (records.scores["part"] == "test")]
        rows = rows[(rows["kind"] == "model") & rows["metric"].isin(steps.study.metrics(data))]
        for (task, metric), part in rows.groupby(["task", "metric"], sort=False):
            table = part.pivot(index="unit", columns="run", values="score")[[t.id for t in trials]]
            scores[label(model, data, task), metric] = table.loc[part["unit"].unique()]
            better = settings.setdefault(label(model, data, task), {"higher_is_better": {}})["higher_is_better"]
            better[metric] = bool(part["higher_is_better"].iloc[0])
        texts = records.answers[(records.answers["run"] == trials[0].id) & (records.answers["part"] == "test")]
        answers.append(texts.assign(task=[label(model, data, task) for task in texts["task"]]))
    if not answers:
        return Run(name, "model", {}, {})
    return Run(name, "model", scores, settings, pd.concat(answers).set_index(["task", "unit"]))


def _references(steps: Steps, records: Records) -> list[Run]:
    """The base models and the baselines of the tasks, on the test documents."""
    found: dict[tuple[str, str], dict[tuple[str, str], pd.DataFrame]] = {}
    for model, data, _ in steps.study.grid():
        rows = records.scores[(records.scores["run"] == base_run(model, data)) & (records.scores["part"] == "test")]
        rows = rows[rows["metric"].isin(steps.study.metrics(data))]
        for (name, kind, task, metric), part in rows.groupby(["name", "kind", "task", "metric"], sort=False):
            key = (BASE, "baseline") if kind == "model" else (name, kind)
            table = part.set_index("unit")[["score"]]
            found.setdefault(key, {})[label(model, data, task), metric] = table
    return [Run(name, kind, scores, {}) for (name, kind), scores in found.items()]


def _table(steps: Steps, records: Records, done: dict[tuple[str, str, str], list[Trial]]) -> list[dict[str, Any]]:
    """One row per base model, data set and objective with test scores: what was chosen, mean scores, nll and costs."""
    rows = []
    for model, data, objectives in steps.study.grid():
        for name in [BASE, *objectives]:
            trials = done.get((model, data, name), [])
            ids = [base_run(model, data)] if name == BASE else [trial.id for trial in trials]
            if not any(records.status(run, "test") == "done" for run in ids):
                continue
            row: dict[str, Any] = {"model": model, "data": data, "objective": name, "seeds": len(ids)}
            row["chosen"] = dict(trials[0].tuned) if trials else {}
            row |= {m: _seed_mean(records, ids, m) for m in steps.study.metrics(data)}
            kind = "inspect" if name == BASE else "train"
            for cost in _COSTS:
                values = [value for run in ids if (value := records.number(run, kind, cost)) is not None]
                row[cost] = float(np.mean(values)) if values else None
            if name == BASE:
                row["nll"] = None  # of 100 training answers, not of the validation rows
            rows.append(row)
    return rows


def _seed_mean(records: Records, ids: list[str], metric: str) -> list[float | None]:
    """Mean over tasks and seeds of a score, and its standard deviation over the seeds."""
    rows = records.scores[records.scores["run"].isin(ids) & (records.scores["part"] == "test")]
    rows = rows[(rows["metric"] == metric) & (rows["kind"] == "model")]
    means = rows.groupby(["run", "task"])["score"].mean().groupby("run").mean().dropna()
    return [float(means.mean()) if len(means) else None, float(means.std()) if len(means) > 1 else None]


def _map_points(steps: Steps, records: Records, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One point per base model, data set and objective: the base model's confidence, and the difference to SFT.

    Of the first metric; of several tasks the mean of the differences and of the ends of their intervals.
    """
    points = []
    for model, data, _ in steps.study.grid():
        confidence = records.number(base_run(model, data), "inspect", "confidence")
        metric, start = steps.study.metrics(data)[0], label(model, data, "")
        table = pd.DataFrame([r for r in rows if r["metric"] == metric and r["task"].startswith(start)])
        if confidence is None or table.empty:
            continue
        for run, part in table.groupby("run", sort=False):
            means = part[["difference", "low", "high"]].mean().to_dict()
            points.append(
                {"model": model, "data": data, "objective": run, "confidence": confidence, "metric": metric} | means
            )
    return points


def headline(result: dict[str, Any]) -> str:
    """Returns in one or two sentences which differences to SFT the study found."""
    n_tests, baseline = len(result["rows"]), result["baseline"]
    found = [row for row in result["rows"] if row["p_holm"] < ALPHA]
    better = [row for row in found if (row["difference"] > 0) == _higher_is_better(result, row)]
    if not found:
        return f"In none of {n_tests} tests does an objective differ from {baseline} after Holm's adjustment."
    return (
        f"Of {n_tests} tests after Holm's adjustment, {len(better)} find an objective better than {baseline} and "
        f"{len(found) - len(better)} find one worse."
    )


def _higher_is_better(result: dict[str, Any], row: dict[str, Any]) -> bool:
    return bool(result["tasks"][row["task"]]["settings"]["higher_is_better"][row["metric"]])


def _failed(records: Records) -> list[dict[str, str]]:
    rows = records.steps[records.steps["status"] == "failed"]
    return [
        {"run": row["run"], "kind": row["kind"], "error": str(row.get("error"))} for row in rows.to_dict("records")
    ]


def _write(result: dict[str, Any], documents: list[dict[str, Any]], output_dir: Path) -> None:
    svg, drawn = forest_plot(result, "svg"), regime_map(result["map"], result["baseline"], "svg")
    page = html_page(result, svg.decode(), documents=documents, template="study.html.j2", map_svg=drawn.decode())
    content = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_files(
        {
            output_dir / "study.csv": pd.DataFrame(result["rows"]).to_csv(index=False).encode(),
            output_dir / "forest.svg": svg,
            output_dir / "forest.png": forest_plot(result, "png"),
            output_dir / "regime_map.svg": drawn,
            output_dir / "regime_map.png": regime_map(result["map"], result["baseline"], "png"),
            output_dir / "study.json": content.encode(),
            output_dir / "index.html": page.encode(),
        }
    )
