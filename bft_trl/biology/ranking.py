"""How well scores rank labelled pairs, and how sure that is when pairs share genes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

# Weights held at once: memory does not grow with resamples times pairs.
_BATCH = 4_000_000


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve under each of R weightings, (R,), ties by half; NaN where a label has no weight.

    Equal to scikit-learn's `roc_auc_score(labels, scores, sample_weight=weights[r])`, for all weightings at once.

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
    """Average precision under each of R weightings, (R,), as scikit-learn's `average_precision_score`; NaN where no
    positive has weight. Arguments as of [`auroc`].
    """
    positive, negative = (part[:, ::-1] for part in _by_score(scores, labels, weights))  # from the highest score
    found = np.cumsum(positive, axis=1)
    called = found + np.cumsum(negative, axis=1)
    precision = np.divide(found, called, out=np.zeros_like(called), where=called > 0)
    total = positive.sum(1)
    return np.divide((positive * precision).sum(1), total, out=np.full(len(weights), np.nan), where=total > 0)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "auroc": auroc,
    "average_precision": average_precision,
}


def gene_resamples(
    first: np.ndarray, second: np.ndarray, n_genes: int, *, rng: np.random.Generator, n_resamples: int
) -> Iterator[np.ndarray]:
    """Weights of pairs in bootstrap samples of the genes, batches of (R, N).

    A gene that is drawn k times and one that is drawn m times give their pair the weight k m (Owen's pigeonhole
    bootstrap, Annals of Applied Statistics 2007). Pairs that share a gene are not independent: resampling pairs would
    give intervals that are too short. Where pairs are independent in truth, this is wider than need be.

    Args:
        first, second: numbers of the genes of each pair, (N,), from 0 to n_genes - 1.
    """
    size = max(1, _BATCH // max(len(first), n_genes))
    for begin in range(0, n_resamples, size):
        count = min(size, n_resamples - begin)
        drawn = rng.multinomial(n_genes, np.full(n_genes, 1 / n_genes), size=count)
        yield (drawn[:, first] * drawn[:, second]).astype(np.float64)


def interval(value: float, resampled: np.ndarray) -> Estimate:
    """`value` with the 95 % percentile interval of its bootstrap values; those that are NaN are left out."""
    kept = resampled[np.isfinite(resampled)]
    if not len(kept):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value of no difference, from the bootstrap values of the difference: twice the smaller tail."""
    kept = differences[np.isfinite(differences)]
    tail = min((kept <= 0).sum(), (kept >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(kept) + 1)))


def _by_score(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at each distinct score, from the lowest, (R, distinct) each."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    sorted_weights, is_positive = weights[:, order], labels[order] == 1
    return (
        np.add.reduceat(sorted_weights * is_positive, starts, axis=1),
        np.add.reduceat(sorted_weights * ~is_positive, starts, axis=1),
    )
