"""Output of both tasks: the scores table with its settings, metrics, tests, plots, and the comparison page."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.biology.task_metrics import Estimate
from bft_trl.comparison.forest import forest_plot
from bft_trl.comparison.page import LOWER_IS_BETTER, html_page
from bft_trl.comparison.statistics import ALPHA, holm
from bft_trl.data.tables import parquet_bytes
from bft_trl.evaluation.scores import read_settings, write_scores
from bft_trl.io import check_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """Results of a task for each vector set and control."""

    task: str
    over: str  # unit of intervals and tests: "genes" or "perturbations"
    metrics: Sequence[str]  # that are tested and shown on the page
    scores: pd.DataFrame  # metric, unit, model, seed, score
    estimates: Mapping[str, Mapping[str, Estimate]]  # by name and metric
    compare: Callable[[str, str, str], dict[str, float]]  # metric and two names: difference, low, high, p, n
    coverage: Mapping[str, float]  # fraction of units for which a vector set has vectors, by name of the set
    settings: Mapping[str, Any]  # that have to agree for two results to be comparable
    details: Mapping[str, Mapping[str, Any]]  # by name
    n_resamples: int | None = None  # of the bootstrap, if there is one


def check_options(output_dir: Path, task: str, names: Sequence[str], baseline: str) -> None:
    """Raises ValueError for options that cannot be used, before anything is computed."""
    check_folder(output_dir)
    if (output_dir / "settings.json").is_file():
        made = list(read_settings(output_dir)["tasks"])
        if made != [task]:
            raise ValueError(f"`output_dir={str(output_dir)!r}` has the results of {made}. Choose another folder.")
    if baseline not in names:
        raise ValueError(f"`baseline={baseline!r}` is none of {list(names)}.")


def write_results(results: TaskResults, output_dir: Path, *, baseline: str) -> pd.DataFrame:
    """Writes everything into `output_dir` and returns the metrics (model, metric, value, low, high).

    The files are scores.parquet and settings.json (one score per unit), metrics.json, tests.parquet (each vector set
    against every control and every other set), and index.html and forest.png, which compare the vector sets with
    `baseline`, a vector set or control.
    """
    tests = _tests(results, baseline)
    page = _page(results, tests, baseline)
    metrics = pd.DataFrame(
        {"model": name, "metric": metric, **estimate._asdict()}
        for name, found in results.estimates.items()
        for metric, estimate in found.items()
    )
    more = {
        "tests.parquet": parquet_bytes(tests),
        "metrics.json": metrics.to_json(orient="records", indent=2, double_precision=15).encode(),
    }
    forest = ""
    if page["rows"]:
        more["forest.png"], forest = forest_plot(page, "png"), forest_plot(page, "svg").decode()
    more["index.html"] = html_page(page, forest).encode()
    models: dict[str, dict[str, Any]] = {}
    for name in results.estimates:
        kind = "model" if name in results.coverage else "baseline"
        models[name] = {"kind": kind, "coverage": results.coverage.get(name), **results.details.get(name, {})}
    lower = {metric: False for metric in results.metrics if metric in LOWER_IS_BETTER}
    settings = {"tasks": {results.task: {**results.settings, "higher_is_better": lower}}, "models": models}
    write_scores(output_dir, results.scores.assign(task=results.task), settings, more)
    return metrics


def _tests(results: TaskResults, baseline: str) -> pd.DataFrame:
    """Each vector set against every control and every other vector set, with Holm's adjustment over all tests."""
    controls = [name for name in results.estimates if name not in results.coverage]
    sets = sorted(results.coverage, key=lambda name: name == baseline)  # the others against the baseline
    table = pd.DataFrame(
        {"metric": metric, "name": one, "against": other} | results.compare(metric, one, other)
        for metric in results.metrics
        for one, other in [*combinations(sets, 2), *product(sets, controls)]
    )
    needed = math.ceil(2 * len(table) / ALPHA)
    if results.n_resamples is not None and results.n_resamples < needed:
        logger.warning("`n_resamples` is too small: %d tests with Holm's adjustment need %d.", len(table), needed)
    return table.assign(p_holm=holm(table["p"].tolist()))


def _page(results: TaskResults, tests: pd.DataFrame, baseline: str) -> dict[str, Any]:
    """The vector sets against the baseline, as the comparison page takes them, beside the controls."""
    constant: dict[str, Any] = {"task": results.task, "smallest_difference": None}
    constant |= {"n_seeds": 1, "seed_sd": None, "baseline_n_seeds": 1, "baseline_seed_sd": None}
    against = tests[tests["against"] == baseline].rename(columns={"name": "run"})
    against["p_holm"] = holm(against["p"].tolist())
    rows: list[dict[str, Any]] = []
    for row in against.to_dict("records"):
        values = (results.estimates[name][row["metric"]].value for name in (row["run"], baseline))
        rows.append(row | constant | dict(zip(("score", "baseline_score"), values, strict=True)))
    control: dict[str, Any] = {"task": results.task, "kind": "baseline", "spread": None}
    control["source"] = "computed on the same data"
    references = [
        control | {"metric": metric, "name": f"control: {name}", "value": found[metric].value}
        for metric in results.metrics
        for name, found in results.estimates.items()
        if name not in results.coverage and name != baseline
    ]
    coverage = {f"coverage of {name}": f"{value:.1%}" for name, value in results.coverage.items()}
    described = {"n": rows[0]["n"] if rows else 0, "settings": {**results.settings, **coverage}}
    return {
        "baseline": baseline,
        "runs": [name for name in results.coverage if name != baseline],
        "over": results.over,
        "seed": results.settings["seed"],
        "n_resamples": results.n_resamples,
        "tasks": {results.task: described},
        "not_compared": {},
        "rows": rows,
        "reference_rows": references,
        "pairwise": tests[tests["metric"] == results.metrics[0]].to_dict("records"),
        "n_pairwise": len(tests),
    }
