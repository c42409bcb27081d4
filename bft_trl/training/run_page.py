"""The page of a training run: its curves and its final figures, in the run's own folder."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.comparison.drawing import plot_style, saved
from bft_trl.comparison.templates import environment, inline_svg
from bft_trl.io import write_text
from bft_trl.training.curves import history_figure, history_table
from bft_trl.training.metrics import GROUP_FIGURES

PAGE = "run.html"
# What says nothing of the model.
_LEFT_OUT = (
    "step",
    "epoch",
    "total_flos",
    "train_loss",
    "num_tokens",
    "eval_num_tokens",
    "learning_rate",
    "grad_norm",
)


def write_run_page(
    folder: Path, history: Sequence[Mapping[str, Any]], *, objective: Mapping[str, Any], name: str, samples: bool
) -> None:
    """Writes `run.html` into the run's folder: curves (where matplotlib is installed) and the final table.

    Args:
        folder: output folder of the run.
        history: `trainer.state.log_history`.
        objective: of `BFTConfig.objective`.
        name: of the objective, for the title.
        samples: whether the run left a record of samples.
    """
    table = history_table(history)
    figures = []
    if find_spec("matplotlib") and len(table):
        with plot_style(9):
            figures.append(saved(history_figure(table), "svg").decode())
    page = environment(autoescape=True).get_template("run.html.j2")
    text = page.render(
        title=f"{name}: {folder.name}",
        name=name,
        run=folder.name,
        steps=int(table["step"].max()) if len(table) else 0,
        objective=objective if objective["loss_type"] == "bft" else {"loss_type": objective["loss_type"]},
        rows=_final(table),
        groups=_final_groups(table),
        figures=[inline_svg(figure) for figure in figures],
        samples=samples,
    )
    write_text(folder / PAGE, text)


def _logged(table: pd.DataFrame) -> list[str]:
    return [
        name
        for name in table
        if name not in _LEFT_OUT
        and not name.endswith(("_runtime", "_per_second"))
        and pd.api.types.is_numeric_dtype(table[name])
    ]


def _first_and_last(table: pd.DataFrame, name: str) -> dict[str, Any]:
    values = table[["step", name]].dropna()
    first, last = values.iloc[0], values.iloc[-1]
    return {"first": float(first[name]), "last": float(last[name]), "step": int(last["step"])}


def _final(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{"name": name} | _first_and_last(table, name) for name in _logged(table) if "/" not in name]


def _final_groups(table: pd.DataFrame) -> list[dict[str, Any]]:
    named = [(*name.split("/", 1), name) for name in _logged(table) if "/" in name]
    return [
        {"name": figure, "group": group} | _first_and_last(table, column)
        for figure, group, column in named
        if figure.removeprefix("eval_") in GROUP_FIGURES
    ]
