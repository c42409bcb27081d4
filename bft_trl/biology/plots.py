"""Plots of both tasks: ROC curves, and the score of each perturbation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.comparison.drawing import plain, plot_style, saved

TITLES = {
    "roc": "ROC curves",
    "perturbations": "Pearson correlation of the change, by perturbation",
}
_MAX_ROWS = 40


def roc_plot(labels: np.ndarray, probabilities: Mapping[str, np.ndarray], vectors: Sequence[str], kind: str) -> bytes:
    """ROC curves as "png" or "svg": vector sets in color, controls in gray."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from sklearn.metrics import roc_auc_score, roc_curve

    with plot_style():
        figure = Figure(figsize=(5.2, 5.2), layout="constrained")
        axis = figure.subplots()
        grays = iter(np.linspace(0.35, 0.75, max(1, len(probabilities) - len(vectors))))
        for name, values in probabilities.items():
            x, y, _ = roc_curve(labels, values)
            style: dict[str, Any] = {} if name in vectors else {"color": str(next(grays)), "linestyle": "--"}
            axis.plot(x, y, label=f"{plain(name)} ({roc_auc_score(labels, values):.3f})", **style)
        axis.plot([0, 1], [0, 1], color="#444444", linewidth=0.6)
        axis.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axis.legend(frameon=False, fontsize=7, loc="lower right")
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
