"""Metrics of both tasks: arrays in, numbers out.

Interactions: N pairs with scores and labels, under R weightings of the pairs, such as bootstrap samples. Perturbation:
P perturbations, G genes, changes (P, G) in log expression. `keep` (P, G) bool selects the genes that count for each
perturbation; the perturbed gene itself is usually left out.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

# Weights in memory at once.
_BATCH = 4_000_000


class Estimate(NamedTuple):
    """A metric with its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, (R,), ties count half; NaN if one of the labels has no weight.

    Equals scikit-learn's `roc_auc_score(labels, scores, sample_weight=weights[r])`, for all weightings at once.

    Args:
        scores: (N,).
        labels: 0 or 1, (N,).
        weights: (R, N), not negative.
    """
    positive, negative = _by_score(scores, labels, weights)
    below = np.cumsum(negative, axis=1) - negative
    total = positive.sum(1) * negative.sum(1)
    wins = (positive * (below + negative / 2)).sum(1)
    return np.divide(wins, total, out=np.full(len(weights), np.nan), where=total > 0)


def average_precision(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision, (R,), as scikit-learn's `average_precision_score`; NaN if no positive pair has weight.

    Arguments as for [`auroc`].
    """
    positive, negative = (part[:, ::-1] for part in _by_score(scores, labels, weights))  # from the highest score
    found = np.cumsum(positive, axis=1)
    predicted = found + np.cumsum(negative, axis=1)
    precision = np.divide(found, predicted, out=np.zeros_like(predicted), where=predicted > 0)
    total = positive.sum(1)
    return np.divide((positive * precision).sum(1), total, out=np.full(len(weights), np.nan), where=total > 0)


RANKING: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "auroc": auroc,
    "average_precision": average_precision,
}


def ranking_by_positive(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Each positive pair's part in the metrics of [`RANKING`]: their mean over the positive pairs is the metric.

    For AUROC it is the fraction of negative pairs with a lower score (ties count half), for average precision the
    precision at the pair's own score.

    Returns values (positive pairs,) by metric.
    """
    from scipy.stats import rankdata

    positive = labels == 1
    n_negative = (~positive).sum()
    below = rankdata(scores)[positive] - rankdata(scores[positive])
    at_least = rankdata(-scores, "max")[positive], rankdata(-scores[positive], "max")
    return {
        "auroc": below / n_negative if n_negative else np.full(len(below), np.nan),
        "average_precision": at_least[1] / at_least[0],
    }


def gene_resamples(
    first: np.ndarray, second: np.ndarray, n_genes: int, *, rng: np.random.Generator, n_resamples: int
) -> Iterator[np.ndarray]:
    """Yields weights of pairs in bootstrap samples of the genes, in batches (R, N).

    A pair of genes drawn k and m times has the weight k m (Owen's pigeonhole bootstrap, Annals of Applied Statistics
    2007). Pairs that share a gene are not independent: intervals from resampled pairs would be too narrow. For
    independent pairs these intervals are too wide. `first` and `second` are the indices of the pairs' genes, (N,).
    """
    size = max(1, _BATCH // max(len(first), n_genes))
    for begin in range(0, n_resamples, size):
        count = min(size, n_resamples - begin)
        drawn = rng.multinomial(n_genes, np.full(n_genes, 1 / n_genes), size=count)
        yield (drawn[:, first] * drawn[:, second]).astype(np.float64)


def interval(value: float, resampled: np.ndarray) -> Estimate:
    """Returns `value` with the 95 % percentile interval of its bootstrap values, without those that are NaN."""
    kept = resampled[np.isfinite(resampled)]
    if not len(kept):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value of no difference from bootstrap values of the difference: twice the smaller tail."""
    kept = differences[np.isfinite(differences)]
    tail = min((kept <= 0).sum(), (kept >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(kept) + 1)))


def pearson_delta(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray, *, top: int | None = None) -> np.ndarray:
    """Pearson correlation over genes, or over the `top` genes with the largest |true| (ties by position), (P,).

    It is in [-1, 1], 0 for a prediction that is the same for all genes, and NaN if the true change is.
    """
    found = np.full(len(true), np.nan)
    for row, (guess, change, kept) in enumerate(zip(predicted, true, keep, strict=True)):
        chosen = np.flatnonzero(kept)
        if top is not None:
            chosen = chosen[np.argsort(-np.abs(change[chosen]), kind="stable")[:top]]
        if len(chosen) < 2 or np.ptp(change[chosen]) == 0:
            continue
        found[row] = 0.0 if np.ptp(guess[chosen]) == 0 else np.corrcoef(guess[chosen], change[chosen])[0, 1]
    return found


def mse(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Mean squared error over genes, (P,), in squared log expression."""
    return np.mean((predicted - true) ** 2, axis=1, where=keep)


def mae(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Mean absolute error over genes, (P,), in log expression."""
    return np.mean(np.abs(predicted - true), axis=1, where=keep)


def sign_accuracy(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray, significant: np.ndarray) -> np.ndarray:
    """Fraction of the significantly changed genes whose direction is right, (P,), in [0, 1].

    A predicted 0 is wrong. NaN if no gene changed significantly.
    """
    counted = keep & significant
    right = (np.sign(predicted) == np.sign(true)) & (predicted != 0) & counted
    total = counted.sum(1)
    return np.divide(right.sum(1), total, out=np.full(len(true), np.nan), where=total > 0)


def discrimination(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Whether a prediction is nearest to its own perturbation, (P,), in [0, 1]; NaN for one perturbation.

    It is 1 - rank / (P - 1), where the rank is the number of other perturbations whose true change is nearer in L1
    (ties count half), over the genes that count for the predicted perturbation. An unrelated prediction has .5 on
    average; one that was fitted to the other perturbations and has no signal has less, because it is nearer to them.
    cell-eval's `discrimination_score_l1` divides by P and breaks ties by position.
    """
    from sklearn.metrics import pairwise_distances

    found = np.full(len(predicted), np.nan)
    if len(true) < 2:
        return found
    distances = pairwise_distances(predicted, true, metric="manhattan", n_jobs=-1)  # threads
    for row, (guess, kept) in enumerate(zip(predicted, keep, strict=True)):
        distance = distances[row] - np.abs(true[:, ~kept] - guess[~kept]).sum(1)
        others = np.delete(distance, row)
        rank = (others < distance[row]).sum() + 0.5 * (others == distance[row]).sum()
        found[row] = 1 - rank / len(others)
    return found


def _by_score(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positive and of the negative pairs at each distinct score, from the lowest, (R, distinct) each."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    sorted_weights, is_positive = weights[:, order], labels[order] == 1
    return (
        np.add.reduceat(sorted_weights * is_positive, starts, axis=1),
        np.add.reduceat(sorted_weights * ~is_positive, starts, axis=1),
    )
