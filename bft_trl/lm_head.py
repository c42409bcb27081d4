"""Per-token log-probabilities of a frozen LM head, without logits.

If the head is not trained, as in every LoRA or QLoRA run, the gradient of a token's log-probability with respect to
its hidden state is known in the forward pass:

    d log c_t / d h_t = scale * (W[y_t] - sum_v p_v W[v])        p = softmax(scale * W h_t + bias)

It is computed in chunks of supervised tokens and kept as one (N, H) tensor. The backward pass multiplies it by the
gradient of each log-probability, which contains the weights of BFT. This takes two matrix products; a fused head that
recomputes takes three. No (N, V) tensor is kept.
"""

import functools
from types import MethodType
from typing import Any, NamedTuple

import torch
from accelerate.logging import get_logger
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

logger = get_logger(__name__)

# Memory for the logits of one chunk. Each chunk reads the whole weight, so on a GPU it has the size of TRL's tile.
CHUNK_BYTES = {"cpu": 64 * 2**20, "default": 256 * 2**20}
# Keeps p - onehot in the range of float16, whose smallest number is 6e-8.
_FLOAT16_SCALE = 1024


class TokenScores(NamedTuple):
    """Scores of N tokens from [`frozen_log_probs`], in float32 (float64 for float64 input)."""

    log_probs: torch.Tensor  # (N,) log-probability of the target in nats, at most 0 up to rounding; has a gradient
    entropy: torch.Tensor  # (N,) entropy of the prediction in nats
    is_top1: torch.Tensor  # (N,) bool, whether the target is the (first) most likely token


def frozen_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    logit_scale: float = 1.0,
    chunk_bytes: int | None = None,
) -> TokenScores:
    """Returns the scores of `targets` under softmax(logit_scale * (hidden @ weight.T + bias)).

    Only `log_probs` has a gradient, only with respect to `hidden`, and it can be computed once. Matrix products are in
    the dtype of `hidden` (under autocast, in autocast's), everything else in float32 or better.

    Args:
        hidden: (N, H) hidden states; N = 0 gives empty scores that are connected to the graph.
        weight: (V, H), frozen.
        targets: (N,) token ids in [0, V).
        bias: (V,), frozen.
        logit_scale: factor of the logits.
        chunk_bytes: bound on the memory for logits, by default `CHUNK_BYTES`. It changes results by rounding only.

    Memory: one chunk, the gradient (N, H), and a copy of the weight if its dtype is not that of the products.

    Raises:
        ValueError: if the head requires a gradient, for shapes that do not match, and for ids outside the vocabulary.
    """
    if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        raise ValueError(
            "The LM head is trained, but `lm_head_backend='frozen'` would give it no gradient. Freeze it, or set "
            "`lm_head_backend='trl'`."
        )
    if hidden.shape[:-1] != targets.shape or targets.dim() != 1 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"`hidden` {tuple(hidden.shape)}, `weight` {tuple(weight.shape)} and `targets` {tuple(targets.shape)} "
            "must have the shapes (N, H), (V, H) and (N,)."
        )
    if len(targets) and not 0 <= targets.min() <= targets.max() < len(weight):
        raise ValueError(
            f"The labels hold ids from {targets.min()} to {targets.max()}, but the model's vocabulary has "
            f"{len(weight)}. Use the tokenizer of this model, and -100 for tokens that are not supervised."
        )
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["default"])
    if chunk_bytes < 1:
        raise ValueError(f"`chunk_bytes={chunk_bytes}` must be 1 or more; a chunk has at least one token.")
    return TokenScores(*_FrozenLogProbs.apply(hidden, weight, targets, bias, logit_scale, chunk_bytes))


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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wide = torch.promote_types(dtype, torch.float32)
        size, vocabulary = len(hidden), len(weight)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(wide)
        log_probs, entropy = (torch.empty(size, dtype=wide, device=hidden.device) for _ in range(2))
        is_top1 = torch.empty(size, dtype=torch.bool, device=hidden.device)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(hidden, dtype=wide if hidden.dtype == torch.float16 else None)
        operand, buffer = _chunk_buffers(size, vocabulary, dtype, hidden.device, chunk_bytes)
        rows = len(operand)
        with torch.autocast(device, enabled=False):
            for first in range(0, size, rows):
                chunk = slice(first, first + rows)
                states, target = hidden[chunk].to(dtype), targets[chunk, None]
                logits, probs = operand[: len(states)], buffer[: len(states)]
                torch.mm(states, weight.t(), out=logits)
                if wide != dtype:
                    probs.copy_(logits)
                if bias is not None:
                    probs += bias
                if logit_scale != 1:
                    probs *= logit_scale
                log_probs[chunk], is_top1[chunk] = _softmax(probs, target)
                if gradient is None:
                    entropy[chunk] = torch.special.entr(probs, out=probs).sum(-1)
                    continue
                ascent = logit_scale * _ascent(probs, logits, target, weight)
                gradient[chunk] = ascent
                # H = -log c + sum_v (onehot - p)_v z_v, and that sum is the gradient times the hidden state.
                entropy[chunk] = (ascent * states).sum(-1) - log_probs[chunk]
                if bias is not None:
                    entropy[chunk] -= logit_scale * (probs @ bias)
        ctx.mark_non_differentiable(entropy, is_top1)
        ctx.set_materialize_grads(False)
        ctx.dtype = hidden.dtype
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return log_probs, entropy, is_top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        if grad_log_probs is None:
            return (None,) * 6
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_log_probs[:, None]).to(ctx.dtype), *(None,) * 5


def _chunk_buffers(
    size: int, vocabulary: int, dtype: torch.dtype, device: torch.device, chunk_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (rows, V) buffers: operands of the products, and values between them in float32 or better."""
    wide = torch.promote_types(dtype, torch.float32)
    row_bytes = vocabulary * (dtype.itemsize + (wide.itemsize if wide != dtype else 0))
    rows = max(1, min(size, chunk_bytes // row_bytes))
    operand = torch.empty(rows, vocabulary, dtype=dtype, device=device)
    return operand, operand if wide == dtype else torch.empty(rows, vocabulary, dtype=wide, device=device)


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
    if operand.dtype == probs.dtype:
        return -(probs @ weight)
    scale = _FLOAT16_SCALE if operand.dtype == torch.float16 else 1
    torch.mul(probs, scale, out=operand)
    if operand.is_cuda and torch.version.hip is None:  # without rounding the product to half precision
        return torch.mm(operand, weight, out_dtype=torch.float32) / -scale
    return (operand @ weight).to(probs.dtype) / -scale


# --- in a model ------------------------------------------------------------------------------------------------------


def choose_lm_head(model: Any, backend: str, *, has_aux_loss: bool) -> str:
    """Adds the frozen LM head to `model` if `backend` asks for it and it applies. Returns "frozen" or "trl".

    Args:
        model: causal LM with TRL's fused head, without its PEFT wrapper.
        backend: "auto", "frozen" or "trl", see `BFTConfig.lm_head_backend`.
        has_aux_loss: whether the loss includes the auxiliary loss of a mixture of experts.

    Raises ValueError if `backend="frozen"` does not apply, or if TRL's head cannot read the weight.
    """
    head = model.get_output_embeddings()
    if not (hasattr(head, "weight") and hasattr(head, "bias")):
        raise ValueError(
            f"The LM head is a `{type(head).__name__}`, whose weight and bias TRL's fused head cannot read. Where "
            "PEFT adapts an embedding that is tied to it, remove `trainable_token_indices` from the configuration."
        )
    if backend == "trl":
        return backend
    obstacle = "TRL's head computes the auxiliary loss of a mixture of experts" if has_aux_loss else None
    obstacle = obstacle or frozen_head_obstacle(model)
    if obstacle is None:
        use_frozen_head(model)
        return "frozen"
    if backend == "frozen":
        raise ValueError(
            f"`lm_head_backend='frozen'` cannot be used here: {obstacle}. Set `lm_head_backend='auto'` or 'trl'."
        )
    logger.info("`lm_head_backend='auto'` uses TRL's fused LM head: %s.", obstacle)
    return "trl"


def frozen_head_obstacle(model: Any) -> str | None:
    """Returns why the frozen head would be wrong for `model`, or None if it applies."""
    head = model.get_output_embeddings()
    if type(head).forward is not nn.Linear.forward or not head.weight.is_floating_point():
        return f"the LM head is adapted, quantized or no linear layer (`{type(head).__name__}`)"
    if any(parameter.requires_grad for parameter in head.parameters()):
        return "the LM head (or the embedding that it is tied to) is trained"
    config = model.config.get_text_config()
    if getattr(config, "final_logit_softcapping", None) is not None:
        return "the logits are soft-capped"
    unknown = [
        name
        for name, value in vars(config).items()
        if "logit" in name and name not in _KNOWN_OPTIONS and isinstance(value, int | float) and value is not False
    ]
    return f"the effect of the model option `{unknown[0]}` on the logits is not known" if unknown else None


# Options of a model's configuration that multiply its logits. Granite and MiniCPM3 divide by `logits_scaling`,
# HyperCLOVA X multiplies by it.
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
# The last two act on attention scores, and on the router of a mixture of experts.
_KNOWN_OPTIONS = {*_SCALES, "attn_logit_softcapping", "output_router_logits"}


def logit_scale(config: Any) -> float:
    """Returns the factor by which a model multiplies its logits, from its text configuration."""
    name = next((name for name in _SCALES if getattr(config, name, None) is not None), None)
    if name is None:
        return 1.0
    scale = float(getattr(config, name))
    return 1 / scale if name == "logits_scaling" and config.model_type != "hyperclovax" else scale


def use_frozen_head(model: Any) -> None:
    """Lets `model(..., fused_lm_head="frozen")` score its supervised tokens by [`frozen_log_probs`].

    The output is TRL's `FusedCausalLMOutput` with `log_probs`, `entropy`, `is_top1` and `label_mask`, each (B, S-1)
    and 0 where the label is -100. Every other call is unchanged, also `fused_lm_head=True`, TRL's head: trainers
    that share a model each ask for theirs. Call it after TRL's `add_fused_lm_head`.
    """
    scale = logit_scale(model.config.get_text_config())
    trl_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("fused_lm_head") != "frozen":
            return trl_forward(*args, **kwargs)
        del kwargs["fused_lm_head"]
        labels = kwargs.pop("labels")[:, 1:]
        kwargs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        head = self.get_output_embeddings()  # looked up on each call: FSDP replaces its parameters
        hidden, labels = hidden.to(head.weight.device), labels.to(head.weight.device)
        mask = labels != -100
        weight, bias = (part.full_tensor() if isinstance(part, DTensor) else part for part in (head.weight, head.bias))
        with maybe_gather_lm_head_ctx(weight, bias):
            scores = frozen_log_probs(hidden[mask], weight, labels[mask], bias=bias, logit_scale=scale)
        # `masked_scatter` of nothing stays connected to the model: a fully masked batch has a gradient of zero.
        per_token = [score.new_zeros(mask.shape).masked_scatter(mask, score) for score in scores]
        return FusedCausalLMOutput(**dict(zip(TokenScores._fields, per_token, strict=True)), label_mask=mask)

    model.forward = MethodType(forward, model)
