"""Forest plot: the difference of each run to the baseline run, per task and metric, with its interval."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from bft_trl.comparison.drawing import plain, plot_style, saved
from bft_trl.comparison.published import PUBLISHED_KIND
from bft_trl.comparison.statistics import ALPHA, OVER_SEEDS

_WIDTH = 5.6
_ROW = 0.3


def forest_plot(result: Mapping[str, Any], kind: str) -> bytes:
    """Returns the plot of a comparison as "png" or "svg": a panel per task and metric, a row per run and reference.

    Squares: interval over seeds and documents. Filled: p < .05 after Holm's adjustment. Gray diamonds: baselines,
    controls and oracles minus the baseline run, without a test.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        panels.setdefault((row["task"], row["metric"]), []).append(row)
    references = {
        panel: [
            row
            for row in result["reference_rows"]
            if (row["task"], row["metric"]) == panel and row["kind"] != PUBLISHED_KIND
        ]
        for panel in panels
    }
    columns = 1 if len(panels) < 3 else 2
    lines = -(-len(panels) // columns)
    most = max(len(rows) + len(references[panel]) for panel, rows in panels.items())
    with plot_style(9):
        figure = Figure(figsize=(_WIDTH * columns, lines * (most * _ROW + 1.0) + 0.4), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis, (panel, rows) in zip(axes, panels.items(), strict=False):
            _draw(axis, panel, rows, references[panel], result.get("recorded", []))
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        n_tests = len(result["rows"])
        units = {row.get("interval_of", result.get("over", "documents")) for row in result["rows"]}
        over = units.pop() if len(units) == 1 else f"documents (squares: {OVER_SEEDS})"
        line = "\n" if columns == 1 else " "
        figure.supxlabel(
            f"Difference to {plain(result['baseline'])}, 95 % interval over {over}.{line}"
            f"Filled: p < {ALPHA} after Holm over {n_tests} tests. Diamonds: baselines, controls.",
            fontsize=8,
        )
        return saved(figure, kind)


def _draw(
    axis: Any,
    panel: tuple[str, str],
    rows: list[Mapping[str, Any]],
    references: list[Mapping[str, Any]],
    recorded: Sequence[str],
) -> None:
    notes = [" (recorded)" if row["run"] in recorded else " (one seed)" if row["n_seeds"] == 1 else "" for row in rows]
    labels = [plain(row["run"]) + note for row, note in zip(rows, notes, strict=True)]
    labels += [plain(row["name"]) for row in references]
    for y, row in enumerate(rows):
        found = row["p_holm"] < ALPHA
        axis.errorbar(
            row["difference"],
            y,
            xerr=[[row["difference"] - row["low"]], [row["high"] - row["difference"]]],
            fmt="s" if row.get("interval_of") == OVER_SEEDS else "o",
            color="#1f5fa8",
            markerfacecolor="#1f5fa8" if found else "white",
            capsize=3,
        )
    for y, row in enumerate(references, len(rows)):
        axis.plot(row["value"] - rows[0]["baseline_score"], y, "D", color="#8a8a8a", markersize=5)
    axis.axvline(0, color="#444444", linewidth=0.8)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.margins(x=0.15)
    axis.locator_params(axis="x", nbins=6)
    axis.spines[["top", "right"]].set_visible(False)
    task, metric = panel
    name = fill(plain(task, longest=100), 48)
    axis.set_title(
        f"{name}\n{plain(metric)} (n = {rows[0]['n']}, baseline {rows[0]['baseline_score']:.3g})",
        fontsize=9,
        loc="left",
    )
