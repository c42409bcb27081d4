"""Which LM head a model gets: TRL's fused one, or the frozen one of `lm_head`."""

import functools
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import nn
from torch.distributed.tensor import DTensor
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from bft_trl.lm_head import TokenScores, frozen_log_probs

logger = get_logger(__name__)


@dataclass
class FrozenHeadOutput(FusedCausalLMOutput):
    """TRL's output with the scores that are computed on request, each (B, S-1) and 0 where the label is -100."""

    top_entropy: torch.Tensor | None = None
    kl: torch.Tensor | None = None


def choose_lm_head(model: Any, backend: str, *, has_aux_loss: bool, needed_by: str | None = None) -> str:
    """Adds the frozen LM head to `model` if `backend` asks for it and it applies. Returns "frozen" or "trl".

    Args:
        model: causal LM with TRL's fused head, without its PEFT wrapper.
        backend: "auto", "frozen" or "trl", see `BFTConfig.lm_head_backend`.
        has_aux_loss: whether the loss includes the auxiliary loss of a mixture of experts.
        needed_by: an option, with its value, that only the frozen head can serve.

    Raises ValueError if the frozen head is asked for and does not apply, or if TRL's head cannot read the weight.
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
    if needed_by:
        raise ValueError(f"`{needed_by}` needs the frozen LM head, which cannot be used here: {obstacle}.")
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

    The output has `log_probs`, `entropy`, `is_top1` and `label_mask`, each (B, S-1) and 0 where the label is -100.
    `top_entropy=True` and `reference=...` add `top_entropy` and `kl`; `fused_lm_head="hidden"` gives the (N, H) hidden
    states of the supervised tokens alone, which are the `reference` of another call. Every other call is unchanged,
    also `fused_lm_head=True`, TRL's head: trainers that share a model each ask for theirs. Call it after TRL's
    `add_fused_lm_head`.
    """
    scale = logit_scale(model.config.get_text_config())
    trl_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("fused_lm_head") not in ("frozen", "hidden"):
            return trl_forward(*args, **kwargs)
        states_only = kwargs.pop("fused_lm_head") == "hidden"
        requested = {name: kwargs.pop(name) for name in ("top_entropy", "reference") if name in kwargs}
        labels = kwargs.pop("labels")[:, 1:]
        kwargs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        head = self.get_output_embeddings()  # looked up on each call: FSDP replaces its parameters
        hidden, labels = hidden.to(head.weight.device), labels.to(head.weight.device)
        mask = labels != -100
        supervised = mask.nonzero(as_tuple=True)  # a mask as index would wait for the device anew at every use
        if states_only:
            return hidden[supervised]
        weight, bias = (part.full_tensor() if isinstance(part, DTensor) else part for part in (head.weight, head.bias))
        with maybe_gather_lm_head_ctx(weight, bias):
            states, targets = hidden[supervised], labels[supervised]
            scores = frozen_log_probs(states, weight, targets, bias=bias, logit_scale=scale, **requested)
        # `index_put` of nothing stays connected to the model: a fully masked batch has a gradient of zero.
        per_token = {
            name: score.new_zeros(mask.shape).index_put(supervised, score)
            for name, score in zip(TokenScores._fields, scores, strict=True)
            if score is not None
        }
        return FrozenHeadOutput(**per_token, label_mask=mask)

    model.forward = MethodType(forward, model)
