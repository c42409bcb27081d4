"""The page of hard samples: lists, metrics by source, and a plot of the first and last loss of each sample."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bft_trl.comparison.drawing import plain, plot_style, saved
from bft_trl.comparison.templates import environment, inline_svg

_MOST_SOURCES = 8


def hard_samples_page(result: Mapping[str, Any], samples: pd.DataFrame) -> str:
    """Returns the result of `hard_samples` as a self-contained HTML file, with all texts escaped."""
    again = samples[samples["epochs"] > 1]
    plot = inline_svg(_plot(again).decode()) if len(again) else ""
    template = environment().get_template("hard_samples.html.j2")
    return template.render(dict(result) | {"plot": plot})


def _plot(samples: pd.DataFrame) -> bytes:
    from matplotlib.figure import Figure

    sources = samples["source"].fillna("-")
    common = sources.value_counts().index[:_MOST_SOURCES]
    labels = sources.where(sources.isin(common), "other sources")
    with plot_style():
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axis = figure.subplots()
        for label, points in samples.groupby(labels):
            axis.scatter(points["first_nll"], points["last_nll"], s=10, alpha=0.6, label=plain(str(label)))
        top = float(samples[["first_nll", "last_nll"]].max().max())
        axis.plot([0, top], [0, top], color="#444444", linewidth=0.6)
        axis.set(title="Above the line: the nll has increased", xlabel="first nll", ylabel="last nll")
        axis.legend(frameon=False, fontsize=7)
        return saved(figure, "svg")
