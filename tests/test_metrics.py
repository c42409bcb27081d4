import pytest
import torch

from bft_trl.training.metrics import (
    SUMS,
    all_metrics,
    pool_sums,
    step_metrics,
    sum_by_row,
    sum_by_sample,
    total,
    zero_sums,
)
from bft_trl.weighting import SupervisedTokens, Weights

# Row 0 holds samples of 2 and 1 tokens, row 2 one of 1 token, row 1 none.
TOKENS = SupervisedTokens(
    log_probs=torch.tensor([-1.0, -3.0, -2.0, -4.0]),
    lengths=torch.tensor([2, 1, 1]),
    row=torch.tensor([0, 0, 2]),
    position=torch.tensor([0, 1, 2, 6]),
)
WEIGHTS = Weights(
    token=torch.tensor([0.5, 0.1, 0.2, 1.0]),
    sample=torch.tensor([1.0, 0.5, 0.25]),
    group_confidence=torch.tensor([0.3, 0.2, 0.6]),
    windowed=torch.tensor([True, False, False]),
    weakest=torch.tensor([[0, 1], [0, 1], [0, 1]]),
)


def by_row(weights=WEIGHTS, *, mean_over_samples=True):
    return sum_by_row(sum_by_sample(TOKENS, weights, mean_over_samples=mean_over_samples), TOKENS.row, 3)


def test_sums_by_hand():
    """Weighted nll per sample: 0.5 + 0.3 = 0.8, 0.4, 4. Means over samples: 1 * 0.8 / 2 + 0.5 * 0.4 = 0.6, and 1."""
    sums = by_row()[:, 0]
    row = dict(zip([*SUMS, "lowest"], sums[0].tolist(), strict=True))
    assert row == pytest.approx(
        {
            "samples": 2,
            "tokens": 3,
            "nll": 6,
            "objective": 0.6,
            "token_weight": 0.8,
            "sample_weight": 1.5,
            "sample_weight_squared": 1.25,
            "group_confidence": 0.5,
            "windowed": 1,
            "anchor_kl": 0,
            "lowest": 0.2,
        }
    )
    assert torch.equal(sums[1:2], zero_sums(1))
    assert total(sums, "objective") == pytest.approx(1.6)
    by_token = by_row(mean_over_samples=False)[:, 0]
    assert total(by_token, "objective") == pytest.approx(5.2)


def test_metrics_by_hand():
    """Over both rows as one step: 10 nats in 4 tokens; (1.75)^2 / 1.3125 = 7/3 effective samples."""
    step = pool_sums([by_row()], 0)[:, 0]
    assert step_metrics(step) == pytest.approx(
        {
            "nll": 2.5,
            "token_weight": 0.45,
            "sample_weight": 1.75 / 3,
            "group_confidence": 1.1 / 3,
            "group_confidence_min": 0.2,
            "effective_sample_size": 7 / 3,
            "windowed_fraction": 1 / 3,
        }
    )
    # two equal steps, and one without samples: the size stays that of a step
    assert step_metrics(torch.cat([step, step, zero_sums(1)])) == pytest.approx(step_metrics(step))
    assert step_metrics(zero_sums(1)) == {}


def test_all_weights_zero():
    weights = WEIGHTS._replace(sample=torch.zeros(3))
    assert step_metrics(pool_sums([by_row(weights)], 0)[:, 0])["effective_sample_size"] == 0


def test_metrics_by_value_by_hand():
    """Samples 0 and 2 have value "b", 1 has "a": "b" has 8 nats in 3 tokens, (1 + 0.25) / 2, (0.3 + 0.6) / 2."""
    sums = sum_by_sample(TOKENS, WEIGHTS, mean_over_samples=True)
    rows = sum_by_row(sums, TOKENS.row, 3, torch.tensor([1, 0, 1]), 2)
    assert rows.shape == (3, 3, len(SUMS) + 1)
    # A value that appears later, in an evaluation set, has no samples yet.
    found = all_metrics(pool_sums([rows], 3), ["a", "b", "c"])
    assert {name: value for name, value in found.items() if "/" in name} == pytest.approx(
        {
            "nll/a": 2,
            "sample_weight/a": 0.5,
            "group_confidence/a": 0.2,
            "nll/b": 8 / 3,
            "sample_weight/b": 0.625,
            "group_confidence/b": 0.45,
        }
    )
    assert found["nll"] == pytest.approx(2.5)
