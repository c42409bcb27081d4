"""Log-probabilities and weights of the supervised tokens of a batch, at the current weights of a model."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from trl.trainer import add_fused_lm_head

from bft_trl.weighting import supervised_tokens, token_and_sample_weights


@torch.no_grad()
def token_scores(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the log-probability of each target token in nats and the label mask, both (B, S-1).

    Args:
        model: causal LM, with or without a PEFT adapter.
        batch: `input_ids`, `labels` and `attention_mask`, each (B, S). Log-probabilities are 0 where the label is
            -100.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = base.forward
    add_fused_lm_head(base)
    try:
        scores = model(**{name: values.to(model.device) for name, values in batch.items()}, fused_lm_head=True)
    finally:
        base.forward = forward
    return scores.log_probs, scores.label_mask


def sample_scores(log_probs: torch.Tensor, mask: torch.Tensor, objective: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what the objective makes of each row: mean nll, confidence, weights and the window of lowest confidence.

    Args:
        log_probs, mask: (B, S-1) of [`token_scores`]; each row has a supervised token.
        objective: arguments of `token_and_sample_weights`.

    Numbers have four significant digits. For a row whose loss is not finite `nll` is None, and it has no weights.
    """
    tokens = supervised_tokens(log_probs.cpu(), mask.cpu())
    lengths = tokens.lengths.tolist()
    # A running sum would carry the NaN of one sample into the confidence of the next ones.
    weights = token_and_sample_weights(tokens.log_probs.nan_to_num(0.0, 0.0, 0.0), tokens.lengths, **objective)
    scores: list[dict[str, Any]] = []
    for row, (values, token) in enumerate(
        zip(tokens.log_probs.split(lengths), weights.token.split(lengths), strict=True)
    ):
        if not values.isfinite().all():
            scores.append({"nll": None, "windowed": False, "window": [0, 0]})
            continue
        scores.append(
            {
                "nll": rounded(-values.double().mean().item()),
                "group_confidence": rounded(weights.group_confidence[row].item()),
                "sample_weight": rounded(weights.sample[row].item()),
                "windowed": bool(weights.windowed[row]),
                "window": weights.weakest[row].tolist(),
                "probs": [rounded(value) for value in values.float().exp().clamp(max=1).tolist()],
                "weights": [rounded(value) for value in token.tolist()],
            }
        )
    return scores


def rounded(value: float) -> float | None:
    """Returns four significant digits, or None for a number that is not finite, which JSON does not have."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
