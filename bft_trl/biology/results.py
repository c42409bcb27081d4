"""Output of both tasks: the scores table with its settings, metrics, tests, plots, and the comparison page."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.biology.plots import TITLES
from bft_trl.biology.task_metrics import Estimate
from bft_trl.biology.vectors import Vectors
from bft_trl.comparison.forest import forest_plot
from bft_trl.comparison.page import html_page
from bft_trl.comparison.statistics import ALPHA, holm
from bft_trl.data.gene_sets import shipped_sets
from bft_trl.data.tables import parquet_bytes, read_gene_sets, read_json_object
from bft_trl.evaluation.scores import write_scores
from bft_trl.io import check_folder

logger = logging.getLogger(__name__)

LOWER_IS_BETTER = ("mse", "mae", "brier")
# Difference of two names in a metric, with low, high, p and n; None if they have no unit in common.
Tester = Callable[[str, str, str], dict[str, float] | None]


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """Results of a task for each vector set and control."""

    task: str
    over: str  # unit of intervals and tests: "genes" or "perturbations"
    metrics: Sequence[str]  # that are tested and shown on the page
    scores: pd.DataFrame  # metric, unit, model, seed, score
    estimates: Mapping[str, Mapping[str, Estimate]]  # by name and metric
    test: Tester
    vectors: Mapping[str, Vectors]
    coverage: Mapping[str, float]  # fraction of units for which a vector set has vectors
    settings: Mapping[str, Any]  # that have to agree for two results to be comparable
    details: Mapping[str, Mapping[str, Any]]  # by name
    plots: Mapping[str, Callable[[str], bytes]]  # functions of "png" or "svg", by their name in TITLES
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # further files, by name
    bootstrap: Mapping[str, int] = field(default_factory=dict)  # seed and n_resamples


def check_options(output_dir: Path, task: str, names: Sequence[str], *, baseline: str, seed: int) -> None:
    """Raises ValueError for options that cannot be used, before anything is computed."""
    check_folder(output_dir)
    settings = output_dir / "settings.json"
    made = list(read_json_object(settings).get("tasks", {})) if settings.is_file() else [task]
    if made != [task]:
        raise ValueError(f"`output_dir={str(output_dir)!r}` has the results of {made}. Choose another folder.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed={seed}` must be at least 0 and less than 2**32.")
    if baseline not in names or baseline == "additive":
        raise ValueError(f"`baseline={baseline!r}` is none of {[name for name in names if name != 'additive']}.")


def gene_sets_and_color(
    gene_sets: Path | None, color_by: str | None, vectors: Mapping[str, Vectors]
) -> tuple[pd.DataFrame, tuple[str, set[str]]]:
    """Returns the gene sets (None: those that ship), and name and genes of the set that the map shows in color.

    `color_by` is the id or name of a set; None takes the one with most genes that have a vector.
    """
    sets = shipped_sets() if gene_sets is None else read_gene_sets(gene_sets)
    genes = {gene for found in vectors.values() for gene in found.genes}
    if color_by is None:
        row = sets.iloc[int(np.argmax([len(genes.intersection(members)) for members in sets["genes"]]))]
    else:
        found = sets[(sets["id"] == color_by) | (sets["name"] == color_by)]
        if found.empty:
            raise ValueError(f"`color_by={color_by!r}` is neither id nor name of one of {len(sets)} gene sets.")
        row = found.iloc[0]
    return sets, (str(row["name"]), set(row["genes"]))


def write_results(results: TaskResults, output_dir: Path, *, baseline: str) -> pd.DataFrame:
    """Writes everything into `output_dir` and returns the metrics (model, metric, value, low, high).

    The files are scores.parquet and settings.json (one score per unit), metrics.json, tests.parquet (each vector set
    against every control and every other set), index.html, the plots (.png), and the tables of the task.

    The page compares the vector sets with `baseline`, a vector set or control.
    """
    tests = _tests(results)
    page = _page(results, tests, baseline)
    plots = dict(results.plots)
    if page["rows"]:
        plots["forest"] = lambda kind: forest_plot(page, kind)
    else:
        (output_dir / "forest.png").unlink(missing_ok=True)  # of a run with another baseline
    svgs = {name: plot("svg").decode() for name, plot in plots.items()}
    forest = svgs.pop("forest", "")
    metrics = pd.DataFrame(
        {"model": name, "metric": metric, **estimate._asdict()}
        for name, found in results.estimates.items()
        for metric, estimate in found.items()
    )
    more = {f"{name}.parquet": parquet_bytes(table) for name, table in {**results.tables, "tests": tests}.items()}
    more |= {f"{name}.png": plot("png") for name, plot in plots.items()}
    more["metrics.json"] = metrics.to_json(orient="records", indent=2, double_precision=15).encode()
    figures = [(TITLES[name], svg) for name, svg in svgs.items()]
    more["index.html"] = html_page(page, forest, figures=figures).encode()
    models: dict[str, dict[str, Any]] = {name: {"kind": "baseline"} for name in results.estimates}
    for name, found in results.vectors.items():
        models[name] = {"kind": "model", "coverage": results.coverage[name], "manifest": found.manifest}
    models = {name: entry | dict(results.details.get(name, {})) for name, entry in models.items()}
    lower = {metric: False for metric in results.scores["metric"].unique() if metric.startswith(LOWER_IS_BETTER)}
    settings = {"tasks": {results.task: {**results.settings, "higher_is_better": lower}}, "models": models}
    write_scores(output_dir, results.scores.assign(task=results.task), settings, more)
    return metrics


def _tests(results: TaskResults) -> pd.DataFrame:
    """Each vector set against every control and every other vector set, with Holm's adjustment over all tests."""
    controls = [name for name in results.estimates if name not in results.vectors]
    pairs = [*combinations(results.vectors, 2), *((name, other) for name in results.vectors for other in controls)]
    table = pd.DataFrame(
        {"metric": metric, "name": one, "against": other} | found
        for metric in results.metrics
        for one, other in pairs
        if (found := results.test(metric, one, other)) is not None
    )
    needed = math.ceil(2 * len(table) / ALPHA)
    if results.bootstrap.get("n_resamples", needed) < needed:
        logger.warning("`n_resamples` is too small: %d tests with Holm's adjustment need %d.", len(table), needed)
    return table.assign(p_holm=holm(table["p"].tolist()))


def _page(results: TaskResults, tests: pd.DataFrame, baseline: str) -> dict[str, Any]:
    """The vector sets against the baseline, as the comparison page takes them, beside the controls."""
    compared = [name for name in results.vectors if name != baseline]
    scores = {
        metric: {name: found[metric].value for name, found in results.estimates.items() if metric in found}
        for metric in results.metrics
    }
    one_seed = {"n_seeds": 1, "seed_sd": None, "baseline_n_seeds": 1, "baseline_seed_sd": None}
    rows: list[dict[str, Any]] = [
        {"task": results.task, "metric": metric, "run": name, "score": scores[metric][name]}
        | {"baseline_score": scores[metric][baseline], "smallest_difference": None}
        | found
        | one_seed
        for metric in results.metrics
        for name in compared
        if (found := results.test(metric, name, baseline)) is not None
    ]
    for row, adjusted in zip(rows, holm([float(row["p"]) for row in rows]), strict=True):
        row["p_holm"] = adjusted
    references = [
        {"task": results.task, "metric": metric, "name": f"control: {name}", "kind": "baseline", "value": value}
        | {"spread": None, "source": "computed on the same data"}
        for metric, by_name in scores.items()
        for name, value in by_name.items()
        # The sum of single changes exists for some perturbations only.
        if name not in results.vectors and name not in (baseline, "additive")
    ]
    shown = {name: value for name, value in results.settings.items() if isinstance(value, int | str)}
    shown |= {f"coverage of {name}": f"{value:.1%}" for name, value in results.coverage.items()}
    return {
        "baseline": baseline,
        "runs": compared,
        "over": results.over,
        "seed": results.bootstrap.get("seed"),
        "n_resamples": results.bootstrap.get("n_resamples"),
        "n_resamples_needed": math.ceil(2 * len(rows) / ALPHA),
        "tasks": {results.task: {"n": rows[0]["n"] if rows else 0, "settings": shown}},
        "not_compared": {},
        "rows": rows,
        "reference_rows": references,
        "pairwise": tests[tests["metric"] == results.metrics[0]].to_dict("records"),
        "n_pairwise": len(tests),
    }
