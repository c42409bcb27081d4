"""What a downstream task found: `results.json`, its tables, the comparison page and its plots, all whole or none."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.biology import drawing, interactions, perturbation, ranking
from bft_trl.comparison.forest import forest_plot
from bft_trl.comparison.page import html_page, markdown_page
from bft_trl.comparison.statistics import ALPHA, cross_validated, holm
from bft_trl.data.tables import parquet_bytes
from bft_trl.io import write_files

logger = logging.getLogger(__name__)

# A test of one name against another on a metric: difference, low, high, p and the number of units that both have; None
# where they have none in common.
Tester = Callable[[str, str, str], dict[str, float] | None]


def report_interactions(
    scored: interactions.Scored,
    out: Path,
    *,
    baseline: str = "random",
    gene_sets: pd.DataFrame,
    colour_by: str | None = None,
    seed: int = 0,
    n_resamples: int = 9999,
) -> dict[str, Any]:
    """Writes `results.json`, `tests.parquet`, `pairs.parquet`, `index.html`, `comparison.md` and the plots into `out`.

    Args:
        scored: see [`score_interactions`].
        out: folder.
        baseline: a vector set or a control, with which the page compares the vector sets.
        gene_sets: id, name, genes: where `colour_by` is looked up.
        colour_by: id or name of the set that the map of the vectors shows; None takes the one with the most genes.
        seed: of the bootstrap.
        n_resamples: of the genes.

    Returns:
        The results.
    """
    names = list(scored.probabilities)
    check_report(
        names, baseline=baseline, gene_sets=gene_sets, colour_by=colour_by, seed=seed, n_resamples=n_resamples
    )
    chosen_set = _gene_set(gene_sets, colour_by, scored.vectors)
    found, resampled = interactions.figures(scored, rng=np.random.default_rng(seed), n_resamples=n_resamples)
    metrics = list(ranking.METRICS)

    def test(metric: str, one: str, other: str) -> dict[str, float]:
        difference = resampled[metric][one] - resampled[metric][other]
        value = found[one][metric].value - found[other][metric].value
        estimate = ranking.interval(value, difference)
        return {"difference": value, "low": estimate.low, "high": estimate.high} | {
            "p": ranking.bootstrap_p(difference),
            "n": len(scored.test),
        }

    described = {
        name: {metric: _as_dict(value) for metric, value in found[name].items()} | scored.details[name]
        for name in names
    }
    results = _results("interactions", described, scored.coverage, scored.report)
    results |= {"n_resamples": n_resamples, "bootstrap_seed": seed}
    tests = _tests(test, list(scored.vectors), names, metrics)
    page = _page(
        "interactions",
        test,
        {metric: {name: found[name][metric].value for name in names} for metric in metrics},
        vectors=list(scored.vectors),
        baseline=baseline,
        over="genes",
        settings=_settings(scored.report["compared_on"], scored.coverage),
        seed=seed,
        n_resamples=n_resamples,
    )
    # The first draw of random and shuffled vectors stands for all in tables and plots.
    first = {name: probabilities[0] for name, probabilities in scored.probabilities.items()}
    drawn = {
        f"{name}, first draw" if len(scored.probabilities[name]) > 1 else name: values
        for name, values in first.items()
    }
    plots = {
        "roc": lambda kind: drawing.roc_plot(scored.test["label"], drawn, list(scored.vectors), kind),
        "calibration": lambda kind: drawing.calibration_plot(
            scored.test["label"], {name: first[name] for name in scored.vectors}, kind
        ),
        "map": lambda kind: drawing.vector_map(scored.vectors, chosen_set["genes"], chosen_set["name"], kind),
    }
    page |= _pairwise(tests, metrics[0], n_resamples)
    pairs = pd.concat([scored.test, pd.DataFrame(first)], axis=1)
    _write(out, results, page, plots, {"tests": tests, "pairs": pairs})
    return results


def report_perturbation(
    scored: perturbation.Scored,
    out: Path,
    *,
    baseline: str = "training_mean",
    gene_sets: pd.DataFrame,
    colour_by: str | None = None,
) -> dict[str, Any]:
    """Writes `results.json`, `tests.parquet`, `perturbations.parquet`, `predictions.parquet`, `index.html`,
    `comparison.md` and the plots into `out`; returns the results. Arguments as of [`report_interactions`].
    """
    names = list(scored.predicted)
    check_report(names, baseline=baseline, gene_sets=gene_sets, colour_by=colour_by)
    chosen_set = _gene_set(gene_sets, colour_by, scored.vectors)
    n_train = scored.report["n_train"]
    # Over draws of random vectors first: a perturbation is the unit.
    averaged = scored.scores.groupby(["target_gene", "name", "perturbation"])[list(perturbation.METRICS)].mean()
    scores = averaged.loc["left out"]
    metrics = [metric for metric in perturbation.METRICS if scores[metric].notna().any()]

    def test(metric: str, one: str, other: str) -> dict[str, float] | None:
        both = (
            pd.concat([scores.loc[one, metric], scores.loc[other, metric]], axis=1, join="inner").dropna().to_numpy()
        )
        if not len(both):
            return None
        estimate, p = cross_validated(both[:, 0] - both[:, 1], n_train=n_train)
        return {"difference": estimate.mean, "low": estimate.low, "high": estimate.high, "p": p, "n": len(both)}

    described: dict[str, dict[str, Any]] = {}
    for name in names:
        described[name] = {}
        for target, suffix in (("left out", ""), ("kept", "_with_target")):
            for metric in metrics:
                values = averaged.loc[target].loc[name][metric].dropna().to_numpy()
                if len(values):
                    estimate, _ = cross_validated(values, n_train=n_train)
                    described[name][metric + suffix] = _as_dict(ranking.Estimate(*estimate)) | {"n": len(values)}
        described[name]["n"] = int(scores.loc[name].shape[0])
        if name in scored.chosen:
            described[name]["chosen"] = pd.Series(scored.chosen[name]).value_counts().to_dict()
    results = _results("perturbation", described, scored.coverage, scored.report)
    tests = _tests(test, list(scored.vectors), names, metrics)
    page = _page(
        "perturbation",
        test,
        {
            metric: {name: float(scores.loc[name, metric].mean()) for name in names if name != "additive"}
            for metric in metrics
        },
        vectors=list(scored.vectors),
        baseline=baseline,
        over="perturbations",
        settings=_settings(
            {
                "perturbations": scored.report["perturbations"],
                "genes": scored.report["genes"],
                "folds": scored.report["folds"],
            },
            scored.coverage,
        ),
    )
    page |= _pairwise(tests, metrics[0])
    keep = perturbation.target_genes_left_out(scored.changes)
    shown = [*scored.vectors, "training_mean"]
    plots = {
        "predicted": lambda kind: drawing.change_plot(
            scored.changes.test, {name: scored.predicted[name] for name in shown}, keep, kind
        ),
        "perturbations": lambda kind: drawing.per_perturbation_plot(scores["pearson_delta"], shown, kind),
        "map": lambda kind: drawing.vector_map(scored.vectors, chosen_set["genes"], chosen_set["name"], kind),
    }
    tables = {"tests": tests, "perturbations": scored.scores, "predictions": _long(scored)}
    _write(out, results, page, plots, tables)
    return results


def check_report(
    names: Sequence[str],
    *,
    baseline: str,
    gene_sets: pd.DataFrame,
    colour_by: str | None = None,
    seed: int = 0,
    n_resamples: int = 9999,
) -> None:
    """Raises ValueError for options of a report that cannot be: to be known before the fitting.

    Args:
        names: vector sets and controls; for the rest see [`report_interactions`].
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed={seed}` must be at least 0 and under 2**32.")
    if colour_by is not None and not _named(gene_sets, colour_by).any():
        raise ValueError(
            f"`colour_by={colour_by!r}` is neither the id nor the name of one of {len(gene_sets)} gene sets."
        )
    if n_resamples < 99:
        raise ValueError(f"`n_resamples={n_resamples}` must be 99 or more.")
    if baseline not in names or baseline == "additive":
        raise ValueError(f"`baseline={baseline!r}` is none of {[name for name in names if name != 'additive']}.")


def _results(
    task: str,
    described: Mapping[str, dict[str, Any]],
    coverage: Mapping[str, float],
    report: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "format": 1,
        "task": task,
        "vectors": {name: described[name] | {"coverage": share} for name, share in coverage.items()},
        "controls": {name: figures for name, figures in described.items() if name not in coverage},
        "data": dict(report),
    }


def _tests(test: Tester, vectors: Sequence[str], names: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Every vector set against every control and every other vector set, with Holm's adjustment over all of them."""
    controls = [name for name in names if name not in vectors]
    wanted = [*combinations(vectors, 2), *((name, control) for name in vectors for control in controls)]
    rows = [
        {"metric": metric, "name": one, "against": other} | found
        for metric in metrics
        for one, other in wanted
        if (found := test(metric, one, other)) is not None
    ]
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].tolist()))


def _pairwise(tests: pd.DataFrame, metric: str, n_resamples: int | None = None) -> dict[str, Any]:
    """The tests of one metric for the page, and how many resamples all of them need."""
    needed = math.ceil(2 * len(tests) / ALPHA)
    if n_resamples is not None and n_resamples < needed:
        logger.warning(
            "`n_resamples=%d`: with %d tests take %d or more, or none in tests.parquet can stand after Holm.",
            *(n_resamples, len(tests), needed),
        )
    return {"pairwise": tests[tests["metric"] == metric].to_dict("records"), "n_pairwise": len(tests)}


def _page(
    task: str,
    test: Tester,
    values: Mapping[str, Mapping[str, float]],
    *,
    vectors: Sequence[str],
    baseline: str,
    over: str,
    settings: Mapping[str, Any],
    seed: int | None = None,
    n_resamples: int | None = None,
) -> dict[str, Any]:
    """The vector sets against the baseline, in the form that the comparison page takes; controls stand beside them."""
    rows: list[dict[str, Any]] = []
    compared = [name for name in vectors if name != baseline]
    one_seed = {"n_seeds": 1, "seed_sd": None, "baseline_n_seeds": 1, "baseline_seed_sd": None}
    for metric, by_name in values.items():
        for name in compared:
            found = test(metric, name, baseline)
            if found is None:
                continue
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "run": name,
                    "score": by_name[name],
                    "baseline_score": by_name[baseline],
                }
                | found
                | one_seed
                | {"smallest_difference": None}
            )
    for row, adjusted in zip(rows, holm([float(row["p"]) for row in rows]), strict=True):
        row["p_holm"] = adjusted
    references = [
        {"task": task, "metric": metric, "name": f"control: {name}", "kind": "floor", "value": value, "spread": None}
        | {"source": "computed on these"}
        for metric, by_name in values.items()
        for name, value in by_name.items()
        if name not in vectors and name != baseline
    ]
    return {
        "baseline": baseline,
        "runs": compared,
        "over": over,
        "seed": seed,
        "n_resamples": n_resamples,
        "n_resamples_needed": math.ceil(2 * len(rows) / ALPHA),
        "tasks": {task: {"n": rows[0]["n"] if rows else 0, "settings": dict(settings)}},
        "not_compared": {},
        "rows": rows,
        "reference_rows": references,
    }


def _settings(sizes: Mapping[str, Any], coverage: Mapping[str, float]) -> dict[str, Any]:
    return dict(sizes) | {f"coverage of {name}": f"{share:.1%}" for name, share in coverage.items()}


def _gene_set(sets: pd.DataFrame, wanted: str | None, vectors: Mapping[str, Any]) -> dict[str, Any]:
    """Name and genes of a set, by id or name."""
    genes = {gene for found in vectors.values() for gene in found.genes}
    if wanted is None:
        inside = [len(genes.intersection(members)) for members in sets["genes"]]
        row = sets.iloc[int(np.argmax(inside))]
    else:
        row = sets[_named(sets, wanted)].iloc[0]
    return {"name": str(row["name"]), "genes": set(row["genes"])}


def _named(sets: pd.DataFrame, wanted: str) -> pd.Series:
    return (sets["id"] == wanted) | (sets["name"] == wanted)


def _long(scored: perturbation.Scored) -> pd.DataFrame:
    """Predicted and observed change of each gene under each perturbation."""
    index = pd.MultiIndex.from_product(
        [scored.changes.perturbations, scored.changes.genes], names=["perturbation", "gene"]
    )
    columns = {"observed": scored.changes.test} | scored.predicted  # the first draw of random and shuffled vectors
    return pd.DataFrame(
        {name: values.ravel().astype(np.float32) for name, values in columns.items()}, index=index
    ).reset_index()


def _as_dict(value: Any) -> Any:
    return _finite(value._asdict()) if isinstance(value, ranking.Estimate) else value


def _finite(value: Any) -> Any:
    """JSON knows no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(
    out: Path,
    results: Mapping[str, Any],
    page: Mapping[str, Any],
    plots: Mapping[str, Callable[[str], bytes]],
    tables: Mapping[str, pd.DataFrame],
) -> None:
    """All files, each whole; what can fail is done before the first is written."""
    svgs = {name: plot("svg").decode("utf-8") for name, plot in plots.items()}
    contents = {f"{name}.svg": svg.encode("utf-8") for name, svg in svgs.items()}
    contents |= {f"{name}.png": plot("png") for name, plot in plots.items()}
    forest = forest_plot(page, "svg").decode("utf-8") if page["rows"] else ""
    if page["rows"]:
        contents |= {"forest.svg": forest.encode("utf-8"), "forest.png": forest_plot(page, "png")}
    contents |= {f"{name}.parquet": parquet_bytes(table) for name, table in tables.items()}
    contents["index.html"] = html_page(
        page, forest, figures=[(drawing.TITLES[name], svg) for name, svg in svgs.items()]
    ).encode()
    contents["comparison.md"] = markdown_page(page).encode()
    contents["results.json"] = (json.dumps(_finite(dict(results)), indent=2, allow_nan=False) + "\n").encode()
    if not page["rows"]:
        for old in ("forest.svg", "forest.png"):  # of an earlier run with another baseline
            (out / old).unlink(missing_ok=True)
    write_files({out / name: content for name, content in contents.items()})
