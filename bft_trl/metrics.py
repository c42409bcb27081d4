"""The logged figures of a step or an evaluation set, from sums: exact whatever the batch size."""

import torch

from bft_trl.weighting import SupervisedTokens, Weights

# What is summed over the samples; a row of sums ends with one more column, the lowest group confidence.
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
)


def no_samples(rows: int = 1) -> torch.Tensor:
    """(rows, len(SUMS) + 1) sums of nothing, in float64 on the CPU: MPS has no float64, and there they are read."""
    sums = torch.zeros(rows, len(SUMS) + 1, dtype=torch.float64)
    sums[:, -1] = torch.inf
    return sums


def sums_by_row(tokens: SupervisedTokens, weights: Weights, *, rows: int, mean_over_samples: bool) -> torch.Tensor:
    """The sums over the samples that stand in each row of a batch.

    Args:
        tokens, weights: of the batch.
        rows: rows of the batch.
        mean_over_samples: whether the objective is a mean over samples (bft) or over tokens (nll, dft).

    Returns:
        (rows, len(SUMS) + 1) as [`no_samples`].
    """
    tokens = SupervisedTokens(*(part.detach().cpu() for part in tokens))
    weights = Weights(*(part.cpu() for part in weights))
    nll = -tokens.log_probs.double()
    sample = torch.arange(len(tokens.lengths)).repeat_interleave(tokens.lengths)

    def per_sample(values: torch.Tensor) -> torch.Tensor:
        return nll.new_zeros(len(tokens.lengths)).index_add(0, sample, values.double())

    weighted = per_sample(weights.token.double() * nll)
    columns = {
        "samples": torch.ones_like(weighted),
        "tokens": tokens.lengths,
        "nll": per_sample(nll),
        "objective": weights.sample * weighted / tokens.lengths if mean_over_samples else weighted,
        "token_weight": per_sample(weights.token),
        "sample_weight": weights.sample,
        "sample_weight_squared": weights.sample.double() ** 2,
        "group_confidence": weights.group_confidence,
        "windowed": weights.windowed,
    }
    sums = no_samples(rows)
    sums[:, :-1].index_add_(0, tokens.row, torch.stack([columns[name].double() for name in SUMS], dim=1))
    sums[:, -1] = sums[:, -1].scatter_reduce(0, tokens.row, weights.group_confidence.double(), "amin")
    return sums


def pooled(sums: torch.Tensor) -> torch.Tensor:
    """One row of sums, (1, len(SUMS) + 1), from several."""
    return torch.cat([sums[:, :-1].sum(0), sums[:, -1:].amin(0)])[None]


def total(sums: torch.Tensor, name: str) -> float:
    """The sum of one column."""
    return sums[:, SUMS.index(name)].sum().item()


def figures(steps: torch.Tensor) -> dict[str, float]:
    """The logged figures by name, from one row of sums per optimizer step; an evaluation set is one step.

    Means are over all tokens or samples of the steps; `effective_sample_size` = (sum s)^2 / sum s^2 is the mean of the
    steps' own. Without a sample there are none.
    """
    steps = steps[steps[:, SUMS.index("samples")] > 0]  # a stream's last pull may come back empty: that is no step
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
        # a step in which every weight is 0 has an effective size of 0
        "effective_sample_size": (weight**2 / squared.clamp(min=torch.finfo(torch.float64).tiny)).mean().item(),
        "windowed_share": total(steps, "windowed") / samples,
    }
