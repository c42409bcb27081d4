"""Perturbation response: predict the expression change of unseen perturbations from gene vectors."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology import plots, task_metrics
from bft_trl.biology.cells import (
    MIN_CELLS,
    MIN_PERTURBATIONS,
    Changes,
    changes_of_cells,
    changes_of_table,
    read_anndata,
)
from bft_trl.biology.controls import random_like, shuffled
from bft_trl.biology.predictors import additive, fold_rows, predict_unseen, training_rows
from bft_trl.biology.profiles import file_hash
from bft_trl.biology.results import TaskResults, check_options, gene_sets_and_color, write_results
from bft_trl.biology.task_metrics import Estimate
from bft_trl.biology.vectors import Vectors, read_named_vectors
from bft_trl.comparison.statistics import cross_validated

logger = logging.getLogger(__name__)

CONTROLS = ("random", "shuffled", "no_change", "training_mean", "additive")
# Columns of predictions.parquet: no file of vectors can have these names.
COLUMNS = ("perturbation", "gene", "observed")
METRICS = ("pearson_delta", "pearson_delta_top20", "mse", "mae", "sign_accuracy", "discrimination")
# Up to this many perturbations, one is left out at a time, and random and shuffled vectors are drawn several times.
# With combinations the limit is higher, because their folds leave few perturbations that share no gene.
SMALL = 100
SMALL_COMBINED = 500
FOLDS = 5
DRAWS = 5


def run_perturbation(
    data: Path,
    vectors: Sequence[Path],
    output_dir: Path,
    *,
    perturbation_column: str = "",
    control: str = "",
    raw_counts: bool = False,
    min_cells: int = MIN_CELLS,
    folds: int | None = None,
    gene_sets: Path | None = None,
    baseline: str = "training_mean",
    color_by: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Predicts changes under unseen perturbations from each set of vectors and the controls, and writes the results.

    Args:
        data: AnnData (.h5ad) or a table; see [`changes_of_cells`], [`changes_of_table`] and the next four options.
        vectors: tables of gene and vector; the file's stem is the name.
        output_dir: folder for the results; see [`write_results`].
        folds: see [`score_perturbations`].
        gene_sets, color_by: of the map of the vectors; see [`gene_sets_and_color`].
        baseline: vector set or control that the page compares with.
        seed: of the halves of the control cells, the folds and the random vectors.

    Returns:
        The metrics: model, metric, value, low, high.

    Raises ValueError or FileNotFoundError for bad input, before anything is fitted.
    """
    names = [*(path.stem for path in vectors), *CONTROLS]
    check_options(output_dir, "perturbation", names, baseline=baseline, seed=seed)
    named = read_named_vectors(vectors, reserved=(*CONTROLS, *COLUMNS))
    _, color = gene_sets_and_color(gene_sets, color_by, named)
    settings = {"data": data.name, "data_hash": file_hash(data), "control": control, "seed": seed}
    if data.suffix == ".h5ad":
        options: dict[str, Any] = {"control": control, "raw_counts": raw_counts, "min_cells": min_cells}
        rng = np.random.default_rng(seed)
        changes = changes_of_cells(read_anndata(data), column=perturbation_column, rng=rng, **options)
        settings |= options | {"perturbation_column": perturbation_column}
    else:
        changes = changes_of_table(data, control=control)
    scored = score_perturbations(changes, named, folds=folds, seed=seed)
    return write_results(_results(scored, settings, color), output_dir, baseline=baseline)


class Scored(NamedTuple):
    """Scores of each perturbation for each vector set and control."""

    scores: pd.DataFrame  # metric, unit (the perturbation), model, seed, score
    predicted: dict[str, np.ndarray]  # (P, G) by name; of several draws the first
    chosen: dict[str, dict[str, int]]  # by name, the number of folds that chose each predictor
    changes: Changes
    vectors: Mapping[str, Vectors]
    coverage: dict[str, float]
    n_folds: int
    n_train: int


def score_perturbations(
    changes: Changes, named: Mapping[str, Vectors], *, folds: int | None = None, seed: int = 0
) -> Scored:
    """Predicts the change under each perturbation from those without any of its genes, and scores the predictions.

    A perturbation of several genes has the sum of their vectors. All sets are compared on the perturbations for which
    each has a vector; the coverage is the fraction that a set has.

    Args:
        changes: of all perturbations.
        named: vector sets by name.
        folds: None leaves out one perturbation at a time, or takes 5 folds above 100 perturbations (500 if there are
            combinations).
        seed: of the folds and the random vectors, whose draws are `seed`, `seed + 1`, ... in the scores.

    Raises ValueError with the name of the argument if too few perturbations can be compared.
    """
    changes, coverage = _covered(changes, named)
    genes, member = _genes(changes.perturbations)
    count, related = len(changes.perturbations), (member @ member.T).toarray() > 0
    small = SMALL if related.sum() == count else SMALL_COMBINED
    n_folds = folds if folds is not None else (count if count <= small else FOLDS)
    if not 2 <= n_folds <= count:
        raise ValueError(f"`folds={n_folds}` must be at least 2 and at most {count}, the number of perturbations.")
    # One stream per purpose: the scores of a vector set do not depend on the other sets.
    for_folds, for_inner_folds, *for_controls = np.random.default_rng(seed).spawn(4)
    rows = fold_rows(count, n_folds, for_folds)
    n_train = min(len(training_rows(test, related)) for test in rows)
    if n_train < 2:
        raise ValueError(f"`folds={n_folds}` leaves {n_train} perturbations without a shared gene. Use more folds.")
    inner_seed = int(for_inner_folds.integers(2**32))

    def fitted(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
        rng = np.random.default_rng(inner_seed)  # the same inner folds for all
        return predict_unseen(values, changes.train, rows, rng=rng, related=related)

    predicted: dict[str, list[np.ndarray]] = {}
    chosen: dict[str, dict[str, int]] = {}
    inputs = _inputs(genes, member, named, for_controls)
    for name, draws in tqdm(inputs.items(), desc="Perturbations", unit="model"):
        fits = [fitted(values) for values in draws]
        predicted[name] = [found for found, _ in fits]
        chosen[name] = pd.Series([one for _, names in fits for one in names]).value_counts().to_dict()
    predicted |= _baselines(changes, rows, related)
    numbered = [(name, seed + draw, one) for name, draws in predicted.items() for draw, one in enumerate(draws)]
    tables = [_scores(one, changes, name).assign(seed=number) for name, number, one in numbered]
    first = {name: draws[0] for name, draws in predicted.items()}
    scores = pd.concat(tables, ignore_index=True)
    return Scored(scores, first, chosen, changes, named, coverage, n_folds, n_train)


def target_genes_left_out(changes: Changes) -> np.ndarray:
    """Returns which genes count for which perturbation: all but those that it perturbs, (P, G) bool."""
    genes = np.array(changes.genes)
    return np.array([~np.isin(genes, name.split("+")) for name in changes.perturbations])


def _results(scored: Scored, settings: Mapping[str, Any], color: tuple[str, set[str]]) -> TaskResults:
    # The mean over draws first: a perturbation is the unit.
    means = scored.scores.groupby(["metric", "model", "unit"])["score"].mean()
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in scored.predicted}
    for (metric, name), values in means.groupby(["metric", "model"]):
        estimates[name][metric] = Estimate(*cross_validated(values.to_numpy(), n_train=scored.n_train)[0])

    def test(metric: str, one: str, other: str) -> dict[str, float] | None:
        if metric not in estimates[one] or metric not in estimates[other]:
            return None
        difference = (means[metric, one] - means[metric, other]).dropna().to_numpy()
        if not len(difference):
            return None
        found, p = cross_validated(difference, n_train=scored.n_train)
        return {"difference": found.mean, "low": found.low, "high": found.high, "p": p, "n": len(difference)}

    changes, shown = scored.changes, [*scored.vectors, "training_mean"]
    index = pd.MultiIndex.from_product([changes.perturbations, changes.genes], names=["perturbation", "gene"])
    values = {"observed": changes.test} | scored.predicted
    predictions = pd.DataFrame({name: one.ravel().astype(np.float32) for name, one in values.items()}, index=index)
    own, keep = {name: scored.predicted[name] for name in shown}, target_genes_left_out(changes)
    sizes = {"n_perturbations": len(changes.perturbations), "n_genes": len(changes.genes), "folds": scored.n_folds}
    return TaskResults(
        task="perturbation",
        over="perturbations",
        metrics=[metric for metric in METRICS if metric in means],
        scores=scored.scores,
        estimates=estimates,
        test=test,
        vectors=scored.vectors,
        coverage=scored.coverage,
        settings={**settings, **sizes, **changes.report},
        details={name: {"predictors": found} for name, found in scored.chosen.items()},
        plots={
            "predicted": lambda kind: plots.change_plot(changes.test, own, keep, kind),
            "perturbations": lambda kind: plots.per_perturbation_plot(means["pearson_delta"], shown, kind),
            "map": lambda kind: plots.vector_map(scored.vectors, *color, kind),
        },
        tables={"predictions": predictions.reset_index()},
    )


def _genes(perturbations: Sequence[str]) -> tuple[list[str], Any]:
    """The perturbed genes, sorted, and which perturbation has which of them, (P, genes) sparse."""
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(sparse_output=True)
    member = binarizer.fit_transform([name.split("+") for name in perturbations])
    return list(binarizer.classes_), member


def _inputs(
    genes: list[str], member: Any, named: Mapping[str, Vectors], rngs: Sequence[np.random.Generator]
) -> dict[str, list[np.ndarray]]:
    """Vectors of the perturbations, (P, D) float64, by name, one entry per draw: the sums over their genes."""
    wanted = {
        name: found._replace(genes=genes, values=found.values[found.rows(genes)]) for name, found in named.items()
    }
    first = next(iter(wanted.values()))
    draws = range(DRAWS if member.shape[0] <= SMALL else 1)
    drawn = {name: [found] for name, found in wanted.items()}
    for name, make, rng in zip(("random", "shuffled"), (random_like, shuffled), rngs, strict=True):
        drawn[name] = [make(first, rng) for _ in draws]
    return {name: [member @ found.values.astype(np.float64) for found in draws] for name, draws in drawn.items()}


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
    given, true, own = predicted[has], changes.test[has], np.flatnonzero(has)
    distances = task_metrics.l1_distances(given, changes.test)
    found: dict[str, np.ndarray] = {}
    for suffix, keep in (("", left_out), ("_with_target", np.ones_like(left_out))):
        found[f"pearson_delta{suffix}"] = task_metrics.pearson_delta(given, true, keep)
        found[f"pearson_delta_top20{suffix}"] = task_metrics.pearson_delta(given, true, keep, top=20)
        found[f"mse{suffix}"] = task_metrics.mse(given, true, keep)
        found[f"mae{suffix}"] = task_metrics.mae(given, true, keep)
        found[f"discrimination{suffix}"] = task_metrics.discrimination(
            given, changes.test, keep, own=own, distances=distances
        )
        if changes.significant is not None:
            significant = changes.significant[has]
            found[f"sign_accuracy{suffix}"] = task_metrics.sign_accuracy(given, true, keep, significant)
    units = pd.Index(np.array(changes.perturbations)[has], name="unit")
    table = pd.DataFrame(found, index=units).melt(var_name="metric", value_name="score", ignore_index=False)
    return table.dropna().reset_index().assign(model=model)


def _covered(changes: Changes, named: Mapping[str, Vectors]) -> tuple[Changes, dict[str, float]]:
    """The perturbations that have a vector in every set, and the fraction that each set has."""
    known = {name: set(found.genes) for name, found in named.items()}
    has = {
        name: np.array([genes.issuperset(p.split("+")) for p in changes.perturbations])
        for name, genes in known.items()
    }
    coverage = {name: float(mask.mean()) for name, mask in has.items()}
    kept = np.logical_and.reduce(list(has.values()))
    if kept.all():
        return changes, coverage
    missing = np.array(changes.perturbations)[~kept]
    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    logger.warning("%d of %d perturbations have no vector in one of the sets: %s", len(missing), len(kept), shown)
    if kept.sum() < MIN_PERTURBATIONS:
        raise ValueError(
            f"`vectors`: {kept.sum()} of {len(kept)} perturbations have a vector in every set, and "
            f"{MIN_PERTURBATIONS} are needed; coverage is {coverage}. Are perturbations and vectors gene symbols?"
        )
    return changes._replace(
        perturbations=[name for name, one in zip(changes.perturbations, kept, strict=True) if one],
        train=changes.train[kept],
        test=changes.test[kept],
        significant=None if changes.significant is None else changes.significant[kept],
    ), coverage
