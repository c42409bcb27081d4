import pytest
import torch

from bft_trl.training.metrics import SUMS, all_figures, figures, no_samples, pooled, sums_by_row, sums_by_sample, total
from bft_trl.weighting import SupervisedTokens, Weights

# Row 0 holds samples of 2 and 1 tokens, row 2 one of 1 token, row 1 none.
TOKENS = SupervisedTokens(torch.tensor([-1.0, -3.0, -2.0, -4.0]), torch.tensor([2, 1, 1]), torch.tensor([0, 0, 2]))
WEIGHTS = Weights(
    token=torch.tensor([0.5, 0.1, 0.2, 1.0]),
    sample=torch.tensor([1.0, 0.5, 0.25]),
    group_confidence=torch.tensor([0.3, 0.2, 0.6]),
    windowed=torch.tensor([True, False, False]),
    weakest=torch.tensor([[0, 1], [0, 1], [0, 1]]),
)


def by_row(weights=WEIGHTS, *, mean_over_samples=True):
    return sums_by_row(sums_by_sample(TOKENS, weights, mean_over_samples=mean_over_samples), TOKENS.row, 3)[:, 0]


def test_sums_by_hand():
    """Weighted nll per sample: 0.5 + 0.3 = 0.8, 0.4, 4. Means over samples: 1 * 0.8 / 2 + 0.5 * 0.4 = 0.6, and 1."""
    sums = by_row()
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
            "lowest": 0.2,
        }
    )
    assert torch.equal(sums[1:2], no_samples())
    assert total(sums, "objective") == pytest.approx(1.6)
    by_token = by_row(mean_over_samples=False)
    assert total(by_token, "objective") == pytest.approx(5.2)


def test_figures_by_hand():
    """Over both rows as one step: 10 nats in 4 tokens; (1.75)^2 / 1.3125 = 7/3 effective samples."""
    step = pooled(by_row())
    assert figures(step) == pytest.approx(
        {
            "nll": 2.5,
            "token_weight": 0.45,
            "sample_weight": 1.75 / 3,
            "group_confidence": 1.1 / 3,
            "group_confidence_min": 0.2,
            "effective_sample_size": 7 / 3,
            "windowed_share": 1 / 3,
        }
    )
    # two equal steps, and one without samples: the size stays that of a step
    assert figures(torch.cat([step, step, no_samples()])) == pytest.approx(figures(step))
    assert figures(no_samples()) == {}


def test_all_weights_zero():
    weights = WEIGHTS._replace(sample=torch.zeros(3))
    assert figures(pooled(by_row(weights)))["effective_sample_size"] == 0


def test_groups_by_hand():
    """Samples 0 and 2 are of group "b", 1 of none: "b" has 8 nats in 3 tokens, (1 + 0.25) / 2, (0.3 + 0.6) / 2."""
    sums = sums_by_sample(TOKENS, WEIGHTS, mean_over_samples=True)
    steps = sums_by_row(sums, TOKENS.row, 3, torch.tensor([1, -1, 1]), 2)
    assert steps.shape == (3, 3, len(SUMS) + 1)
    found = all_figures(pooled(steps), ["a", "b"])
    assert {name: value for name, value in found.items() if "/" in name} == pytest.approx(
        {"nll/b": 8 / 3, "sample_weight/b": 0.625, "group_confidence/b": 0.45}
    )
    assert found["nll"] == pytest.approx(2.5)
