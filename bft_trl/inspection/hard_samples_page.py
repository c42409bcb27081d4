"""The page of hard samples: lists, figures per source, and how each sample's loss moved."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bft_trl.comparison.drawing import plain, plot_style, saved
from bft_trl.comparison.templates import environment, inline_svg

_MOST_SOURCES = 8


def hard_samples_page(result: Mapping[str, Any], samples: pd.DataFrame) -> str:
    """The result of `bft_trl.inspection.hard_samples` as one HTML file; every text of the data is escaped."""
    figures = [_movement(samples)] if samples["epochs"].max() > 1 else []
    if result["epochs"] > 1:
        figures.append(_sources(pd.DataFrame(result["sources"])))
    context = dict(result) | {"figures": [inline_svg(image.decode()) for image in figures]}
    return environment(autoescape=True).get_template("hard_samples.html.j2").render(context)


def _movement(samples: pd.DataFrame) -> bytes:
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axis = figure.subplots()
        again = samples[samples["epochs"] > 1].assign(source=lambda table: table["source"].fillna("-"))
        common = again["source"].value_counts().index[:_MOST_SOURCES]
        for name in common:
            points = again[again["source"] == name]
            axis.scatter(points["first_nll"], points["last_nll"], s=10, alpha=0.6, label=plain(str(name)))
        rest = again[~again["source"].isin(common)]
        if len(rest):
            axis.scatter(rest["first_nll"], rest["last_nll"], s=10, alpha=0.4, color="#888888", label="other sources")
        top = float(again[["first_nll", "last_nll"]].max().max())
        axis.plot([0, top], [0, top], color="#444444", linewidth=0.6)
        axis.set(
            title="Above the line: worse than at first", xlabel="nll when first seen", ylabel="nll when last seen"
        )
        axis.legend(frameon=False, fontsize=7)
        return saved(figure, "svg")


def _sources(sources: pd.DataFrame) -> bytes:
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axis = figure.subplots()
        largest = sources.groupby("source")["samples"].sum().sort_values(ascending=False).index[:_MOST_SOURCES]
        for name in largest:
            points = sources[sources["source"] == name]
            axis.plot(points["epoch"] + 1, points["nll"], marker="o", markersize=3, label=plain(str(name)))
        axis.set_xticks(sorted(sources["epoch"].unique() + 1)[:: max(1, sources["epoch"].nunique() // 10)])
        axis.set(title="Mean nll by source", xlabel="epoch", ylabel="nats a token")
        axis.legend(frameon=False, fontsize=7)
        return saved(figure, "svg")
