"""Plots of both tasks: ROC curves, predicted and observed changes, and a map of the vectors."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.biology.vectors import Vectors
from bft_trl.comparison.drawing import plain, plot_style, saved

TITLES = {
    "roc": "ROC curves",
    "predicted": "Predicted against observed change, without the target genes",
    "perturbations": "Pearson correlation of the change, by perturbation",
    "map": "Map of the gene vectors (first two principal components)",
}
_CELL = 3.4
_MAX_ROWS = 40


def roc_plot(labels: np.ndarray, probabilities: Mapping[str, np.ndarray], vectors: Sequence[str], kind: str) -> bytes:
    """ROC curves as "png" or "svg": vector sets in color, controls in gray."""
    from sklearn.metrics import roc_auc_score, roc_curve

    with plot_style():
        figure, (axis,) = _panels(1, size=5.2)
        grays = iter(np.linspace(0.35, 0.75, max(1, len(probabilities) - len(vectors))))
        for name, values in probabilities.items():
            x, y, _ = roc_curve(labels, values)
            style = {} if name in vectors else {"color": str(next(grays)), "linestyle": "--"}
            axis.plot(x, y, label=f"{plain(name)} ({roc_auc_score(labels, values):.3f})", **style)
        axis.plot([0, 1], [0, 1], color="#444444", linewidth=0.6)
        axis.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axis.legend(frameon=False, fontsize=7, loc="lower right")
        return saved(figure, kind)


def change_plot(observed: np.ndarray, predicted: Mapping[str, np.ndarray], keep: np.ndarray, kind: str) -> bytes:
    """Predicted against observed changes, one panel per name; a point is a gene under a perturbation."""
    with plot_style():
        figure, axes = _panels(len(predicted))
        limit = float(np.abs(observed[keep]).max()) or 1.0
        for axis, (name, values) in zip(axes, predicted.items(), strict=False):
            axis.scatter(observed[keep], values[keep], s=3, alpha=0.3, linewidths=0, rasterized=True)
            axis.plot([-limit, limit], [-limit, limit], color="#444444", linewidth=0.6)
            axis.set(title=plain(name), xlabel="observed", ylabel="predicted")
        return saved(figure, kind)


def per_perturbation_plot(scores: pd.Series, names: Sequence[str], kind: str) -> bytes:
    """Score of each perturbation, one row per perturbation and one marker per name.

    Of more than 40 perturbations, it shows 40 at equal steps of the first name's score.

    Args:
        scores: index (model, unit).
        names: those to show; the last is the control.
    """
    from matplotlib.figure import Figure

    table = scores.unstack("model")[list(names)].dropna().sort_values(names[0])
    total = len(table)
    table = table.iloc[np.unique(np.linspace(0, total - 1, min(total, _MAX_ROWS)).round().astype(int))]
    with plot_style():
        figure = Figure(figsize=(7, 0.24 * len(table) + 1.2), layout="constrained")
        axis = figure.subplots()
        for name in names:
            style: dict[str, Any] = {"marker": "D", "color": "#8a8a8a"} if name == names[-1] else {"marker": "o"}
            axis.plot(table[name], range(len(table)), linestyle="", markersize=4, label=plain(name), **style)
        axis.set_yticks(range(len(table)), [plain(name) for name in table.index])
        axis.axvline(0, color="#444444", linewidth=0.8)
        if total > len(table):
            axis.set_title(f"{len(table)} of {total}, at equal steps of {plain(names[0])}'s score", fontsize=8)
        axis.set_xlabel("Pearson correlation of predicted and observed change")
        axis.grid(axis="y", alpha=0.2)
        axis.legend(frameon=False, fontsize=7)
        return saved(figure, kind)


def vector_map(vectors: Mapping[str, Vectors], title: str, members: Collection[str], kind: str) -> bytes:
    """The first two principal components of each set of vectors, with the genes of one gene set in red."""
    from sklearn.decomposition import PCA

    with plot_style():
        figure, axes = _panels(len(vectors))
        for axis, (name, found) in zip(axes, vectors.items(), strict=False):
            if min(found.values.shape) < 2:
                axis.set_axis_off()
                continue
            points = PCA(2, random_state=0).fit_transform(found.values)
            inside = np.isin(found.genes, list(members))
            axis.scatter(*points[~inside].T, s=6, color="#b5b5b5", linewidths=0, rasterized=True)
            axis.scatter(*points[inside].T, s=12, color="#c8442d", linewidths=0, label=f"{int(inside.sum())} genes")
            axis.set(title=plain(name), xticks=[], yticks=[])
            axis.legend(frameon=False, fontsize=7)
        figure.suptitle(f"In red: {plain(title)}", fontsize=9)
        return saved(figure, kind)


def _panels(count: int, *, size: float = _CELL) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(size * columns, size * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flatten())
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes
