"""The logged figures of a step or an evaluation set, from sums: exact whatever the batch size."""

from collections.abc import Sequence

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


# What is logged for each group, beside the figures over all.
GROUP_FIGURES = ("nll", "sample_weight", "group_confidence")


def no_samples(*shape: int) -> torch.Tensor:
    """(*shape, len(SUMS) + 1) sums of nothing, in float64 on the CPU: MPS has no float64, and there they are read."""
    sums = torch.zeros(*(shape or (1,)), len(SUMS) + 1, dtype=torch.float64)
    sums[..., -1] = torch.inf
    return sums


def sums_by_sample(tokens: SupervisedTokens, weights: Weights, *, mean_over_samples: bool) -> torch.Tensor:
    """What each sample adds to the sums.

    Args:
        tokens, weights: of the batch.
        mean_over_samples: whether the objective is a mean over samples (bft) or over tokens (nll, dft).

    Returns:
        (B, len(SUMS) + 1), float64 on the CPU.
    """
    tokens = SupervisedTokens(*(part.detach().cpu() for part in tokens))
    weights = Weights(*(part.detach().cpu() for part in weights))
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
    lowest = columns["group_confidence"]
    return torch.stack([*(columns[name].double() for name in SUMS), lowest.double()], dim=1)


def folded(sums: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """(B, len(SUMS) + 1) sums of samples -> (count, len(SUMS) + 1): those of one index together."""
    result = no_samples(count)
    result[:, :-1].index_add_(0, index, sums[:, :-1])
    result[:, -1] = result[:, -1].scatter_reduce(0, index, sums[:, -1], "amin")
    return result


def sums_by_row(
    sums: torch.Tensor, row: torch.Tensor, rows: int, group: torch.Tensor | None = None, groups: int = 0
) -> torch.Tensor:
    """The sums over the samples in each row of a batch, and over those of each group in it.

    Args:
        sums: (B, len(SUMS) + 1) of the samples.
        row: (B,) which row holds them.
        rows: rows of the batch.
        group: (B,) which group they belong to, -1 for none.
        groups: number of groups.

    Returns:
        (rows, 1 + groups, len(SUMS) + 1): over all samples of the row, then over those of each group.
    """
    result = folded(sums, row, rows)[:, None]
    if group is None or not groups:
        return torch.cat([result, no_samples(rows, groups)], dim=1)
    member = group >= 0
    by_group = folded(sums[member], row[member] * groups + group[member], rows * groups)
    return torch.cat([result, by_group.unflatten(0, (rows, groups))], dim=1)


def pooled(sums: torch.Tensor) -> torch.Tensor:
    """(n, ..., len(SUMS) + 1) -> (1, ..., len(SUMS) + 1): one row of sums from several."""
    return torch.cat([sums[..., :-1].sum(0), sums[..., -1:].amin(0)], dim=-1)[None]


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


def all_figures(steps: torch.Tensor, groups: Sequence[str]) -> dict[str, float]:
    """[`figures`] over all samples and, as `nll/<group>` and so on, the [`GROUP_FIGURES`] of each group that occurs.

    Args:
        steps: (steps, 1 + groups, len(SUMS) + 1).
        groups: their names.
    """
    found = figures(steps[:, 0])
    for position, name in enumerate(groups, start=1):
        of_group = figures(steps[:, position])
        found |= {f"{figure}/{name}": of_group[figure] for figure in GROUP_FIGURES if of_group}
    return found
