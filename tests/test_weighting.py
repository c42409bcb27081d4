import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from bft_trl.weighting import (
    local_confidence,
    minimum_group_confidence,
    supervised_tokens,
    token_and_sample_weights,
    window_means,
)

RULES = [
    {"version": "v1"},
    {"version": "v1", "mean": "arithmetic"},
    {"version": "v1", "gamma": 2.5, "floor": 0.1},
    {"version": "v3"},
    {"version": "v3", "floor": 0.3},
    {"version": "v1", "power": 0.5, "floor": 0.1},
    {"version": "v3", "power": 0.25},
]


def bft(log_probs, lengths, *, version="v1", group_size=256, mean="geometric", gamma=1.0, power=1.0, floor=0.0):
    return token_and_sample_weights(
        log_probs,
        lengths,
        bft_version=version,
        group_size=group_size,
        confidence_mean=mean,
        confidence_gamma=gamma,
        token_weight_power=power,
        min_token_weight=floor,
    )


def log(*probs):
    return torch.tensor(probs).log()


def test_v1_by_hand():
    """c = 1/2, 1/4, 1/8 and g = 2: geometric windows sqrt(1/8), sqrt(1/32); arithmetic 3/8, 3/16."""
    c, lengths = log(0.5, 0.25, 0.125), torch.tensor([3])
    weights = bft(c, lengths, group_size=2)
    torch.testing.assert_close(weights.token, torch.tensor([0.5, 0.25, 0.125]))
    torch.testing.assert_close(weights.group_confidence, torch.tensor([32**-0.5]))
    torch.testing.assert_close(weights.sample, torch.tensor([1 - 32**-0.5]))
    assert weights.windowed.tolist() == [True]
    arithmetic = minimum_group_confidence(c, lengths, group_size=2, mean="arithmetic")
    torch.testing.assert_close(arithmetic, torch.tensor([3 / 16]))
    # gamma 2: 1 - 1/32
    torch.testing.assert_close(bft(c, lengths, group_size=2, gamma=2.0).sample, torch.tensor([1 - 1 / 32]))


def test_v1_short_sample_is_one_window():
    """Two samples, (1/2, 1/8) and (1/4): with g = 256 geometric means 1/4 and 1/4, no window acts."""
    weights = bft(log(0.5, 0.125, 0.25), torch.tensor([2, 1]))
    torch.testing.assert_close(weights.group_confidence, torch.tensor([0.25, 0.25]))
    assert weights.windowed.tolist() == [False, False]


def test_v3_by_hand():
    """c = 1/2, 1/4, 1/8. An even window g = 2 looks one to the left: C_loc = 1/2, 3/8, 3/16, so w = 1, 2/3, 2/3.

    An odd one, g = 3, looks one to each side: C_loc = 3/8, 7/24, 3/16, so w = 1 (clipped 4/3), 6/7, 2/3.
    """
    c, lengths = log(0.5, 0.25, 0.125), torch.tensor([3])
    torch.testing.assert_close(local_confidence(c, lengths, group_size=2), torch.tensor([1 / 2, 3 / 8, 3 / 16]))
    even = bft(c, lengths, version="v3", group_size=2)
    torch.testing.assert_close(even.token, torch.tensor([1, 2 / 3, 2 / 3]))
    torch.testing.assert_close(even.sample, torch.tensor([1 - 3 / 16]))
    odd = bft(c, lengths, version="v3", group_size=3)
    torch.testing.assert_close(odd.token, torch.tensor([1, 6 / 7, 2 / 3]))


@pytest.mark.parametrize(("group_size", "longest_whole"), [(1, 1), (2, 1), (3, 2), (4, 2), (7, 4), (8, 4)])
def test_v3_window_acts_from_half_its_length(group_size, longest_whole):
    """The first token's window covers itself and (g - 1) // 2 tokens to the right."""
    for length in (longest_whole, longest_whole + 1):
        weights = bft(torch.full((length,), -1.0), torch.tensor([length]), version="v3", group_size=group_size)
        assert weights.windowed.tolist() == [length > longest_whole]


def test_min_token_weight():
    weights = bft(log(0.5, 0.001), torch.tensor([2]), floor=0.1)
    torch.testing.assert_close(weights.token, torch.tensor([0.5, 0.1]))


def test_power_comes_before_the_floor_and_leaves_the_sample_weight():
    """c = 1/4, 1/100: c^0.5 = 1/2, 1/10, and the floor 0.2 acts on the second; p_conf = sqrt(1/400) = 1/20."""
    weights = bft(log(0.25, 0.01), torch.tensor([2]), power=0.5, floor=0.2)
    torch.testing.assert_close(weights.token, torch.tensor([0.5, 0.2]))
    torch.testing.assert_close(weights.sample, torch.tensor([0.95]))


def test_power_of_v3_by_hand():
    """c = 1/2, 1/4, 1/8 and g = 3: w = 1, 6/7, 2/3 (see above), with a = 2 their squares."""
    squared = bft(log(0.5, 0.25, 0.125), torch.tensor([3]), version="v3", group_size=3, power=2.0)
    torch.testing.assert_close(squared.token, torch.tensor([1, 36 / 49, 4 / 9]))


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_power_zero_is_no_token_weighting_also_at_probability_zero(version):
    weights = bft(torch.tensor([-1.0, -200.0]), torch.tensor([2]), version=version, power=0.0)
    assert weights.token.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("group_size", [1, 4, 5, 31])
def test_values_and_gradients_equal_the_loop_reference(rule, group_size):
    """Odd shapes, with samples of g - 1, g, g + 1 and 1 supervised tokens, gaps in the mask, and an empty row."""
    torch.manual_seed(group_size)
    vocabulary, longest = 47, 2 * group_size + 5
    wanted = sorted({max(group_size - 1, 1), group_size, group_size + 1, 1, longest - 2})
    labels = torch.full((len(wanted) + 1, longest), -100)
    for row, count in enumerate(wanted):
        places = torch.randperm(longest - 1)[:count] + 1
        labels[row, places] = torch.randint(vocabulary, (count,))
    logits = (3 * torch.randn(*labels.shape, vocabulary)).requires_grad_()
    expected = reference.bft_loss(logits, labels, group_size=group_size, **rule)
    (expected_gradient,) = torch.autograd.grad(expected, logits)

    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:, None].clamp(min=0)).squeeze(-1)
    tokens = supervised_tokens(log_probs, labels[:, 1:] != -100)
    weights = bft(tokens.log_probs, tokens.lengths, group_size=group_size, **rule)
    scale = weights.token * (weights.sample / tokens.lengths).repeat_interleave(tokens.lengths)
    loss = -(scale * tokens.log_probs).sum() / len(tokens.lengths)
    (gradient,) = torch.autograd.grad(loss, logits)

    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, expected_gradient.to(gradient), rtol=1e-4, atol=1e-7)


@pytest.mark.property
@given(
    samples=st.lists(st.lists(st.floats(-18, 0, width=32), min_size=1, max_size=23), min_size=1, max_size=7),
    group_size=st.integers(1, 30),
    rule=st.sampled_from(RULES),
)
def test_property_equals_the_reference_and_stays_in_range(samples, group_size, rule):
    log_probs = torch.tensor([x for sample in samples for x in sample])
    lengths = torch.tensor([len(sample) for sample in samples])
    weights = bft(log_probs, lengths, group_size=group_size, **rule)
    assert ((weights.token >= 0) & (weights.token <= 1)).all()
    assert ((weights.sample >= 0) & (weights.sample <= 1)).all()
    for sample, token, s, p, acts in zip(
        samples,
        weights.token.split(lengths.tolist()),
        weights.sample,
        weights.group_confidence,
        weights.windowed,
        strict=True,
    ):
        expected = reference.weights(torch.tensor(sample).double().exp().tolist(), group_size=group_size, **rule)
        torch.testing.assert_close(token.double(), torch.tensor(expected[0]).double(), rtol=2e-4, atol=1e-6)
        torch.testing.assert_close(s.item(), expected[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(p.item(), expected[2], rtol=1e-4, atol=1e-9)
        assert bool(acts) == expected[3]


def test_packed_documents_are_samples():
    """One row with documents 0 0 0 | 1 1 | 2 and an unsupervised prompt in the first equals three rows."""
    log_probs = torch.tensor([[-9.0, -1.0, -2.0, -3.0, -0.5, -4.0]])
    mask = torch.tensor([[False, True, True, True, True, True]])
    tokens = supervised_tokens(log_probs, mask, torch.tensor([[0, 0, 0, 1, 1, 2]]))
    assert tokens.lengths.tolist() == [2, 2, 1]
    assert tokens.log_probs.tolist() == [-1.0, -2.0, -3.0, -0.5, -4.0]
    assert tokens.row.tolist() == [0, 0, 0]


def test_same_document_number_in_two_rows_is_two_samples():
    tokens = supervised_tokens(
        torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.long)
    )
    assert tokens.lengths.tolist() == [3, 3]
    assert tokens.row.tolist() == [0, 1]


def test_nothing_supervised_is_no_sample_and_has_a_gradient_of_zero():
    log_probs = torch.zeros(3, 5, requires_grad=True)
    tokens = supervised_tokens(log_probs, torch.zeros(3, 5, dtype=torch.bool))
    weights = bft(tokens.log_probs, tokens.lengths)
    assert len(tokens.lengths) == len(weights.sample) == 0
    (weights.token * tokens.log_probs).sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.abs().sum() == 0


def test_no_gradient_through_weights():
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert not any(part.requires_grad for part in bft(log_probs, torch.tensor([2])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_are_float32_or_better(dtype):
    weights = bft(torch.tensor([-1.0, -3.0], dtype=dtype), torch.tensor([2]))
    assert weights.token.dtype == weights.sample.dtype == torch.promote_types(dtype, torch.float32)
    # -1 and -3 are exact in every dtype: their mean is -2
    torch.testing.assert_close(weights.group_confidence.item(), torch.tensor(-2.0).exp().item(), rtol=1e-6, atol=0)


def test_rounding_above_probability_one():
    weights = bft(torch.tensor([1e-6, 2e-7]), torch.tensor([2]))
    assert weights.token.tolist() == [1.0, 1.0]
    assert weights.sample.tolist() == [0.0]


def test_small_confidences_survive_a_long_row():
    """100,000 tokens with c ~ 1, then a window of 256 with c = 1e-6: a float32 running sum would give 0 or 0.004."""
    log_probs = torch.cat([torch.full((100_000,), -1e-3), torch.full((256,), -13.8155)])
    confidence = minimum_group_confidence(log_probs, torch.tensor([len(log_probs)]), group_size=256, mean="arithmetic")
    torch.testing.assert_close(confidence.item(), 1e-6, rtol=1e-4, atol=0)


def test_misspelt_rules():
    with pytest.raises(ValueError, match="`bft_version='V1'`"):
        bft(torch.zeros(2), torch.tensor([2]), version="V1")
    with pytest.raises(ValueError, match="`mean='geom'`"):
        bft(torch.zeros(2), torch.tensor([2]), mean="geom")


def test_window_means_by_hand():
    means = window_means(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 1]), torch.tensor([1, 3, 3]))
    assert means.tolist() == [1.0, 3.0, 4.0]
