"""The regime map: where, by the base model's confidence on the training answers, an objective beats SFT."""

from collections.abc import Mapping, Sequence
from typing import Any

from bft_trl.comparison.drawing import plain, plot_style, saved


def regime_map(points: Sequence[Mapping[str, Any]], baseline: str, kind: str) -> bytes:
    """Returns the plot as "png" or "svg": a panel per metric, a point per objective, base model and data set.

    Args:
        points: model, data, objective, metric, confidence, difference, low and high.
        baseline: name of the objective that the differences are to.
        kind: "png" or "svg".
    """
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(point["metric"] for point in points))
    objectives = list(dict.fromkeys(point["objective"] for point in points))
    with plot_style(9):
        figure = Figure(figsize=(7.2, 3.6 * max(1, len(metrics)) + 0.4), layout="constrained")
        for axis, metric in zip(figure.subplots(max(1, len(metrics)), 1, squeeze=False).flat, metrics, strict=False):
            shown = [point for point in points if point["metric"] == metric]
            confidences = [point["confidence"] for point in shown]
            width = 0.012 * max(0.2, max(confidences) - min(confidences) + 0.1)
            for place, objective in enumerate(objectives):
                mine = [point for point in shown if point["objective"] == objective]
                shift = (place - (len(objectives) - 1) / 2) * width
                axis.errorbar(
                    [point["confidence"] + shift for point in mine],
                    [point["difference"] for point in mine],
                    yerr=[
                        [point["difference"] - point["low"] for point in mine],
                        [point["high"] - point["difference"] for point in mine],
                    ],
                    fmt="o",
                    capsize=2,
                    markersize=4,
                    label=plain(objective),
                )
            axis.axhline(0, color="#444444", linewidth=0.8)
            # An interval of two seeds that differ can be many times as long as all differences.
            values = [0, *(point["difference"] for point in shown)]
            margin = 0.6 * (max(values) - min(values)) or 1
            axis.set_ylim(min(values) - margin, max(values) + margin)
            _name_places(axis, shown)
            axis.set(
                xlabel="base model's mean confidence on the training answers",
                ylabel=f"{metric}, minus {plain(baseline)}",
            )
            axis.margins(x=0.15)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return saved(figure, kind)


def _name_places(axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    """Writes base model and data set beside each confidence."""
    for name, place in {(f"{p['model']}, {p['data']}", p["confidence"]): 0 for p in points}:
        axis.annotate(
            plain(name, longest=60),
            (place, 0.01),
            xycoords=("data", "axes fraction"),
            rotation=90,
            fontsize=7,
            color="#666666",
            ha="right",
            va="bottom",
        )
