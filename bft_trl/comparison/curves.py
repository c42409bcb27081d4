"""The metrics of a training run as a table and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.comparison.drawing import plain
from bft_trl.io import atomic_file

# Title, y label, and metrics with their legend.
_PANELS = (
    ("Unweighted loss", "nll (nats per token)", {"nll": "training", "eval_nll": "held out"}),
    (
        "Mean weights and confidence",
        "mean over the logged steps",
        {"token_weight": "token weight", "sample_weight": "sample weight", "group_confidence": "group confidence"},
    ),
)


def history_table(history: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns `trainer.state.log_history` with one row per optimizer step, in order, and one column per metric."""
    table = pd.DataFrame(list(history))
    if table.empty:
        return pd.DataFrame(columns=["step"])
    table = table.groupby("step", as_index=False).first()
    leading = ["step", *[name for _, _, names in _PANELS for name in names if name in table]]
    # Sorted as in the history of a checkpoint, so that a resumed run has the same order.
    return table[leading + sorted(name for name in table if name not in leading)]


def history_figure(history: pd.DataFrame) -> Any:
    """Returns a matplotlib figure of nll and weights over steps, and of nll by column value if it was logged."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    panels = list(_PANELS)
    values = {name: plain(name.split("/", 1)[1]) for name in history if name.startswith("nll/")}
    if values:
        panels.append(("Unweighted loss by column value", "nll (nats per token)", values))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (heading, label, names) in zip(figure.subplots(1, len(panels), sharex=True), panels, strict=True):
        for name, legend in names.items():
            if name in history:
                points = history[["step", name]].dropna()
                marker = "o" if name.startswith("eval_") or len(points) < 3 else None
                axes.plot(points["step"], points[name], marker=marker, label=legend)
        axes.set(title=heading, xlabel="optimizer step", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    return figure


def plot_history(history: pd.DataFrame, path: Path, *, title: str) -> None:
    """Writes [`history_figure`] to `path`. The suffix is the format: .png, .svg or .pdf."""
    figure = history_figure(history)
    figure.suptitle(plain(title, longest=100))
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
