"""Per-token log-probabilities of a frozen LM head, without logits.

If the head is not trained, as in every LoRA or QLoRA run, the gradient of a token's log-probability with respect to
its hidden state is known in the forward pass:

    d log c_t / d h_t = scale * (W[y_t] - sum_v p_v W[v])        p = softmax(scale * W h_t + bias)

It is computed in chunks of supervised tokens and kept as one (N, H) tensor. The backward pass multiplies it by the
gradient of each log-probability, which contains the weights of BFT. This takes two matrix products; a fused head that
recomputes takes three. No (N, V) tensor is kept. The divergence from a reference model with the same head, and its
gradient scale * sum_v (p_v - q_v) W[v], come from the same chunks, with two products more.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

# Memory for the logits of one chunk. Each chunk reads the whole weight, so on a GPU it has the size of TRL's tile.
CHUNK_BYTES = {"cpu": 64 * 2**20, "default": 256 * 2**20}
# Keeps p - onehot in the range of float16, whose smallest number is 6e-8.
_FLOAT16_SCALE = 1024
# Number of most likely tokens whose entropy weighs a token in EAFT.
TOP = 20


class TokenScores(NamedTuple):
    """Scores of N tokens from [`frozen_log_probs`], in float32 (float64 for float64 input)."""

    log_probs: torch.Tensor  # (N,) log-probability of the target in nats, at most 0 up to rounding; has a gradient
    entropy: torch.Tensor  # (N,) entropy of the prediction in nats
    is_top1: torch.Tensor  # (N,) bool, whether the target is the (first) most likely token
    top_entropy: torch.Tensor | None = None  # (N,) entropy in nats of the `TOP` most likely tokens, renormalized
    kl: torch.Tensor | None = None  # (N,) KL(reference || prediction) in nats; has a gradient


def frozen_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    logit_scale: float = 1.0,
    chunk_bytes: int | None = None,
    top_entropy: bool = False,
    reference: torch.Tensor | None = None,
) -> TokenScores:
    """Returns the scores of `targets` under softmax(logit_scale * (hidden @ weight.T + bias)).

    Only `log_probs` and `kl` have a gradient, only with respect to `hidden`, and it can be computed once. Matrix
    products are in the dtype of `hidden` (under autocast, in autocast's), everything else in float32 or better.

    Args:
        hidden: (N, H) hidden states; N = 0 gives empty scores that are connected to the graph.
        weight: (V, H), frozen.
        targets: (N,) token ids in [0, V).
        bias: (V,), frozen.
        logit_scale: factor of the logits.
        chunk_bytes: bound on the memory for logits, by default `CHUNK_BYTES`. It changes results by rounding only.
        top_entropy: also compute the entropy of the `TOP` most likely tokens.
        reference: (N, H) hidden states of the reference model under the same head: also compute `kl` with its
            gradient, which takes two products more.

    Memory: one chunk, the gradients (N, H), and a copy of the weight if its dtype is not that of the products.

    Raises:
        ValueError: if the head requires a gradient, for shapes that do not match, and for ids outside the vocabulary.
    """
    if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        raise ValueError(
            "The LM head is trained, but `lm_head_backend='frozen'` would give it no gradient. Freeze it, or set "
            "`lm_head_backend='trl'`."
        )
    if reference is not None and reference.shape != hidden.shape:
        raise ValueError(
            f"`reference` {tuple(reference.shape)} and `hidden` {tuple(hidden.shape)} must have one shape."
        )
    if hidden.shape[:-1] != targets.shape or targets.dim() != 1 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"`hidden` {tuple(hidden.shape)}, `weight` {tuple(weight.shape)} and `targets` {tuple(targets.shape)} "
            "must have the shapes (N, H), (V, H) and (N,)."
        )
    low, high = torch.stack(targets.aminmax()).tolist() if len(targets) else (0, 0)  # one read from the device
    if not 0 <= low <= high < len(weight):
        raise ValueError(
            f"The labels hold ids from {low} to {high}, but the model's vocabulary has {len(weight)}. Use the "
            "tokenizer of this model, and -100 for tokens that are not supervised."
        )
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["default"])
    if chunk_bytes < 1:
        raise ValueError(f"`chunk_bytes={chunk_bytes}` must be 1 or more; a chunk has at least one token.")
    options = (logit_scale, chunk_bytes, top_entropy, reference)
    return TokenScores(*_FrozenLogProbs.apply(hidden, weight, targets, bias, *options))


class _FrozenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        logit_scale: float,
        chunk_bytes: int,
        top_entropy: bool,
        reference: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wide = torch.promote_types(dtype, torch.float32)
        head = _Head(weight.to(dtype), None if bias is None else bias.to(wide), logit_scale)
        anchored = reference is not None
        scores = _empty_scores(hidden, wide, top_entropy, anchored)
        kept = wide if hidden.dtype == torch.float16 else hidden.dtype
        number = 1 + anchored if ctx.needs_input_grad[0] else 0
        gradients = [torch.empty_like(hidden, dtype=kept) for _ in range(number)]
        buffers = _chunk_buffers(len(hidden), len(weight), dtype, hidden.device, chunk_bytes, extra=2 * anchored)
        rows = len(buffers[0])
        with torch.autocast(device, enabled=False):
            for first in range(0, len(hidden), rows):
                chunk = slice(first, first + rows)
                states = [part[chunk].to(dtype) for part in (hidden, reference) if part is not None]
                part = [buffer[: len(states[0])] for buffer in buffers]
                found = _score_chunk(head, states, targets[chunk, None], part, top_entropy, bool(gradients))
                for result, values in zip((*scores, *gradients), found, strict=False):
                    if result is not None and values is not None:
                        result[chunk] = values
        ctx.mark_non_differentiable(*(part for part in scores[1:4] if part is not None))
        ctx.set_materialize_grads(False)
        ctx.dtype = hidden.dtype
        ctx.save_for_backward(*gradients)
        return tuple(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        parts = [
            gradient * grad[:, None]
            for gradient, grad in zip(ctx.saved_tensors, (grads[0], grads[4]), strict=False)
            if grad is not None
        ]
        return (sum(parts[1:], parts[0]).to(ctx.dtype) if parts else None), *(None,) * 7


class _Head(NamedTuple):
    weight: torch.Tensor  # (V, H), in the dtype of the products
    bias: torch.Tensor | None  # (V,), float32 or better
    scale: float

    def project(self, states: torch.Tensor, product: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the logits to `out`, (rows, V) in float32 or better; `product` has the dtype of the products."""
        torch.mm(states, self.weight.t(), out=product)
        if out.dtype != product.dtype:
            out.copy_(product)
        if self.bias is not None:
            out += self.bias
        if self.scale != 1:
            out *= self.scale


def _score_chunk(
    head: _Head,
    states: list[torch.Tensor],
    target: torch.Tensor,
    buffers: list[torch.Tensor],
    top_entropy: bool,
    gradient: bool,
) -> list[torch.Tensor | None]:
    """Returns the scores of a chunk as in [`TokenScores`], then the gradients of `log_probs` and of `kl`.

    Args:
        head: the LM head.
        states: (rows, H) hidden states of the model and, for `kl`, of the reference.
        target: (rows, 1) token ids.
        buffers: of [`_chunk_buffers`], cut to the rows of the chunk.
        top_entropy, gradient: what to compute besides.
    """
    operand, probs, *more = buffers
    head.project(states[0], operand, probs)
    entropy_of_top = _top_entropy(probs) if top_entropy else None
    kl = ascent = kl_gradient = None
    if more:
        of_reference, difference = more
        head.project(states[1], of_reference if operand.dtype == probs.dtype else operand, of_reference)
        kl = _kl_to(of_reference, probs, difference)
    log_probs, is_top1 = _softmax(probs, target)
    if not gradient:
        entropy = torch.special.entr(probs, out=probs).sum(-1)
        return [log_probs, entropy, is_top1, entropy_of_top, kl]
    if more:
        torch.sub(probs, of_reference, out=difference)
        kl_gradient = head.scale * _times(difference, operand, head.weight)
    ascent = head.scale * _ascent(probs, operand, target, head.weight)
    # H = -log c + sum_v (onehot - p)_v z_v, and that sum is the gradient times the hidden state.
    entropy = (ascent * states[0]).sum(-1) - log_probs
    if head.bias is not None:
        entropy -= head.scale * (probs @ head.bias)
    return [log_probs, entropy, is_top1, entropy_of_top, kl, ascent, kl_gradient]


def _empty_scores(hidden: torch.Tensor, dtype: torch.dtype, top_entropy: bool, kl: bool) -> TokenScores:
    def empty(wanted: bool, dtype: torch.dtype = dtype) -> Any:
        return torch.empty(len(hidden), dtype=dtype, device=hidden.device) if wanted else None

    return TokenScores(empty(True), empty(True), empty(True, torch.bool), empty(top_entropy), empty(kl))


def _chunk_buffers(
    size: int, vocabulary: int, dtype: torch.dtype, device: torch.device, chunk_bytes: int, *, extra: int
) -> list[torch.Tensor]:
    """Returns (rows, V) buffers: operands of the products, values in float32 or better, and `extra` more of these."""
    wide = torch.promote_types(dtype, torch.float32)
    row_bytes = vocabulary * (dtype.itemsize + wide.itemsize * (extra + (wide != dtype)))
    rows = max(1, min(size, chunk_bytes // row_bytes))
    operand = torch.empty(rows, vocabulary, dtype=dtype, device=device)
    number = extra + (wide != dtype)
    buffers = [torch.empty(rows, vocabulary, dtype=wide, device=device) for _ in range(number)]
    return [operand, *buffers] if wide != dtype else [operand, operand, *buffers]


def _top_entropy(logits: torch.Tensor) -> torch.Tensor:
    """(rows, V) -> (rows,)"""
    top = logits.topk(min(TOP, logits.shape[1]), sorted=False).values.softmax(-1)
    return torch.special.entr(top).sum(-1)


def _kl_to(reference: torch.Tensor, logits: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Returns KL(softmax(reference) || softmax(logits)), (rows,); `reference` becomes probabilities."""
    torch.sub(reference, logits, out=buffer)
    normalizer = logits.logsumexp(-1) - reference.logsumexp(-1)
    torch.softmax(reference, -1, out=reference)
    return (torch.linalg.vecdot(reference, buffer) + normalizer).clamp(min=0)


def _softmax(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log-probabilities of the targets (N, 1) and whether they are top-1; `logits` become probabilities."""
    top, index = logits.max(-1, keepdim=True)  # the first of equals, as argmax
    target_logits = logits.gather(1, target)
    probs = torch.softmax(logits, -1, out=logits)
    # The greatest probability is 1 / sum exp(logits - top).
    log_probs = target_logits - top + probs.gather(1, index).log()
    return log_probs.squeeze(1), (index == target).squeeze(1)


def _ascent(probs: torch.Tensor, operand: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns W[y] - sum_v p_v W[v], (N, H), in the dtype of `probs`; overwrites `probs` and `operand`."""
    # The difference is taken before rounding, so that nothing cancels where p is close to 1.
    probs.scatter_add_(1, target, torch.full_like(target, -1, dtype=probs.dtype))
    return -_times(probs, operand, weight)


def _times(values: torch.Tensor, operand: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns values @ weight, (rows, H), in the dtype of `values`; overwrites `operand` where that is another one."""
    if operand.dtype == values.dtype:
        return values @ weight
    scale = _FLOAT16_SCALE if operand.dtype == torch.float16 else 1
    torch.mul(values, scale, out=operand)
    if operand.is_cuda and torch.version.hip is None:  # without rounding the product to half precision
        return torch.mm(operand, weight, out_dtype=torch.float32) / scale
    return (operand @ weight).to(values.dtype) / scale
