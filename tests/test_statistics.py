"""Statistics of the comparison: worked out by hand, against plain enumeration, and calibrated by simulation."""

import itertools
import math

import numpy as np
import pytest

from bft_trl.comparison.statistics import (
    Interval,
    cross_validated,
    holm,
    paired_interval,
    paired_test,
    seeds_interval,
    smallest_difference,
    smallest_of_interval,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def pairs(both, only_a, only_b, neither):
    """Scores with so many documents right under both, under a only, under b only, and under none."""
    a = np.array([1.0] * (both + only_a) + [0.0] * (only_b + neither))
    b = np.array([1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither)
    return a, b


def test_mcnemar_by_hand():
    """Of 8 documents that differ, 7 speak for a: p = 2 x (C(8,7) + C(8,8)) / 2^8 = 2 x 9 / 256."""
    for both, neither in ((0, 0), (30, 12)):
        test = paired_test(*pairs(both, 7, 1, neither), rng=rng())
        assert test.p == pytest.approx(18 / 256)
        assert test.name == "McNemar, exact"
    assert paired_test(*pairs(5, 0, 0, 5), rng=rng()).p == 1


def test_permutation_by_hand():
    """Four differences of +0.5: of 16 ways to sign them, 2 are as far from 0 as this, so p = 1/8."""
    test = paired_test(np.full(4, 0.75), np.full(4, 0.25), rng=rng())
    assert test.p == pytest.approx(1 / 8)
    assert test.name == "permutation, paired"


def test_permutation_equals_enumeration():
    for seed in range(5):
        a, b = rng(seed).random((2, 9))
        differences = a - b
        means = [abs(np.mean(differences * signs)) for signs in itertools.product((-1, 1), repeat=9)]
        expected = np.mean(np.array(means) >= abs(differences.mean()) - 1e-12)
        assert paired_test(a, b, rng=rng()).p == pytest.approx(expected)


def test_equal_scores_are_no_difference():
    scores = rng().random(20)
    assert paired_test(scores, scores, rng=rng()).p == 1
    assert paired_interval(scores - scores, rng=rng()) == (0, 0, 0)


def test_holm_by_hand():
    """.01 x 3 = .03, then .03 x 2 = .06, then max(.06, .04 x 1) = .06."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_interval_equals_the_plain_loop():
    """The bootstrap with other random numbers, so equal up to its own noise; and to the normal interval of a mean."""
    differences = rng(1).normal(0.1, 1, 400)
    interval = paired_interval(differences, rng=rng(), n_resamples=4000)
    plain = rng(2)
    means = [plain.choice(differences, 400).mean() for _ in range(4000)]
    assert interval.mean == pytest.approx(differences.mean())
    assert interval[1:] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.006)
    width = 1.959964 * differences.std() / 20
    assert interval[1:] == pytest.approx([differences.mean() - width, differences.mean() + width], abs=0.006)


def test_a_seed_gives_the_same_numbers():
    a, b = rng(3).random((2, 50))
    for function in (lambda r: paired_interval(a - b, rng=r), lambda r: paired_test(a, b, rng=r)):
        assert function(rng(5)) == function(rng(5))


def test_smallest_difference_by_hand():
    """(1.95996 + 0.84162) x 0.5 / sqrt(100) = 0.14008, where the standard deviation is 0.5."""
    differences = np.array([0.5, -0.5] * 50) * math.sqrt(99 / 100)
    assert smallest_difference(differences, binary=False) == pytest.approx(0.140079, abs=1e-6)
    # 50 equal answers: McNemar's test needs six that differ
    assert smallest_difference(np.zeros(50), binary=True) == pytest.approx(6 / 50)
    assert smallest_difference(np.zeros(50), binary=False) is None
    assert smallest_difference(np.zeros(3), binary=True) == 1
    assert smallest_difference(np.ones(1), binary=True) is None


def test_smallest_difference_is_found_four_times_in_five():
    """Simulated: an effect of that size is found by the permutation test in about 80 % of 500 draws."""
    draws = rng(4)
    effect = 0.3 * (1.959964 + 0.841621) / math.sqrt(60)
    found = 0
    for _ in range(500):
        differences = draws.normal(effect, 0.3, 60)
        found += paired_test(differences, np.zeros(60), rng=draws, n_resamples=999).p < 0.05
    # standard error of a fraction of 500: 0.018; the t distribution of 60 documents costs another 0.02
    assert found / 500 == pytest.approx(0.78, abs=0.055)


def test_a_planted_effect_is_found():
    draws = rng(6)
    b = (draws.random(300) < 0.5).astype(float)
    a = np.where(draws.random(300) < 0.25, 1.0, b)  # an eighth of all answers becomes right
    assert paired_test(a, b, rng=draws).p < 0.001
    interval = paired_interval(a - b, rng=draws)
    assert 0 < interval.low < 0.125 < interval.high


def test_no_effect_is_not_found():
    """1,000 pairs of equally good models: about 5 % have p < .05 (McNemar: at most), 95 % of intervals hold 0."""
    draws = rng(7)
    found = {"permutation": 0, "mcnemar": 0, "interval": 0}
    for _ in range(1000):
        ability = draws.random(80)
        noisy = [ability + draws.normal(0, 0.3, 80) for _ in range(2)]
        found["permutation"] += paired_test(*noisy, rng=draws, n_resamples=199).p < 0.05
        interval = paired_interval(noisy[0] - noisy[1], rng=draws, n_resamples=399)
        found["interval"] += not interval.low <= 0 <= interval.high
        right = [(draws.random(80) < ability).astype(float) for _ in range(2)]
        found["mcnemar"] += paired_test(*right, rng=draws).p < 0.05
    # three standard errors of a fraction of 1,000: 0.021
    assert found["permutation"] / 1000 == pytest.approx(0.05, abs=0.021)
    assert found["interval"] / 1000 == pytest.approx(0.05, abs=0.025)  # percentile intervals are a little short
    assert 0.005 < found["mcnemar"] / 1000 < 0.071


def test_many_documents_in_little_memory():
    """4,183 documents times 9,999 resamples would be 335 MB at once."""
    import tracemalloc

    differences = rng(8).integers(-1, 2, 4183).astype(float)
    paired_interval(differences[:10], rng=rng(), n_resamples=99)  # imports
    tracemalloc.start()
    paired_interval(differences, rng=rng())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


# Relative error of a standard deviation of 9,999 resamples: 1 / sqrt(2 x 9,999) = .007; three of it.
NOISE = 0.022


def test_seeds_without_variance_give_the_t_interval_of_the_differences():
    """Equal columns: what is left are documents. Two seeds and three do not matter."""
    from scipy.stats import ttest_rel

    a, b = rng(9).random((2, 12))
    expected = ttest_rel(a, b)
    interval, test = seeds_interval(np.tile(a[:, None], 2), np.tile(b[:, None], 3), rng=rng())
    assert interval.mean == pytest.approx((a - b).mean())
    assert interval.high - interval.mean == pytest.approx(
        expected.confidence_interval().high - interval.mean, rel=NOISE
    )
    assert test.p == pytest.approx(expected.pvalue, rel=0.05)


def test_documents_without_variance_give_welchs_test_of_the_seeds():
    """Seed means 1, 2, 3 and 0, 1, 2: se^2 = 1/3 + 1/3 with (2/3)^2 / (2 x (1/3)^2 / 2) = 4 degrees of freedom, whose
    97.5 % point is 2.7764, and t = 1 / sqrt(2/3) = 1.2247.
    """
    from scipy.stats import ttest_ind

    a, b = np.tile([1.0, 2, 3], (8, 1)), np.tile([0.0, 1, 2], (8, 1))
    interval, test = seeds_interval(a, b, rng=rng())
    assert interval.mean == 1
    assert interval.high - 1 == pytest.approx(2.7764 * math.sqrt(2 / 3), rel=NOISE)
    assert 1 - interval.low == pytest.approx(interval.high - 1)
    assert test.p == pytest.approx(ttest_ind(a[0], b[0], equal_var=False).pvalue, rel=0.05)


def test_seeds_and_documents_by_hand():
    """a is the sum of a document's -3, -1, 1, 3, a seed's -1, 1, and noise of 1/2 whose signs cancel; b is 0.

    By documents (20/3) / 4 = 5/3; by seeds 2/2 = 1; the noise has the mean square 8 (1/4) / 3 = 2/3 and takes
    (2/3) / 8 = 1/12: se^2 = 5/3 + 1 - 1/12 = 31/12 with (31/12)^2 / ((5/3)^2 / 3 + 1) = 3.466 degrees of freedom.
    """
    from scipy.stats import t

    noise = np.array([1, -1, -1, 1])[:, None] * [0.5, -0.5]
    a = np.array([-3.0, -1, 1, 3])[:, None] + [-1.0, 1] + noise
    interval, test = seeds_interval(a, np.zeros((4, 2)), rng=rng())
    df = (31 / 12) ** 2 / ((5 / 3) ** 2 / 3 + 1)
    assert interval.high == pytest.approx(t.ppf(0.975, df) * math.sqrt(31 / 12), rel=2 * NOISE)
    assert (interval.mean, test.p) == (0, 1)


def test_scores_that_do_not_vary_over_seeds_and_documents():
    for value, p in ((0.0, 1), (0.3, 0)):
        interval, test = seeds_interval(np.full((5, 2), value), np.zeros((5, 3)), rng=rng())
        assert interval == pytest.approx((value, value, value))
        assert test.p == p
    assert smallest_of_interval(Interval(0.3, 0.3, 0.3)) is None
    # (1.95996 + 0.84162) standard errors, where 1.95996 of them are half of the width
    assert smallest_of_interval(Interval(0, -1.95996, 1.95996)) == pytest.approx(2.80158, rel=1e-5)


@pytest.mark.parametrize("seed_sd", [0.0, 0.2, 1.0])
def test_coverage_over_three_seeds(seed_sd):
    """300 studies of 60 documents without a difference: about 95 % of intervals hold 0, also if seeds dominate.

    The standard error of a fraction is .013. Resampling seeds and documents without a correction covers about 80 %
    where seeds dominate (the variance is 2/3 of the true one, and t with 4 degrees of freedom has longer tails).
    """
    draws = rng(10)
    covered = {"corrected": 0, "uncorrected": 0}
    for _ in range(300):
        documents = draws.normal(0, 1, (60, 1))
        a, b = (
            documents + draws.normal(0, 0.5, (60, 1)) + draws.normal(0, seed_sd, 3) + draws.normal(0, 0.5, (60, 3))
            for _ in range(2)
        )
        interval, test = seeds_interval(a, b, rng=draws, n_resamples=299)
        covered["corrected"] += interval.low <= 0 <= interval.high
        assert (test.p < 0.05) == (not interval.low <= 0 <= interval.high)
        rows = draws.integers(60, size=(299, 60))
        means = [draws.choice(scores[rows].mean(1), 3, axis=1).mean(1) for scores in (a, b)]
        low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
        covered["uncorrected"] += low <= 0 <= high
    assert covered["corrected"] / 300 == pytest.approx(0.955, abs=0.03)
    if seed_sd == 1:
        assert covered["uncorrected"] / 300 < 0.9


def test_a_planted_effect_is_found_over_three_seeds():
    """The standard error is sqrt(2 (.1^2 + .5^2 / 60) / 3) = .097, and .7 are seven of them: t with 4 degrees of
    freedom and noncentrality 7 is above 2.78 in 99 %.
    """
    draws = rng(11)
    found = 0
    for _ in range(100):
        documents = draws.normal(0, 1, (60, 1))
        a, b = (mean + documents + draws.normal(0, 0.1, 3) + draws.normal(0, 0.5, (60, 3)) for mean in (0.7, 0))
        interval, test = seeds_interval(a, b, rng=draws, n_resamples=299)
        found += test.p < 0.05 and interval.low > 0
    assert found >= 96


def test_cross_validated_by_hand():
    """Scores 1, 2, 3, 6: mean 3, s^2 = (4 + 1 + 0 + 9) / 3 = 14/3. With three units in a fit the variance of the mean
    is (1/4 + 1/3) 14/3 = 49/18, and t = 3 / (7 / sqrt(18)) = 1.8183 with 3 degrees of freedom, whose 97.5 % point is
    3.1824.
    """
    interval, p = cross_validated(np.array([1.0, 2, 3, 6]), n_train=3)
    assert interval.mean == 3
    assert interval.high - 3 == pytest.approx(3.18245 * 7 / math.sqrt(18), rel=1e-5)
    assert 3 - interval.low == pytest.approx(interval.high - 3)
    # The distribution function of t with 3 degrees of freedom has a closed form.
    t = 3 * math.sqrt(18) / 7
    x = t / math.sqrt(3)
    assert p == pytest.approx(2 * (0.5 - (math.atan(x) + x / (1 + x**2)) / math.pi))


def test_cross_validated_without_spread():
    assert cross_validated(np.zeros(5), n_train=4) == ((0, 0, 0), 1.0)
    # Five signs that agree: two of 2^5 ways.
    assert cross_validated(np.ones(5), n_train=4) == ((1, 1, 1), 2 / 2**5)
    assert cross_validated(np.array([0.3, 0.3, 0.1 + 0.2]), n_train=2)[1] == 2 / 2**3
    interval, p = cross_validated(np.array([2.0]), n_train=4)
    assert (interval.low, interval.high, p) == (-math.inf, math.inf, 1.0)
