"""Reference implementations: the equations of docs/method.md in float64, by loops over tokens, without bft_trl."""

import math
from typing import Any

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
    """Mean over g tokens centered on each one, the extra token of an even window on the left, clipped at the ends."""
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
    power: float = 1.0,
    floor: float = 0.0,
) -> tuple[list[float], float, float, bool]:
    """Token weights, sample weight, group confidence of one sample, and whether the window acts."""
    if version == "v1":
        confidence = window_v1(c, group_size, mean)
        return [max(x**power, floor) for x in c], 1 - confidence**gamma, confidence, len(c) > group_size
    local = window_v3(c, group_size)
    token = [max(min(x / (m + 1e-8), 1.0) ** power, floor) for x, m in zip(c, local, strict=True)]
    left, right = group_size // 2, group_size - 1 - group_size // 2
    acts = any(t - left > 0 or t + right < len(c) - 1 for t in range(len(c)))
    return token, 1 - min(local), min(local), acts


def bft_loss(
    logits: torch.Tensor, labels: torch.Tensor, documents: torch.Tensor | None = None, **rule: Any
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


def objective(
    logits: torch.Tensor,
    labels: torch.Tensor,
    base: torch.Tensor | None = None,
    *,
    loss_type: str,
    power: float = 1.0,
    anchor: float = 0.0,
    **rule: Any,
) -> torch.Tensor:
    """Any objective from full logits (B, S, V) and unshifted labels (B, S); `base` are the base model's logits."""
    samples: list[torch.Tensor] = []
    number = 0
    for row in range(labels.shape[0]):
        places = [t for t in range(1, labels.shape[1]) if labels[row, t] != -100]
        log_p = {t: logits[row, t - 1].double().log_softmax(-1) for t in places}
        log_probs = [log_p[t][labels[row, t]] for t in places]
        token, sample = [1.0] * len(places), 1.0
        c = [math.exp(x.item()) for x in log_probs]
        if loss_type == "bft" and places:
            token, sample, _, _ = weights(c, power=power, **rule)
        if loss_type == "dft":
            token = [x**power for x in c]
        if loss_type == "eaft":
            token = [(top_entropy(log_p[t].tolist(), 20) / 3) ** power for t in places]
        losses = [sample * w * -x for w, x in zip(token, log_probs, strict=True)]
        if base is not None:
            for i, t in enumerate(places):
                log_q = base[row, t - 1].double().log_softmax(-1)
                losses[i] = losses[i] + anchor * sum(
                    log_q[v].exp() * (log_q[v] - log_p[t][v]) for v in range(len(log_q))
                )
        number += len(places)
        if places:
            samples.append(torch.stack(losses).sum() / (len(places) if loss_type == "bft" else 1))
    return torch.stack(samples).sum() / (len(samples) if loss_type == "bft" else number)


def top_entropy(log_probs: list[float], size: int) -> float:
    """Entropy of the `size` most probable entries, renormalized."""
    top = [math.exp(x) for x in sorted(log_probs)[-size:]]
    return -sum(x / sum(top) * math.log(x / sum(top)) for x in top)


def head_scores(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability, entropy and top-1 of each target from its full float64 logits, one token at a time."""
    log_probs, entropies, top1 = [], [], []
    for state, target in zip(hidden.double(), targets.tolist(), strict=True):
        logits = torch.stack([(row * state).sum() for row in weight.double()])
        logits = scale * (logits if bias is None else logits + bias.double())
        log_p = logits - logits.max() - (logits - logits.max()).exp().sum().log()
        log_probs.append(log_p[target])
        entropies.append(-(log_p.exp() * log_p).sum())
        top1.append(all(logits[v] < logits[target] for v in range(target)) and bool(logits[target] == logits.max()))
    return torch.stack(log_probs), torch.stack(entropies), torch.tensor(top1)


def head_extras(
    hidden: torch.Tensor,
    base: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(base || prediction) and the entropy of the 20 most likely tokens, (N,) each, one token at a time."""
    kls, entropies = [], []
    for states in zip(hidden.double(), base.double(), strict=True):
        logits = [scale * (weight.double() @ state + (0 if bias is None else bias.double())) for state in states]
        log_p, log_q = (part - part.exp().sum().log() for part in logits)
        kls.append(sum(log_q[v].exp() * (log_q[v] - log_p[v]) for v in range(len(log_p))))
        entropies.append(top_entropy(log_p.tolist(), 20))
    return torch.stack(kls), torch.tensor(entropies, dtype=torch.float64)


def bft_loss_full_logits(logits: torch.Tensor, labels: torch.Tensor, *, group_size: int) -> torch.Tensor:
    """v1 with the geometric mean from full logits (B, S, V), as a plain implementation; benchmarks time it."""
    targets = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    ).view(targets.shape)
    losses = []
    for row, row_targets in zip(nll, targets, strict=True):
        row = row[row_targets != -100]
        if len(row):
            log_c = -row.detach()
            windows = log_c.unfold(0, min(group_size, len(row)), 1).mean(1)
            losses.append((1 - windows.min().exp()) * (log_c.exp() * row).mean())
    return torch.stack(losses).mean() if losses else nll.sum() * 0
