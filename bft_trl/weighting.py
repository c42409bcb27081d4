"""The equations: confidence, token weights and sample weights, in plain torch.

All functions take the supervised tokens of a batch concatenated: `log_probs` (N,), and `lengths` (B,), the number of
tokens of each sample. The layout is the same for padded, packed and ragged batches; it needs no loop over samples and
no tensor larger than the batch.

    L_BFT = (1/B) sum_b s_b * (1/L_b) sum_t w_bt * (-log c_bt)        c = exp(log_probs)

Sources: v1 is "Aligning LLMs with Biomedical Knowledge using Balanced Fine-Tuning" (https://arxiv.org/abs/2511.21075v1)
and its reference code, v3 is the rule of PertMind, appendix A.2, eq. 20-24. No gradient flows through any weight.
"""

from typing import NamedTuple

import torch

# Added to the local confidence of the v3 token weight, in float32; not stated in the paper. In windows whose mean
# confidence is below it, the weights go to 0 instead of c / C_loc.
V3_EPSILON = 1e-8


# The entropy of 20 equally likely tokens is ln 20 = 2.996 nats, which EAFT (LLaMA-Factory's code) rounds to 3.
EAFT_SCALE = 3.0


class SupervisedTokens(NamedTuple):
    """The supervised tokens of a batch, see [`supervised_tokens`]; B samples have at least one."""

    log_probs: torch.Tensor  # (N,) nats, keeps its gradient
    lengths: torch.Tensor  # (B,) supervised tokens of each sample, at least 1
    row: torch.Tensor  # (B,) the row of the batch that holds the sample
    position: torch.Tensor  # (N,) index of each token in the flattened batch


class Weights(NamedTuple):
    """Token and sample weights, and the confidence of each sample; float32, without gradient."""

    token: torch.Tensor  # (N,) in [0, 1]
    sample: torch.Tensor  # (B,) in [0, 1]
    group_confidence: torch.Tensor  # (B,) in [0, 1], the minimum group confidence of each sample
    windowed: torch.Tensor  # (B,) bool, whether the sample is long enough for the window to act
    weakest: torch.Tensor  # (B, 2) the first window of that confidence, [first, end) in the sample's supervised tokens


def supervised_tokens(
    log_probs: torch.Tensor, mask: torch.Tensor, document: torch.Tensor | None = None
) -> SupervisedTokens:
    """Returns the supervised tokens of a batch in reading order.

    Args:
        log_probs: (B, S) log-probability of each target token in nats; values outside `mask` are ignored.
        mask: (B, S) bool, whether the target is supervised.
        document: (B, S) integers that do not decrease along a row; a change starts a new document. One document is one
            sample. None: every row is one sample.

    Returns:
        The tokens in reading order. Documents without a supervised token are not samples. An empty batch gives
        N = B = 0 and is connected to the graph, so that a fully masked micro-batch has a gradient of zero.
    """
    starts = sample_starts(mask, document).flatten()
    # The host waits for the device here, and nowhere else in this module.
    tokens, samples = torch.stack([mask.sum(), starts.sum()]).tolist()
    position = _true_positions(mask.flatten(), tokens)
    first = _true_positions(starts[position], samples)
    end = torch.cat([first[1:], first.new_full((min(samples, 1),), tokens)])
    row = position[first] // max(mask.shape[1], 1)
    return SupervisedTokens(log_probs.flatten()[position], end - first, row, position)


def sample_starts(mask: torch.Tensor, document: torch.Tensor | None = None) -> torch.Tensor:
    """Returns whether each token is the first supervised one of its sample, (B, S) bool.

    Args:
        mask, document: as in [`supervised_tokens`].
    """
    number = mask.long() if document is None else (document - document[:, :1] + 1) * mask
    before = torch.cat([number.new_zeros(len(number), 1), number.cummax(1).values], dim=1)[:, :-1]
    return number > before


def _true_positions(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Returns the positions of the `count` true values of `mask`, (N,) -> (count,): `nonzero` of a known size."""
    index = (mask.cumsum(0) - 1).masked_fill(~mask, count)  # `torch.where` would copy the number to the device
    return index.new_empty(count + 1).scatter_(0, index, torch.arange(len(mask), device=mask.device))[:count]


def window_means(values: torch.Tensor, first: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Returns the mean of `values[first:end]` for each pair of bounds, (N,) -> (N,).

    Sums are differences of one running sum in float64: exact to 1e-12 times the number of tokens. (A float32 running
    sum over a long packed row would lose the small confidences that this method is about.)
    """
    # MPS has no float64, and CUDA has no deterministic cumsum; the tensor is small, so the CPU is used.
    through_cpu = values.device.type == "mps" or torch.are_deterministic_algorithms_enabled()
    wide = values.cpu().double() if through_cpu else values.double()
    total = torch.cat([wide.new_zeros(1), wide.cumsum(0)]).to(first.device)
    return ((total[end] - total[first]) / (end - first)).to(values)


def minimum_group_confidence(
    log_probs: torch.Tensor, lengths: torch.Tensor, *, group_size: int, mean: str = "geometric"
) -> torch.Tensor:
    """Returns the v1 sample confidence: the lowest mean confidence over `group_size` consecutive supervised tokens.

    Args:
        log_probs: (N,) in nats.
        lengths: (B,) tokens per sample.
        group_size: window length g in supervised tokens, stride 1. A sample of up to g tokens is one window.
        mean: "geometric", exp(mean log c), as in the reference code, or "arithmetic", mean c, as in the paper's text.

    Returns:
        (B,) in [0, 1].
    """
    return _minimum_per_sample(_full_windows(log_probs, lengths, group_size=group_size, mean=mean)[0], lengths)


def local_confidence(log_probs: torch.Tensor, lengths: torch.Tensor, *, group_size: int) -> torch.Tensor:
    """Returns the v3 confidence of each token: the mean of c over `group_size` tokens centered on it.

    Args:
        log_probs: (N,) in nats.
        lengths: (B,) tokens per sample.
        group_size: window length g. The extra token of an even window lies on the left. The window is clipped at the
            sample's ends, and the sum is divided by the number of tokens in it.

    Returns:
        (N,) in [0, 1].
    """
    return _centered_windows(log_probs, lengths, group_size=group_size)[0]


@torch.no_grad()
def token_and_sample_weights(
    log_probs: torch.Tensor,
    lengths: torch.Tensor,
    *,
    loss_type: str = "bft",
    bft_version: str = "v1",
    token_weighting: bool = True,
    sample_weighting: bool = True,
    group_size: int = 256,
    confidence_mean: str = "geometric",
    confidence_gamma: float = 1.0,
    token_weight_power: float = 1.0,
    min_token_weight: float = 0.0,
    top_entropy: torch.Tensor | None = None,
) -> Weights:
    """Returns token weights w and sample weights s of an objective, and the confidence of each sample.

    | `loss_type` | w | s |
    |---|---|---|
    | "nll" | 1 | 1 |
    | "dft" | c ** a | 1 |
    | "eaft" | (H20 / 3) ** a with the entropy H20 of the 20 most likely tokens | 1 |
    | "bft", v1 | c ** a | 1 - p_conf ** gamma with the minimum group confidence p_conf |
    | "bft", v3 | clip(c / (C_loc + 1e-8), 0, 1) ** a with the local confidence C_loc | 1 - min C_loc |

    a is `token_weight_power`. The floor of "bft", `min_token_weight`, comes after it.

    Args:
        log_probs: (N,) in nats, any float dtype; the weights are computed in float32 or better.
        lengths: (B,) tokens per sample, sum N.
        loss_type and the other options: see `BFTConfig`. The confidence follows `bft_version` for every `loss_type`.
        top_entropy: (N,) entropy of the 20 most likely tokens, renormalized, in nats; for "eaft" only.
    """
    if loss_type == "eaft" and top_entropy is None:
        raise ValueError("`loss_type='eaft'` needs `top_entropy`, which the frozen LM head computes.")
    # Rounding can put a log-probability just above 0; a probability is at most 1.
    log_probs = log_probs.detach().to(torch.promote_types(log_probs.dtype, torch.float32)).clamp(max=0)
    probs = log_probs.exp()
    if bft_version == "v1":
        windows = _full_windows(log_probs, lengths, group_size=group_size, mean=confidence_mean)
        token, windowed = probs, lengths > group_size
    elif bft_version == "v3":
        windows = _centered_windows(log_probs, lengths, group_size=group_size)
        # The first token's window ends after (g + 1) // 2 tokens: from there on some window is not the whole sample.
        token, windowed = (probs / (windows[0] + V3_EPSILON)).clamp(0, 1), lengths > (group_size + 1) // 2
    else:
        raise ValueError(f"`bft_version={bft_version!r}` is not known: choose 'v1' or 'v3'.")
    confidence = _minimum_per_sample(windows[0], lengths)
    sample = 1 - (confidence**confidence_gamma if bft_version == "v1" else confidence)
    token, sample = (token**token_weight_power).clamp(min=min_token_weight), sample.clamp(0, 1)
    if loss_type == "dft":
        token = probs**token_weight_power
    if loss_type == "eaft" and top_entropy is not None:
        token = (top_entropy.detach() / EAFT_SCALE) ** token_weight_power
    if loss_type == "nll" or (loss_type == "bft" and not token_weighting):
        token = torch.ones_like(token)
    if loss_type != "bft" or not sample_weighting:
        sample = torch.ones_like(sample)
    return Weights(token, sample, confidence, windowed, _first_window(windows, confidence, lengths))


# The confidence of the window of each token, and its bounds in the row: three (N,) tensors.
_Windows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _full_windows(log_probs: torch.Tensor, lengths: torch.Tensor, *, group_size: int, mean: str) -> _Windows:
    """The v1 windows: `group_size` tokens from each one on."""
    first, end = _sample_bounds(lengths, len(log_probs))
    position = torch.arange(len(log_probs), device=log_probs.device)
    # Windows that would end after the sample are moved to its end, so that all windows are full.
    left = torch.maximum(torch.minimum(position, end - group_size), first)
    right = torch.minimum(left + group_size, end)
    if mean == "geometric":
        return window_means(log_probs, left, right).exp(), left, right
    if mean == "arithmetic":
        return window_means(log_probs.exp(), left, right).clamp(min=0), left, right
    raise ValueError(f"`mean={mean!r}` is not known: choose 'geometric' or 'arithmetic'.")


def _centered_windows(log_probs: torch.Tensor, lengths: torch.Tensor, *, group_size: int) -> _Windows:
    """The v3 windows: `group_size` tokens centered on each one."""
    first, end = _sample_bounds(lengths, len(log_probs))
    position = torch.arange(len(log_probs), device=log_probs.device)
    left = torch.maximum(position - group_size // 2, first)
    right = torch.minimum(position + (group_size + 1) // 2, end)
    # A running sum may leave -1e-12 where every c is 0.
    return window_means(log_probs.exp(), left, right).clamp(min=0), left, right


def _first_window(windows: _Windows, minimum: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(B, 2) bounds, from the sample's start, of its first window whose confidence is the minimum."""
    values, left, right = windows
    position = torch.arange(len(values), device=values.device)
    # NaN equals nothing: then the last window is taken, and the check of the loss raises.
    others = values != minimum.repeat_interleave(lengths, output_size=len(values))
    found = position.masked_fill(others, len(values) - 1)
    at = _minimum_per_sample(found, lengths)
    start = lengths.cumsum(0) - lengths
    return torch.stack([left[at] - start, right[at] - start], dim=1).clamp(min=0)


def _sample_bounds(lengths: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First position of each of the `size` tokens' sample, and the one behind its last: two (N,) tensors."""
    end = lengths.cumsum(0).repeat_interleave(lengths, output_size=size)
    return end - lengths.repeat_interleave(lengths, output_size=size), end


def _minimum_per_sample(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(N,) -> (B,)"""
    sample = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=len(values))
    return values.new_zeros(len(lengths)).scatter_reduce(0, sample, values, "amin", include_self=False)
