"""Paired statistics of the scores of two models on the same documents."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

ALPHA = 0.05
POWER = 0.8
MCNEMAR = "McNemar, exact"
OVER_SEEDS = "seeds and documents"
HIERARCHICAL = f"hierarchical bootstrap over {OVER_SEEDS}"
# Numbers in memory at once during resampling.
_BATCH = 2_000_000


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


class Test(NamedTuple):
    """A two-sided p-value and the name of the test."""

    p: float
    name: str


def paired_interval(differences: np.ndarray, *, rng: np.random.Generator, n_resamples: int = 9999) -> Interval:
    """Returns the mean difference with the 95 % percentile bootstrap interval over documents.

    Args:
        differences: score of one model minus that of the other, per document, shape (N,), N > 0.
    """
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # every resample is the same
        return Interval(mean, mean, mean)
    found = _bootstrap(differences, rng, n_resamples).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def _bootstrap(differences: np.ndarray, rng: np.random.Generator, n_resamples: int) -> Any:
    """The means of resampled documents, and their percentile interval."""
    from scipy.stats import bootstrap

    return bootstrap(
        (differences,),
        np.mean,
        confidence_level=1 - ALPHA,
        n_resamples=n_resamples,
        batch=max(1, _BATCH // len(differences)),
        method="percentile",
        rng=rng,
    )


def seeds_interval(
    a: np.ndarray, b: np.ndarray, *, rng: np.random.Generator, n_resamples: int = 9999
) -> tuple[Interval, Test]:
    """Returns the mean difference with its 95 % interval over training seeds and documents, and the test against 0.

    Hierarchical bootstrap: every resample draws documents, the same for both methods, and the seeds of each method.
    Two corrections for few seeds:

    - Resampled deviations are rescaled to the variance that they estimate, as in Carpenter, Goldstein and Rasbash
      (Applied Statistics 2003): the means of n resampled values have (n - 1)/n of the variance. Of the variance v_s
      of the mean by the seeds of a method, the noise v_e of single answers is left out: documents bring it already.
    - The interval is mean ± t se, with se the standard deviation of the resamples, and t with Satterthwaite's
      (Biometrics 1946) df = se^4 / (v_d^2 / (N - 1) + sum of v_s^2 / (S - 1)), where v_d is the variance by documents.
      If the v_s sum to no more than v_e there is no variance over seeds, and df = N - 1.

    Args:
        a, b: scores of the same documents in the same order, one column per seed: (N, S_a), (N, S_b); N, S > 1.
    """
    from scipy.stats import t

    differences = a.mean(1) - b.mean(1)
    mean, n_documents = float(differences.mean()), len(differences)
    by_seed = np.array([scores.mean(0).var(ddof=1) / scores.shape[1] for scores in (a, b)])
    noise = sum(_interaction(scores) / scores.size for scores in (a, b))
    kept = max(0.0, 1 - noise / by_seed.sum()) if by_seed.any() else 0.0
    resampled = _bootstrap(differences, rng, n_resamples).bootstrap_distribution - mean
    by_document = resampled * np.sqrt(n_documents / (n_documents - 1))
    total = by_document.copy()
    for scores in (a, -b):
        n_seeds = scores.shape[1]
        drawn = rng.choice(scores.mean(0) - scores.mean(), (n_resamples, n_seeds)).mean(1)
        total += drawn * np.sqrt(kept * n_seeds / (n_seeds - 1))
    error = float(total.std())
    if error < 1e-12:  # nothing varies, up to rounding
        return Interval(mean, mean, mean), Test(float(abs(mean) < 1e-12), HIERARCHICAL)
    df = n_documents - 1.0
    if kept:
        of_seeds = by_seed**2 / (np.array([a.shape[1], b.shape[1]]) - 1)
        df = max(1.0, error**4 / (by_document.var() ** 2 / df + of_seeds.sum()))
    half = float(t.ppf(1 - ALPHA / 2, df)) * error
    return Interval(mean, mean - half, mean + half), Test(float(2 * t.sf(abs(mean) / error, df)), HIERARCHICAL)


def _interaction(scores: np.ndarray) -> float:
    """The mean square of what neither document nor seed explains, (N, S)."""
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    return float((rest**2).sum() / ((scores.shape[0] - 1) * (scores.shape[1] - 1)))


def paired_test(a: np.ndarray, b: np.ndarray, *, rng: np.random.Generator, n_resamples: int = 9999) -> Test:
    """Returns the exact McNemar test if every score is 0 or 1, else a paired permutation test.

    Args:
        a, b: scores of the same documents in the same order, shape (N,), N > 0.
        n_resamples: random exchanges within pairs; all exchanges if there are no more than these.
    """
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        from statsmodels.stats.contingency_tables import mcnemar

        table = [[np.sum((a == i) & (b == j)) for j in (0, 1)] for i in (0, 1)]
        return Test(float(mcnemar(table, exact=True).pvalue), MCNEMAR)
    name = "permutation, paired"
    if np.array_equal(a, b) or len(a) == 1:  # one pair is as likely the other way round
        return Test(1.0, name)
    from scipy.stats import permutation_test

    found = permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=max(1, _BATCH // len(a)),
        rng=rng,
    )
    return Test(float(found.pvalue), name)


def cross_validated(scores: np.ndarray, *, n_train: int) -> tuple[Interval, float]:
    """Returns the mean of cross-validated scores or differences with its 95 % interval, and the p-value against 0.

    Nadeau and Bengio's corrected t-test (Machine Learning 2003): the errors of predictors fitted to nearly the
    same data are correlated, so the variance of the mean is (1/N + 1/n_train) s^2 and not s^2 / N. p is at least
    2 / 2^N.

    Args:
        scores: one for each unit that was left out, (N,), N > 0. A single one has no interval: it is infinite.
        n_train: units that each predictor was fitted to.
    """
    from scipy.stats import t

    mean = float(scores.mean())
    if len(scores) == 1:
        return Interval(mean, -np.inf, np.inf), 1.0
    # No test of N scores has a smaller p-value than the sign test.
    least = min(1.0, 2.0 ** (1 - len(scores)))
    if np.ptp(scores) == 0:
        return Interval(mean, mean, mean), 1.0 if mean == 0 else least
    error = float(scores.std(ddof=1) * np.sqrt(1 / len(scores) + 1 / n_train))
    half = float(t.ppf(1 - ALPHA / 2, len(scores) - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, len(scores) - 1))
    return Interval(mean, mean - half, mean + half), max(p, least)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted by Holm's method."""
    if not len(p_values):
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, alpha=ALPHA, method="holm")[1]]


def smallest_of_interval(interval: Interval) -> float | None:
    """Returns the difference detected with 80 % power in the test of an interval, by the normal approximation.

    None if the interval has no width.
    """
    from scipy.stats import norm

    half = (interval.high - interval.low) / 2
    return float(half * (1 + norm.ppf(POWER) / norm.ppf(1 - ALPHA / 2))) if half else None


def smallest_difference(differences: np.ndarray, *, binary: bool) -> float | None:
    """Returns the mean difference that N documents detect with 80 % power in a two-sided test at 5 %.

    By the normal approximation with the observed standard deviation of the differences; for binary scores at least
    6 / N, since fewer than six answers that differ cannot reach p < .05 in McNemar's exact test (2 x 0.5^6 = .03).
    None for fewer than two documents, and for scores that are not binary and never differ. At most 1 for binary
    scores.
    """
    from scipy.stats import norm

    if len(differences) < 2:
        return None
    spread = float(differences.std(ddof=1))
    if spread == 0 and not binary:
        return None
    by_normal = float((norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)) * spread / np.sqrt(len(differences)))
    return min(1.0, max(by_normal, 6 / len(differences))) if binary else by_normal
