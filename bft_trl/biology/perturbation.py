"""`bft-trl perturbation`: do vectors of genes tell how cells answer to the loss of one never perturbed before?"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology import metrics
from bft_trl.biology.cells import Changes
from bft_trl.biology.predictors import additive, fold_rows, predict_unseen, training_rows
from bft_trl.biology.vectors import Vectors, check_task, random_like, read_named_vectors, shuffled

logger = logging.getLogger(__name__)

CONTROLS = ("no_change", "training_mean", "random", "shuffled", "additive")
# Of predictions.parquet: names that no file of vectors can have.
COLUMNS = ("perturbation", "gene", "observed")
METRICS = ("pearson_delta", "pearson_delta_top20", "mse", "mae", "sign_accuracy", "discrimination")
TOP = 20
# Up to so many perturbations each is left out alone, and random vectors are drawn so often; above, folds and one draw.
# Combinations share genes with many others, of which folds would leave too few: they are left out alone for longer.
SMALL = 100
SMALL_COMBINED = 500
FOLDS = 5
DRAWS = 5


class Scored(NamedTuple):
    """Scores of each perturbation under each vector set and control."""

    scores: pd.DataFrame  # name, perturbation, draw, target_gene ("left out" or "kept"), and METRICS
    predicted: dict[str, np.ndarray]  # by name, (P, G)
    changes: Changes
    chosen: dict[str, list[str]]
    vectors: dict[str, Vectors]
    coverage: dict[str, float]
    report: dict[str, Any]


def score_perturbations(
    changes: Changes,
    vectors: Sequence[Path],
    out: Path,
    *,
    folds: int | None = None,
    seed: int = 0,
) -> Scored:
    """Predicts the change of each perturbation from those without any of its genes, and under the controls.

    A perturbation of several genes has the sum of their vectors. All are compared on the perturbations of which every
    vector set has each gene; the share that each has is its coverage.

    Args:
        changes: see [`changes_of_cells`] and [`changes_of_table`].
        vectors: tables of gene and vector; the file's stem is the name.
        out: folder that will be written to.
        folds: by perturbation; None leaves one out, or takes 5 folds above 100 perturbations (500 with combinations).
        seed: of folds, random and shuffled vectors.

    Raises ValueError that names the argument where fewer than 3 perturbations can be compared.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed={seed}` must be at least 0 and under 2**32.")
    named = read_named_vectors(vectors, reserved=(*CONTROLS, *COLUMNS))
    check_task(out, "perturbation")
    changes, coverage = _covered(changes, named)
    count = len(changes.perturbations)
    related = _share_genes(changes.perturbations)
    small = SMALL if related.sum() == count else SMALL_COMBINED
    n_folds = folds if folds is not None else (count if count <= small else FOLDS)
    if not 2 <= n_folds <= count:
        raise ValueError(f"`folds={n_folds}` must be at least 2 and at most {count}, the number of perturbations.")
    # A stream for each purpose: which set comes first, and its size, changes no other set's figures.
    for_folds, for_inner_folds, *for_controls = np.random.default_rng(seed).spawn(4)
    rows = fold_rows(count, n_folds, for_folds)
    n_train = min(len(training_rows(test, related)) for test in rows)
    if n_train < 2:
        raise ValueError(
            f"`folds={n_folds}`: a fold leaves {n_train} perturbations that share no gene with it, and 2 are needed; "
            "take more folds."
        )
    inputs: dict[str, list[np.ndarray]] = {
        name: [_summed(changes.perturbations, found)] for name, found in named.items()
    }
    first = _restricted(next(iter(named.values())), changes.perturbations)
    draws = DRAWS if count <= SMALL else 1
    for control, made, rng in zip(("random", "shuffled"), (random_like, shuffled), for_controls, strict=True):
        inputs[control] = [_summed(changes.perturbations, made(first, rng)) for _ in range(draws)]
    predicted: dict[str, list[np.ndarray]] = {}
    chosen: dict[str, list[str]] = {}
    progress = tqdm(total=sum(map(len, inputs.values())), desc="Perturbations", unit="arm")
    inner_seed = int(for_inner_folds.integers(2**32))  # the same inner folds for all
    for name, arms in inputs.items():
        for values in arms:
            found, names = predict_unseen(
                values, changes.train, rows, rng=np.random.default_rng(inner_seed), related=related
            )
            predicted.setdefault(name, []).append(found)
            chosen.setdefault(name, []).extend(names)
            progress.update()
    progress.close()
    predicted["no_change"] = [np.zeros_like(changes.train)]
    predicted["training_mean"] = [_means_of_others(changes.train, rows, related)]
    sums = additive(changes.perturbations, changes.train)
    has_sum = np.isfinite(sums).all(1)
    if has_sum.any():
        predicted["additive"] = [sums]
    scores = pd.concat(
        [
            _scores(one, changes, name=name, draw=draw)
            for name, found in predicted.items()
            for draw, one in enumerate(found)
        ],
        ignore_index=True,
    )
    report = changes.report | {
        "perturbations": count,
        "n_train": n_train,
        "genes": len(changes.genes),
        "folds": "leave one out" if n_folds == count else n_folds,
        "draws": draws,
        "seed": seed,
        "with_additive": [name for name, has in zip(changes.perturbations, has_sum, strict=True) if has],
        "significant": None if changes.significant is None else int(changes.significant.sum()),
    }
    return Scored(
        scores, {name: found[0] for name, found in predicted.items()}, changes, chosen, named, coverage, report
    )


def target_genes_left_out(changes: Changes) -> np.ndarray:
    """Which genes count for which perturbation: all but those that it perturbs, (P, G) bool."""
    genes = np.array(changes.genes)
    return np.array([~np.isin(genes, name.split("+")) for name in changes.perturbations])


def _scores(predicted: np.ndarray, changes: Changes, *, name: str, draw: int) -> pd.DataFrame:
    """Every metric of every perturbation, the target gene left out and kept."""
    tables = []
    have = np.isfinite(predicted).all(1)  # not all perturbations have a sum of single ones
    left_out = target_genes_left_out(changes)
    distances = metrics.l1_distances(predicted[have], changes.test)
    for target, keep in (("left out", left_out), ("kept", np.ones_like(left_out))):
        arguments = predicted[have], changes.test[have], keep[have]
        significant = None if changes.significant is None else changes.significant[have]
        by_metric = {
            "pearson_delta": metrics.pearson_delta(*arguments),
            "pearson_delta_top20": metrics.pearson_delta(*arguments, top=TOP),
            "mse": metrics.mse(*arguments),
            "mae": metrics.mae(*arguments),
            "sign_accuracy": np.nan if significant is None else metrics.sign_accuracy(*arguments, significant),
            "discrimination": metrics.discrimination(
                predicted[have], changes.test, keep[have], own=np.flatnonzero(have), distances=distances
            ),
        }
        names = [one for one, has in zip(changes.perturbations, have, strict=True) if has]
        tables.append(
            pd.DataFrame({"name": name, "perturbation": names, "draw": draw, "target_gene": target} | by_metric)
        )
    return pd.concat(tables, ignore_index=True)


def _means_of_others(changes: np.ndarray, folds: list[np.ndarray], related: np.ndarray) -> np.ndarray:
    """For each perturbation the mean change of those that its fold is predicted from, (P, G)."""
    found = np.empty_like(changes)
    for test in folds:
        found[test] = changes[training_rows(test, related)].mean(0)
    return found


def _share_genes(perturbations: Sequence[str]) -> np.ndarray:
    """Which perturbations have a gene in common, (P, P) bool."""
    from sklearn.preprocessing import MultiLabelBinarizer

    genes = MultiLabelBinarizer(sparse_output=True).fit_transform([name.split("+") for name in perturbations])
    return (genes @ genes.T).toarray() > 0


def _summed(perturbations: Sequence[str], vectors: Vectors) -> np.ndarray:
    """The vector of each perturbation, the sum over its genes, (P, D) float64."""
    return np.array([vectors.values[vectors.rows(name.split("+"))].sum(0, dtype=np.float64) for name in perturbations])


def _restricted(vectors: Vectors, perturbations: Sequence[str]) -> Vectors:
    """The vectors of the perturbed genes alone: what is shuffled must stay among them."""
    genes = sorted({gene for name in perturbations for gene in name.split("+")})
    return vectors._replace(genes=genes, values=vectors.values[vectors.rows(genes)])


def _covered(changes: Changes, named: dict[str, Vectors]) -> tuple[Changes, dict[str, float]]:
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
        for name, share in coverage.items():
            if share < 1:
                logger.warning("%s has %.0f %% of them.", name, 100 * share)
    if kept.sum() < 3:
        raise ValueError(
            f"`vectors`: {int(kept.sum())} of {len(kept)} perturbations have a vector in every set, and 3 are needed; "
            f"coverage is {coverage}. Are the perturbations gene symbols, as in the vectors?"
        )
    significant = None if changes.significant is None else changes.significant[kept]
    return (
        changes._replace(
            perturbations=[name for name, has in zip(changes.perturbations, kept, strict=True) if has],
            train=changes.train[kept],
            test=changes.test[kept],
            significant=significant,
            report=changes.report | {"without_vector": missing},
        ),
        coverage,
    )
