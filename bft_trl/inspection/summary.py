"""Metrics over all inspected samples, and their text form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bft_trl.inspection.token_scores import rounded

NEAR_ZERO = 0.01  # a token of less weight has next to no effect
_BINS = 20


def summary_metrics(samples: Sequence[Mapping[str, Any]], group_size: int) -> dict[str, Any]:
    """Returns counts, means, and histograms of confidences, weights and lengths.

    Args:
        samples: of the report. Means are over the samples with a finite loss and their supervised tokens.
        group_size: window length, at least the end of the histogram of lengths.
    """
    with_target = [sample for sample in samples if sample["supervised"]]
    finite = [sample for sample in with_target if sample["nll"] is not None]
    lengths = np.array([sample["supervised"] for sample in with_target], dtype=int)
    probs, token_weights = (
        np.array([value for row in finite for value in row[name]]) for name in ("probs", "weights")
    )
    confidence, weights = (np.array([row[name] for row in finite]) for name in ("group_confidence", "sample_weight"))
    squares = (weights**2).sum()
    return _counts(samples, with_target) | {
        "not_finite": len(with_target) - len(finite),
        "nll": _mean(-np.log(np.maximum(probs, 1e-30))),
        "token_confidence": _mean(probs),
        "token_weight": _mean(token_weights),
        "near_zero_fraction": _mean(token_weights < NEAR_ZERO),
        "sample_weight": _mean(weights),
        "group_confidence": _mean(confidence),
        "effective_sample_size": rounded(weights.sum() ** 2 / squares) if squares else None,
        "windowed": sum(sample["windowed"] for sample in finite),
        "median_length": float(np.median(lengths)) if len(lengths) else None,
        "distributions": {
            "token confidence": _histogram(probs),
            "group confidence": _histogram(confidence),
            "token weight": _histogram(token_weights),
            "sample weight": _histogram(weights),
            "supervised tokens": _histogram(lengths, top=max([*lengths.tolist(), group_size])),
        },
    }


def _counts(samples: Sequence[Mapping[str, Any]], with_target: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    uncut = [sample for sample in with_target if not sample["cut"]]
    total = sum(sample["length"] - sample["cut"] for sample in samples)
    supervised = sum(sample["supervised"] for sample in samples)
    return {
        "samples": len(samples),
        "without_target": len(samples) - len(with_target),
        "tokens": total,
        "supervised_tokens": supervised,
        "supervised_fraction": rounded(supervised / total) if total else None,
        "cut": sum(sample["cut"] > 0 for sample in samples),
        "cut_supervised": sum(sample["cut_supervised"] > 0 for sample in samples),
        "uncut": len(uncut),
        "ends": sum(sample["ends"] for sample in uncut),
    }


def _mean(values: np.ndarray) -> float | None:
    return rounded(values.mean()) if len(values) else None


def _histogram(values: np.ndarray, top: float = 1.0) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, bins=_BINS, range=(0, top))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def summary_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and texts of the metrics, for the page and the terminal."""
    targets = metrics["samples"] - metrics["without_target"]

    def text(name: str, form: str = ".3g", unit: str = "") -> str:
        return "-" if metrics[name] is None else f"{metrics[name]:{form}} {unit}".strip()

    return [
        (
            "supervised tokens",
            f"{metrics['supervised_tokens']:,} of {metrics['tokens']:,} ({text('supervised_fraction', '.1%')})",
        ),
        ("unweighted nll", text("nll", unit="nats per token")),
        ("mean token confidence", text("token_confidence")),
        ("mean token weight", text("token_weight")),
        (f"token weights under {NEAR_ZERO}", text("near_zero_fraction", ".1%")),
        ("mean group confidence", text("group_confidence")),
        ("mean sample weight", text("sample_weight")),
        ("effective sample size", text("effective_sample_size", unit=f"of {targets}")),
        ("samples in which the window acts", f"{metrics['windowed']} of {targets}"),
        ("samples that max_length cuts", f"{metrics['cut']} of {metrics['samples']}"),
        ("uncut samples with an end-of-turn token", f"{metrics['ends']} of {metrics['uncut']}"),
        ("rows that equal an earlier one", f"{metrics['duplicates']} of {metrics['rows']}"),
    ]
