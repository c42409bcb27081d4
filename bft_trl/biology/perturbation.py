"""Perturbation response: predict the expression change of unseen perturbations from gene vectors."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology import plots, task_metrics
from bft_trl.biology.cells import MIN_PERTURBATIONS, Changes, read_changes
from bft_trl.biology.controls import random_like, shuffled
from bft_trl.biology.predictors import additive, fold_rows, predict_unseen, training_rows
from bft_trl.biology.profiles import file_hash
from bft_trl.biology.results import TaskResults, check_options, gene_sets_and_color, write_results
from bft_trl.biology.task_metrics import Estimate
from bft_trl.biology.vectors import Vectors, read_named_vectors
from bft_trl.comparison.statistics import cross_validated

logger = logging.getLogger(__name__)

CONTROLS = ("no_change", "training_mean", "random", "shuffled", "additive")
# Columns of predictions.parquet: no file of vectors can have these names.
COLUMNS = ("perturbation", "gene", "observed")
METRICS = ("pearson_delta", "pearson_delta_top20", "mse", "mae", "sign_accuracy", "discrimination")
TOP = 20
# Up to this many perturbations each is left out alone, and random and shuffled vectors are drawn several times. Folds
# of combinations leave few perturbations that share no gene, so these are left out alone for longer.
SMALL = 100
SMALL_COMBINED = 500
FOLDS = 5
DRAWS = 5


class Scored(NamedTuple):
    """Scores of each perturbation for each vector set and control."""

    scores: pd.DataFrame  # metric, unit (the perturbation), model, seed, score
    predicted: dict[str, np.ndarray]  # (P, G) by name; of several draws the first
    changes: Changes
    chosen: dict[str, dict[str, int]]  # by name, how many folds chose each predictor
    vectors: dict[str, Vectors]
    coverage: dict[str, float]
    n_train: int
    report: dict[str, Any]


def run_perturbation(
    data: Path,
    vectors: Sequence[Path],
    output_dir: Path,
    *,
    perturbation_column: str | None = None,
    control: str | None = None,
    raw_counts: bool = False,
    min_cells: int | None = None,
    folds: int | None = None,
    gene_sets: Path | None = None,
    baseline: str = "training_mean",
    color_by: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Predicts the changes under unseen perturbations, compares vector sets and controls, and writes the results.

    Args:
        data: AnnData (.h5ad) or a table of changes; see [`read_changes`] for this and the next four options.
        vectors: tables of gene and vector; the file's stem is the name.
        output_dir: folder for the results; see [`write_results`].
        folds: see [`score_perturbations`].
        gene_sets: for the map; None takes those that ship.
        baseline: vector set or control that the page compares with.
        color_by: id or name of the gene set that the map shows in color.
        seed: of the halves of the control cells, the folds and the random vectors.

    Returns:
        The metrics: model, metric, value, low, high.

    Raises ValueError or FileNotFoundError for bad input, before anything is fitted.
    """
    names = [*(path.stem for path in vectors), *CONTROLS]
    check_options(output_dir, "perturbation", names, baseline=baseline, seed=seed)
    named = read_named_vectors(vectors, reserved=(*CONTROLS, *COLUMNS))
    _, color = gene_sets_and_color(gene_sets, color_by, named)
    options = {"perturbation_column": perturbation_column, "control": control, "min_cells": min_cells}
    changes = read_changes(data, **options, raw_counts=raw_counts, seed=seed)
    settings = options | {"raw_counts": raw_counts, "data": data.name, "data_hash": file_hash(data)}
    scored = score_perturbations(changes, named, folds=folds, seed=seed)
    results = perturbation_results(scored, settings=settings, color_by=color)
    return write_results(results, output_dir, baseline=baseline)


def score_perturbations(
    changes: Changes, named: Mapping[str, Vectors], *, folds: int | None = None, seed: int = 0
) -> Scored:
    """Predicts the change under each perturbation from those without any of its genes, and scores the predictions.

    A perturbation of several genes has the sum of their vectors. Perturbations with a gene that has no vector in one of
    the sets are left out; the coverage is the fraction that each set has.

    Args:
        changes: see [`changes_of_cells`] and [`changes_of_table`].
        named: vector sets by name.
        folds: number of folds; None leaves out one perturbation at a time, or takes 5 folds above 100 perturbations
            (500 if there are combinations).
        seed: of the folds, and of random and shuffled vectors. Their draws have the seeds `seed`, `seed + 1`, ... in
            the scores.

    Raises ValueError with the name of the argument if fewer than 3 perturbations can be compared.
    """
    changes, coverage = _covered(changes, named)
    count = len(changes.perturbations)
    related = _share_genes(changes.perturbations)
    small = SMALL if related.sum() == count else SMALL_COMBINED
    n_folds = folds if folds is not None else (count if count <= small else FOLDS)
    if not 2 <= n_folds <= count:
        raise ValueError(f"`folds={n_folds}` must be at least 2 and at most {count}, the number of perturbations.")
    # One stream per purpose: the scores of a vector set do not depend on the other sets.
    for_folds, for_inner_folds, *for_controls = np.random.default_rng(seed).spawn(4)
    rows = fold_rows(count, n_folds, for_folds)
    n_train = min(len(training_rows(test, related)) for test in rows)
    if n_train < 2:
        raise ValueError(
            f"`folds={n_folds}`: a fold has {n_train} training perturbations that share no gene with it; 2 are needed. "
            "Use more folds."
        )
    inputs = _inputs(changes.perturbations, named, for_controls)
    predicted, chosen = _predicted(changes.train, inputs, rows, related, seed=int(for_inner_folds.integers(2**32)))
    predicted |= _baselines(changes, rows, related)
    scores = [
        _scores(found, changes, name).assign(seed=seed + draw)
        for name, draws in predicted.items()
        for draw, found in enumerate(draws)
    ]
    report = changes.report | {
        "n_perturbations": count,
        "n_genes": len(changes.genes),
        "folds": "leave one out" if n_folds == count else n_folds,
        "seed": seed,
    }
    first = {name: draws[0] for name, draws in predicted.items()}
    table = pd.concat(scores, ignore_index=True)
    return Scored(table, first, changes, chosen, dict(named), coverage, n_train, report)


def perturbation_results(
    scored: Scored, *, settings: Mapping[str, Any], color_by: tuple[str, set[str]]
) -> TaskResults:
    """Returns the metrics with intervals, the paired tests and the plots of the scores.

    Args:
        scored: see [`score_perturbations`].
        settings: to write beside the scores.
        color_by: name and genes of the set that the map of the vectors shows.
    """
    # The mean over draws first: a perturbation is the unit.
    means = scored.scores.groupby(["model", "metric", "unit"])["score"].mean()
    n_train = scored.n_train
    estimates = {
        name: {metric: _estimate(means[name, metric], n_train) for metric in means[name].index.unique("metric")}
        for name in scored.predicted
    }

    def test(metric: str, one: str, other: str) -> dict[str, float] | None:
        if metric not in estimates[one] or metric not in estimates[other]:
            return None
        difference = (means[one, metric] - means[other, metric]).dropna().to_numpy()
        if not len(difference):
            return None
        found, p = cross_validated(difference, n_train=n_train)
        return {"difference": found.mean, "low": found.low, "high": found.high, "p": p, "n": len(difference)}

    shown = [*scored.vectors, "training_mean"]
    keep = target_genes_left_out(scored.changes)
    shown_changes = {name: scored.predicted[name] for name in shown}
    pearson = means.xs("pearson_delta", level="metric")
    return TaskResults(
        task="perturbation",
        over="perturbations",
        metrics=[metric for metric in METRICS if any(metric in found for found in estimates.values())],
        scores=scored.scores,
        estimates=estimates,
        test=test,
        coverage=scored.coverage,
        settings=scored.report | dict(settings),
        models={name: {"predictors": found} for name, found in scored.chosen.items()},
        plots={
            "predicted": lambda kind: plots.change_plot(scored.changes.test, shown_changes, keep, kind),
            "perturbations": lambda kind: plots.per_perturbation_plot(pearson, shown, kind),
            "map": lambda kind: plots.vector_map(scored.vectors, *color_by, kind),
        },
        tables={"predictions": _predictions(scored)},
    )


def target_genes_left_out(changes: Changes) -> np.ndarray:
    """Returns which genes count for which perturbation: all but those that it perturbs, (P, G) bool."""
    genes = np.array(changes.genes)
    return np.array([~np.isin(genes, name.split("+")) for name in changes.perturbations])


def _inputs(
    perturbations: Sequence[str], named: Mapping[str, Vectors], rngs: Sequence[np.random.Generator]
) -> dict[str, list[np.ndarray]]:
    """Vectors of the perturbations by name, one entry per draw."""
    inputs = {name: [_summed(perturbations, found)] for name, found in named.items()}
    # Shuffled among the perturbed genes only.
    genes = sorted({gene for name in perturbations for gene in name.split("+")})
    first = next(iter(named.values()))
    first = first._replace(genes=genes, values=first.values[first.rows(genes)])
    draws = DRAWS if len(perturbations) <= SMALL else 1
    for control, make, rng in zip(("random", "shuffled"), (random_like, shuffled), rngs, strict=True):
        inputs[control] = [_summed(perturbations, make(first, rng)) for _ in range(draws)]
    return inputs


def _predicted(
    changes: np.ndarray,
    inputs: Mapping[str, list[np.ndarray]],
    folds: list[np.ndarray],
    related: np.ndarray,
    *,
    seed: int,
) -> tuple[dict[str, list[np.ndarray]], dict[str, dict[str, int]]]:
    predicted: dict[str, list[np.ndarray]] = {}
    chosen: dict[str, list[str]] = {}
    with tqdm(total=sum(map(len, inputs.values())), desc="Perturbations", unit="fit") as progress:
        for name, draws in inputs.items():
            for values in draws:
                rng = np.random.default_rng(seed)  # the same inner folds for all
                found, names = predict_unseen(values, changes, folds, rng=rng, related=related)
                predicted.setdefault(name, []).append(found)
                chosen.setdefault(name, []).extend(names)
                progress.update()
    return predicted, {name: pd.Series(names).value_counts().to_dict() for name, names in chosen.items()}


def _baselines(changes: Changes, folds: list[np.ndarray], related: np.ndarray) -> dict[str, list[np.ndarray]]:
    mean = np.empty_like(changes.train)
    for test in folds:
        mean[test] = changes.train[training_rows(test, related)].mean(0)
    found = {"no_change": [np.zeros_like(changes.train)], "training_mean": [mean]}
    sums = additive(changes.perturbations, changes.train)
    return found | ({"additive": [sums]} if np.isfinite(sums).any() else {})


def _scores(predicted: np.ndarray, changes: Changes, model: str) -> pd.DataFrame:
    """Every metric of every perturbation, without its target gene and ("_with_target") with it."""
    has = np.isfinite(predicted).all(1)  # not all perturbations have a sum of single ones
    left_out = target_genes_left_out(changes)[has]
    given, true = predicted[has], changes.test[has]
    units = [name for name, one in zip(changes.perturbations, has, strict=True) if one]
    own, distances = np.flatnonzero(has), task_metrics.l1_distances(given, changes.test)
    found: dict[str, np.ndarray] = {}
    for suffix, keep in (("", left_out), ("_with_target", np.ones_like(left_out))):
        by_metric = {
            "pearson_delta": task_metrics.pearson_delta(given, true, keep),
            "pearson_delta_top20": task_metrics.pearson_delta(given, true, keep, top=TOP),
            "mse": task_metrics.mse(given, true, keep),
            "mae": task_metrics.mae(given, true, keep),
            "discrimination": task_metrics.discrimination(given, changes.test, keep, own=own, distances=distances),
        }
        if changes.significant is not None:
            by_metric["sign_accuracy"] = task_metrics.sign_accuracy(given, true, keep, changes.significant[has])
        found |= {metric + suffix: values for metric, values in by_metric.items()}
    table = pd.DataFrame(found, index=pd.Index(units, name="unit")).melt(
        var_name="metric", value_name="score", ignore_index=False
    )
    return table.dropna().reset_index().assign(model=model)


def _estimate(values: pd.Series, n_train: int) -> Estimate:
    return Estimate(*cross_validated(values.to_numpy(), n_train=n_train)[0])


def _share_genes(perturbations: Sequence[str]) -> np.ndarray:
    """Whether two perturbations have a gene in common, (P, P) bool."""
    from sklearn.preprocessing import MultiLabelBinarizer

    genes = MultiLabelBinarizer(sparse_output=True).fit_transform([name.split("+") for name in perturbations])
    return (genes @ genes.T).toarray() > 0


def _summed(perturbations: Sequence[str], vectors: Vectors) -> np.ndarray:
    """The vector of each perturbation, the sum over its genes, (P, D) float64."""
    return np.array([vectors.values[vectors.rows(name.split("+"))].sum(0, dtype=np.float64) for name in perturbations])


def _covered(changes: Changes, named: Mapping[str, Vectors]) -> tuple[Changes, dict[str, float]]:
    """The perturbations that have a vector in every set, and the fraction that each set has."""
    masks = {
        name: np.array([(found.rows(one.split("+")) >= 0).all() for one in changes.perturbations])
        for name, found in named.items()
    }
    coverage = {name: float(mask.mean()) for name, mask in masks.items()}
    kept = np.logical_and.reduce(list(masks.values()))
    missing = [name for name, has in zip(changes.perturbations, kept, strict=True) if not has]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        logger.warning("%d of %d perturbations have no vector in one of the sets: %s", len(missing), len(kept), shown)
        logger.warning("Coverage: %s", ", ".join(f"{name} {part:.0%}" for name, part in coverage.items()))
    if kept.sum() < MIN_PERTURBATIONS:
        raise ValueError(
            f"`vectors`: {kept.sum()} of {len(kept)} perturbations have a vector in every set, and {MIN_PERTURBATIONS} "
            f"are needed; coverage is {coverage}. Are the perturbations gene symbols, as in the vectors?"
        )
    return changes._replace(
        perturbations=[name for name, has in zip(changes.perturbations, kept, strict=True) if has],
        train=changes.train[kept],
        test=changes.test[kept],
        significant=None if changes.significant is None else changes.significant[kept],
    ), coverage


def _predictions(scored: Scored) -> pd.DataFrame:
    """Observed and predicted change of each gene under each perturbation."""
    names = scored.changes.perturbations, scored.changes.genes
    index = pd.MultiIndex.from_product(names, names=["perturbation", "gene"])
    columns = {"observed": scored.changes.test} | scored.predicted
    table = {name: values.ravel().astype(np.float32) for name, values in columns.items()}
    return pd.DataFrame(table, index=index).reset_index()
