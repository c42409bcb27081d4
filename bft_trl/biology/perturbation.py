"""Perturbation response: predict the expression change of unseen perturbations from gene vectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology import task_metrics
from bft_trl.biology.cells import MIN_CELLS, MIN_PERTURBATIONS, Changes, changes_of_cells
from bft_trl.biology.controls import random_like, shuffled
from bft_trl.biology.predictors import fold_rows, predict_unseen
from bft_trl.biology.profiles import file_hash
from bft_trl.biology.results import TaskResults, check_options, write_results
from bft_trl.biology.task_metrics import Estimate
from bft_trl.biology.vectors import Vectors, covered, read_named_vectors
from bft_trl.comparison.statistics import cross_validated
from bft_trl.data.tables import write_parquet

CONTROLS = ("random", "shuffled", "no_change", "training_mean")
# Columns of predictions.parquet: no file of vectors can have these names.
COLUMNS = ("perturbation", "gene", "observed")
# Up to this many perturbations, one is left out at a time, and random and shuffled vectors are drawn several times.
SMALL = 100
FOLDS = 5
DRAWS = 5


def run_perturbation(
    data: Path,
    vectors: Sequence[Path],
    output_dir: Path,
    *,
    perturbation_column: str,
    control: str,
    raw_counts: bool = False,
    min_cells: int = MIN_CELLS,
    baseline: str = "training_mean",
    seed: int = 0,
) -> pd.DataFrame:
    """Predicts changes under unseen perturbations from each set of vectors and the controls, and writes the results.

    Args:
        data: AnnData (.h5ad); see [`changes_of_cells`] for it and the next four options.
        vectors: tables of gene and vector; the file's stem is the name.
        output_dir: folder for the results; see [`write_results`]. The predictions are in predictions.parquet.
        baseline: vector set or control that the page compares with.
        seed: of the halves of the control cells, the folds and the random vectors.

    Returns the metrics (model, metric, value, low, high). Raises ValueError or FileNotFoundError for bad input,
    before anything is fitted.
    """
    import anndata

    names = [*(path.stem for path in vectors), *CONTROLS]
    check_options(output_dir, "perturbation", names, baseline)
    if data.suffix != ".h5ad":
        raise ValueError(f"`data={str(data)!r}` must be an AnnData file (.h5ad).")
    named = read_named_vectors(vectors, reserved=(*CONTROLS, *COLUMNS))
    options: dict[str, Any] = {"control": control, "raw_counts": raw_counts, "min_cells": min_cells}
    rng = np.random.default_rng(seed)
    changes = changes_of_cells(anndata.read_h5ad(data), column=perturbation_column, rng=rng, **options)
    settings = {"data": data.name, "data_hash": file_hash(data), "perturbation_column": perturbation_column}
    scored = score_perturbations(changes, named, seed=seed)
    changes = scored.changes
    index = pd.MultiIndex.from_product([changes.perturbations, changes.genes], names=["perturbation", "gene"])
    values = {"observed": changes.test} | scored.predicted
    predictions = pd.DataFrame({name: one.ravel().astype(np.float32) for name, one in values.items()}, index=index)
    write_parquet(output_dir / "predictions.parquet", predictions.reset_index())
    return write_results(_results(scored, settings | options | {"seed": seed}), output_dir, baseline=baseline)


class Scored(NamedTuple):
    """Scores of each perturbation for each vector set and control."""

    scores: pd.DataFrame  # metric, unit (the perturbation), model, seed, score
    predicted: dict[str, np.ndarray]  # (P, G) by name; of several draws the first
    chosen: dict[str, dict[str, int]]  # by name, the number of folds that chose each predictor
    changes: Changes
    coverage: dict[str, float]
    n_folds: int
    n_train: int


def score_perturbations(changes: Changes, named: Mapping[str, Vectors], *, seed: int = 0) -> Scored:
    """Predicts the change under each perturbation from the others, and scores the predictions.

    One perturbation is left out at a time; above 100 there are five folds. All sets are compared on the perturbations
    for which each has a vector; the coverage is the fraction that a set has. `seed` is that of the folds and the
    random vectors, whose draws are `seed`, `seed + 1`, ... in the scores.

    Raises ValueError if too few perturbations can be compared.
    """
    kept, coverage = covered(named, changes.perturbations)
    count = int(kept.sum())
    if count < MIN_PERTURBATIONS:
        raise ValueError(
            f"`vectors`: {count} of {len(kept)} perturbations have a vector in every set, and {MIN_PERTURBATIONS} are "
            f"needed; coverage is {coverage}. Are perturbations and vectors gene symbols?"
        )
    names = [name for name, one in zip(changes.perturbations, kept, strict=True) if one]
    changes = Changes(names, changes.genes, changes.train[kept], changes.test[kept], changes.significant[kept])
    n_folds = count if count <= SMALL else FOLDS
    # One stream per purpose: the scores of a vector set do not depend on the other sets.
    for_folds, for_inner_folds, *for_controls = np.random.default_rng(seed).spawn(4)
    folds = fold_rows(count, n_folds, for_folds)
    inner_seed = int(for_inner_folds.integers(2**32))
    inputs = {name: [found.values[found.rows(names)]] for name, found in named.items()}
    first = next(iter(inputs.values()))[0]
    for (name, draw), rng in zip({"random": random_like, "shuffled": shuffled}.items(), for_controls, strict=True):
        inputs[name] = [draw(first, rng) for _ in range(DRAWS if count <= SMALL else 1)]
    predicted: dict[str, list[np.ndarray]] = {}
    chosen: dict[str, dict[str, int]] = {}
    for name, draws in tqdm(inputs.items(), desc="Perturbations", unit="model"):
        # The same inner folds for all.
        fits = [
            predict_unseen(values.astype(np.float64), changes.train, folds, rng=np.random.default_rng(inner_seed))
            for values in draws
        ]
        predicted[name] = [found for found, _ in fits]
        chosen[name] = pd.Series([one for _, best in fits for one in best]).value_counts().to_dict()
    predicted["no_change"] = [np.zeros_like(changes.train)]
    predicted["training_mean"] = [np.empty_like(changes.train)]
    for test in folds:
        predicted["training_mean"][0][test] = np.delete(changes.train, test, axis=0).mean(0)
    tables = [
        _scores(one, changes).assign(model=name, seed=seed + number)
        for name, draws in predicted.items()
        for number, one in enumerate(draws)
    ]
    scores, one_draw = pd.concat(tables, ignore_index=True), {name: draws[0] for name, draws in predicted.items()}
    return Scored(scores, one_draw, chosen, changes, coverage, n_folds, count - max(map(len, folds)))


def target_genes_left_out(changes: Changes) -> np.ndarray:
    """Returns which genes count for which perturbation: all but the one that it perturbs, (P, G) bool."""
    return np.array(changes.perturbations)[:, None] != np.array(changes.genes)


def _results(scored: Scored, settings: Mapping[str, Any]) -> TaskResults:
    # The mean over draws first: a perturbation is the unit.
    means = scored.scores.groupby(["metric", "model", "unit"])["score"].mean()
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in scored.predicted}
    for (metric, name), values in means.groupby(["metric", "model"]):
        estimates[name][metric] = Estimate(*cross_validated(values.to_numpy(), n_train=scored.n_train)[0])

    def compare(metric: str, one: str, other: str) -> dict[str, float]:
        difference = (means[metric, one] - means[metric, other]).to_numpy()
        found, p = cross_validated(difference, n_train=scored.n_train)
        return {"difference": found.mean, "low": found.low, "high": found.high, "p": p, "n": len(difference)}

    changes = scored.changes
    sizes = {"n_perturbations": len(changes.perturbations), "n_genes": len(changes.genes), "folds": scored.n_folds}
    return TaskResults(
        task="perturbation",
        over="perturbations",
        metrics=list(dict.fromkeys(scored.scores["metric"])),
        scores=scored.scores,
        estimates=estimates,
        compare=compare,
        coverage=scored.coverage,
        settings={**settings, **sizes},
        details={name: {"predictors": found} for name, found in scored.chosen.items()},
    )


def _scores(predicted: np.ndarray, changes: Changes) -> pd.DataFrame:
    """Every metric of every perturbation, without its target gene: metric, unit, score."""
    true, keep = changes.test, target_genes_left_out(changes)
    found = {
        "pearson_delta": task_metrics.pearson_delta(predicted, true, keep),
        "pearson_delta_top20": task_metrics.pearson_delta(predicted, true, keep, top=20),
        "mse": task_metrics.mse(predicted, true, keep),
        "mae": task_metrics.mae(predicted, true, keep),
        "sign_accuracy": task_metrics.sign_accuracy(predicted, true, keep, changes.significant),
        "discrimination": task_metrics.discrimination(predicted, true, keep),
    }
    table = pd.DataFrame(found, index=pd.Index(changes.perturbations, name="unit"))
    return table.melt(var_name="metric", value_name="score", ignore_index=False).dropna().reset_index()
