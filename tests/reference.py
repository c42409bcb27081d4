"""Loop twins in float64: the equations of docs/method.md one token at a time, nothing shared with bft_trl."""

import math

import torch


def window_v1(c: list[float], group_size: int, mean: str) -> float:
    """Lowest mean confidence over any g consecutive tokens; a sample shorter than g is one window."""
    size = min(group_size, len(c))
    means = []
    for start in range(len(c) - size + 1):
        window = c[start : start + size]
        if mean == "geometric":
            means.append(math.exp(sum(math.log(x) for x in window) / size))
        else:
            means.append(sum(window) / size)
    return min(means)


def window_v3(c: list[float], group_size: int) -> list[float]:
    """Mean over g tokens centred on each one, the extra token of an even window on the left, clipped at the ends."""
    left, right = group_size // 2, group_size - 1 - group_size // 2
    means = []
    for t in range(len(c)):
        window = [c[i] for i in range(t - left, t + right + 1) if 0 <= i < len(c)]
        means.append(sum(window) / len(window))
    return means


def weights(
    c: list[float],
    *,
    version: str = "v1",
    group_size: int = 256,
    mean: str = "geometric",
    gamma: float = 1.0,
    floor: float = 0.0,
) -> tuple[list[float], float, float, bool]:
    """Token weights, sample weight, group confidence of one sample, and whether the window acts."""
    if version == "v1":
        confidence = window_v1(c, group_size, mean)
        return [max(x, floor) for x in c], 1 - confidence**gamma, confidence, len(c) > group_size
    local = window_v3(c, group_size)
    token = [max(min(x / (m + 1e-8), 1.0), floor) for x, m in zip(c, local, strict=True)]
    left, right = group_size // 2, group_size - 1 - group_size // 2
    acts = any(t - left > 0 or t + right < len(c) - 1 for t in range(len(c)))
    return token, 1 - min(local), min(local), acts


def bft_loss(
    logits: torch.Tensor, labels: torch.Tensor, documents: torch.Tensor | None = None, **rule
) -> torch.Tensor:
    """L_BFT from full logits (B, S, V) and unshifted labels (B, S); `documents` (B, S) marks packed samples."""
    samples: dict[tuple[int, int], list[torch.Tensor]] = {}
    for row in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[row, t] != -100:
                document = 0 if documents is None else int(documents[row, t])
                log_prob = logits[row, t - 1].double().log_softmax(-1)[labels[row, t]]
                samples.setdefault((row, document), []).append(log_prob)
    total = torch.zeros((), dtype=torch.float64)
    for log_probs in samples.values():
        token, sample, _, _ = weights([math.exp(x.item()) for x in log_probs], **rule)
        inner = sum(w * -x for w, x in zip(token, log_probs, strict=True)) / len(log_probs)
        total = total + sample * inner
    return total / max(len(samples), 1)
