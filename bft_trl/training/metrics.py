"""The metrics of optimizer steps and evaluation sets, from sums over samples: exact for any batch size."""

from collections.abc import Sequence
from typing import Any

import torch

from bft_trl.weighting import SupervisedTokens, Weights

# The columns of a tensor of sums. One more column has the lowest group confidence.
SUMS = (
    "samples",
    "tokens",
    "nll",
    "objective",
    "token_weight",
    "sample_weight",
    "sample_weight_squared",
    "group_confidence",
    "windowed",
    "anchor_kl",
)
# Logged for each value of `metrics_by_column`, beside the metrics over all samples.
METRICS_BY_VALUE = ("nll", "sample_weight", "group_confidence")


def zero_sums(*shape: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Returns (*shape, len(SUMS) + 1) sums over no samples, float64."""
    sums = torch.zeros(*shape, len(SUMS) + 1, dtype=torch.float64, device=device)
    sums[..., -1] = torch.inf
    return sums


def device_of_sums(device: torch.device) -> torch.device:
    """Returns where the sums over a batch on `device` are kept until they are logged: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def sum_by_sample(
    tokens: SupervisedTokens,
    weights: Weights,
    *,
    mean_over_samples: bool,
    kl: torch.Tensor | None = None,
    anchor_coef: float = 0.0,
) -> torch.Tensor:
    """Returns (B, len(SUMS) + 1) sums of each sample of a batch, float64 on its device (of MPS: on the CPU).

    `mean_over_samples` says whether the objective is a mean over samples (bft) or over tokens (the others). `kl` (N,)
    is the divergence of each token from the base model, which the objective contains `anchor_coef` times.
    """
    device = device_of_sums(tokens.log_probs.device)
    tokens = SupervisedTokens(*(part.detach().to(device) for part in tokens))
    weights = Weights(*(part.detach().to(device) for part in weights))
    nll = -tokens.log_probs.double()
    sample = torch.arange(len(tokens.lengths), device=device)
    sample = sample.repeat_interleave(tokens.lengths, output_size=len(nll))

    def per_sample(values: torch.Tensor) -> torch.Tensor:
        return nll.new_zeros(len(tokens.lengths)).index_add(0, sample, values.double())

    weighted = per_sample(weights.token.double() * nll)
    anchor = torch.zeros_like(weighted) if kl is None else per_sample(kl.detach().to(device))
    objective = (weights.sample * weighted if mean_over_samples else weighted) + anchor_coef * anchor
    columns = {
        "samples": torch.ones_like(weighted),
        "tokens": tokens.lengths,
        "nll": per_sample(nll),
        "objective": objective / tokens.lengths if mean_over_samples else objective,
        "token_weight": per_sample(weights.token),
        "sample_weight": weights.sample,
        "sample_weight_squared": weights.sample.double() ** 2,
        "group_confidence": weights.group_confidence,
        "windowed": weights.windowed,
        "anchor_kl": anchor,
    }
    return torch.stack([columns[name].double() for name in (*SUMS, "group_confidence")], dim=1)


def sum_by_index(sums: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """(B, len(SUMS) + 1) sums of samples, (B,) index in [0, count) -> (count, len(SUMS) + 1)."""
    result = zero_sums(count, device=sums.device)
    result[:, :-1].index_add_(0, index, sums[:, :-1])
    result[:, -1] = result[:, -1].scatter_reduce(0, index, sums[:, -1], "amin")
    return result


def sum_by_row(
    sums: torch.Tensor, row: torch.Tensor, rows: int, value: torch.Tensor | None = None, values: int = 0
) -> torch.Tensor:
    """Returns (rows, 1 + values, len(SUMS) + 1): sums over all samples of each row of the batch, then by column value.

    Args:
        sums, row: (B, len(SUMS) + 1) of the samples, and (B,) the row of the batch of each.
        rows, values: number of rows of the batch, and of column values.
        value: (B,) index of the column value of each sample, None without `metrics_by_column`.
    """
    result = sum_by_index(sums, row, rows)[:, None]
    if value is None or not values:
        return torch.cat([result, zero_sums(rows, values, device=sums.device)], dim=1)
    by_value = sum_by_index(sums, row * values + value, rows * values)
    return torch.cat([result, by_value.unflatten(0, (rows, values))], dim=1)


def pool_sums(parts: Sequence[torch.Tensor], values: int) -> torch.Tensor:
    """Returns the sums of several parts as one, (n, 1 + <=values, len(SUMS) + 1) each -> (1, 1 + values, ...)."""
    device = parts[0].device if parts else "cpu"
    sums = stack_steps([zero_sums(1, 1 + values, device=device), *parts], values)
    return torch.cat([sums[..., :-1].sum(0), sums[..., -1:].amin(0)], dim=-1)[None]


def stack_steps(steps: Sequence[torch.Tensor], values: int) -> torch.Tensor:
    """Concatenates sums along the first dimension. Earlier ones may lack the last column values."""
    missing = [zero_sums(len(step), 1 + values - step.shape[1], device=step.device) for step in steps]
    # With a model that is split over several GPUs, the sums of a batch are on that of the head.
    return torch.cat([torch.cat(pair, dim=1).to(steps[0].device) for pair in zip(steps, missing, strict=True)])


def gather_steps(steps: Sequence[torch.Tensor], values: int, accelerator: Any) -> torch.Tensor:
    """Returns (steps, 1 + values, len(SUMS) + 1) sums over all ranks, from those of this rank, on the CPU."""
    sums = stack_steps(steps, values)
    if accelerator.num_processes == 1:
        return sums.cpu()
    ranks = accelerator.gather(sums[None].to(accelerator.device)).cpu()
    return torch.cat([pool_sums([ranks[:, step]], values) for step in range(len(sums))])


def mean_loss(sums: torch.Tensor, loss_type: str) -> float:
    """Returns the objective's mean over samples ("bft") or tokens, from (n, len(SUMS) + 1) sums."""
    return total(sums, "objective") / total(sums, "samples" if loss_type == "bft" else "tokens")


def total(sums: torch.Tensor, name: str) -> float:
    """Returns the total of one column of (n, len(SUMS) + 1) sums."""
    return sums[:, SUMS.index(name)].sum().item()


def step_metrics(steps: torch.Tensor) -> dict[str, float]:
    """Returns the logged metrics by name, from one row of sums per optimizer step; an evaluation set is one step.

    Means are over all tokens or samples of the steps. `effective_sample_size` = (sum s)^2 / sum s^2 is the mean over
    the steps. Empty without a sample.
    """
    steps = steps[steps[:, SUMS.index("samples")] > 0]  # the last pull of a stream may be empty
    if not len(steps):
        return {}
    samples, tokens = total(steps, "samples"), total(steps, "tokens")
    weight, squared = steps[:, SUMS.index("sample_weight")], steps[:, SUMS.index("sample_weight_squared")]
    return {
        "nll": total(steps, "nll") / tokens,
        "token_weight": total(steps, "token_weight") / tokens,
        "sample_weight": total(steps, "sample_weight") / samples,
        "group_confidence": total(steps, "group_confidence") / samples,
        "group_confidence_min": steps[:, -1].min().item(),
        # 0 for a step in which every weight is 0
        "effective_sample_size": (weight**2 / squared.clamp(min=torch.finfo(torch.float64).tiny)).mean().item(),
        "windowed_fraction": total(steps, "windowed") / samples,
    }


def all_metrics(steps: torch.Tensor, values: Sequence[str], *, anchor: bool = False) -> dict[str, float]:
    """Returns [`step_metrics`] over all samples and, as `nll/<value>` and so on, those of each column value.

    Args:
        steps: (steps, 1 + values, len(SUMS) + 1).
        values: names of the column values; those without a sample are left out.
        anchor: whether the objective has an anchor, whose mean divergence per token is `anchor_kl`.
    """
    metrics = step_metrics(steps[:, 0])
    if anchor and metrics:
        metrics["anchor_kl"] = total(steps[:, 0], "anchor_kl") / total(steps[:, 0], "tokens")
    for position, name in enumerate(values, start=1):
        of_value = step_metrics(steps[:, position])
        metrics |= {f"{metric}/{name}": of_value[metric] for metric in METRICS_BY_VALUE if of_value}
    return metrics
