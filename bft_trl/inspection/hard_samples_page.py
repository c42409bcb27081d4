"""The page of hard samples: lists, metrics by source, and plots of the loss of each sample."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bft_trl.comparison.drawing import plain, plot_style, saved
from bft_trl.comparison.templates import environment, inline_svg

_MOST_SOURCES = 8


def hard_samples_page(result: Mapping[str, Any], samples: pd.DataFrame) -> str:
    """Returns the result of `hard_samples` as a self-contained HTML file, with all texts escaped."""
    from matplotlib.figure import Figure

    draw = [lambda axis: _draw_change(axis, samples)] if samples["epochs"].max() > 1 else []
    if result["epochs"] > 1:
        draw.append(lambda axis: _draw_sources(axis, pd.DataFrame(result["sources"])))
    plots = []
    with plot_style():
        for function in draw:
            figure = Figure(figsize=(4.6, 4.2), layout="constrained")
            axis = figure.subplots()
            function(axis)
            axis.legend(frameon=False, fontsize=7)
            plots.append(inline_svg(saved(figure, "svg").decode()))
    template = environment(autoescape=True).get_template("hard_samples.html.j2")
    return template.render(dict(result) | {"plots": plots})


def _draw_change(axis: Any, samples: pd.DataFrame) -> None:
    again = samples[samples["epochs"] > 1].assign(source=lambda table: table["source"].fillna("-"))
    common = again["source"].value_counts().index[:_MOST_SOURCES]
    for name in common:
        points = again[again["source"] == name]
        axis.scatter(points["first_nll"], points["last_nll"], s=10, alpha=0.6, label=plain(name))
    rest = again[~again["source"].isin(common)]
    if len(rest):
        axis.scatter(rest["first_nll"], rest["last_nll"], s=10, alpha=0.4, color="#888888", label="other sources")
    top = float(again[["first_nll", "last_nll"]].max().max())
    axis.plot([0, top], [0, top], color="#444444", linewidth=0.6)
    axis.set(title="Above the line: the nll has increased", xlabel="first nll", ylabel="last nll")


def _draw_sources(axis: Any, sources: pd.DataFrame) -> None:
    largest = sources.groupby("source")["samples"].sum().sort_values(ascending=False).index[:_MOST_SOURCES]
    for name in largest:
        points = sources[sources["source"] == name]
        axis.plot(points["epoch"] + 1, points["nll"], marker="o", markersize=3, label=plain(name))
    axis.set_xticks(sorted(sources["epoch"].unique() + 1)[:: max(1, sources["epoch"].nunique() // 10)])
    axis.set(title="Mean nll by source", xlabel="epoch", ylabel="nats per token")
