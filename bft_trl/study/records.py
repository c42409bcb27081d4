"""What the finished steps of a study measured: a table of steps, one of scores and one of answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.io import write_files

TABLES = ("scores", "answers")
_SCORES = ["run", "part", "task", "metric", "unit", "name", "kind", "higher_is_better", "score"]
_ANSWERS = ["run", "part", "task", "unit", "answer", "reference", "document"]


class Records:
    """The finished steps in `output_dir`. A step is finished when it is here, whatever the folder of its run has.

    Attributes:
        steps: one row per finished or failed step: run, kind, status ("done" or "failed"), what it measured, and the
            error.
        scores: one row per run, part ("validation" or "test"), task, metric and unit; `name` and `kind` are those of
            a baseline, or "" and "model".
        answers: one row per run, part, task and unit.
    """

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.steps = self._read("steps.csv", ["run", "kind", "status"], pd.read_csv)
        self.scores = self._read("scores.parquet", _SCORES, pd.read_parquet)
        self.answers = self._read("answers.parquet", _ANSWERS, pd.read_parquet)
        # Without its scores, of a table that was not copied, an evaluation is repeated.
        scored = pd.MultiIndex.from_frame(self.scores[["run", "part"]])
        found = pd.MultiIndex.from_frame(self.steps[["run", "kind"]]).isin(scored)
        evaluated = self.steps["kind"].isin(["validation", "test"]) & (self.steps["status"] == "done")
        self.steps = self.steps[~evaluated | found].reset_index(drop=True)

    def _read(self, name: str, columns: list[str], read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
        path = self.output_dir / name
        if not path.is_file():
            return pd.DataFrame(columns=columns)
        try:
            table = read(path)
            table[columns]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: is damaged ({error}). Delete it to repeat what it had.") from error
        return table

    def status(self, run: str, kind: str) -> str | None:
        """Returns "done", "failed" or None."""
        found = self._find(run, kind)
        return None if found.empty else str(found["status"].iloc[0])

    def number(self, run: str, kind: str, name: str) -> float | None:
        """Returns a number that a step measured, or None."""
        found = self._find(run, kind)
        return None if found.empty or name not in found or pd.isna(found[name].iloc[0]) else float(found[name].iloc[0])

    def options(self, run: str, kind: str) -> str | None:
        """Returns the hash of the options of a base model's step; None if it was added without one."""
        found = self._find(run, kind).get("options", pd.Series(dtype=object)).dropna()
        return None if found.empty else str(found.iloc[0])

    def forget(self, run: str, kind: str) -> None:
        """Removes a step."""
        self.steps = self.steps.drop(self._find(run, kind).index)

    def _find(self, run: str, kind: str) -> pd.DataFrame:
        return self.steps[(self.steps["run"] == run) & (self.steps["kind"] == kind)]

    def add(
        self,
        run: str,
        kind: str,
        numbers: dict[str, Any],
        scores: pd.DataFrame | None = None,
        answers: pd.DataFrame | None = None,
        *,
        status: str = "done",
    ) -> None:
        """Adds a step and writes the tables."""
        self.forget(run, kind)
        row = {"run": run, "kind": kind, "status": status, "seconds": None, **numbers}
        self.steps = pd.DataFrame([*self.steps.to_dict("records"), row])
        if scores is not None and answers is not None:
            self.scores = self._replace(self.scores, scores, run, kind)[_SCORES]
            self.answers = self._replace(self.answers, answers, run, kind)[_ANSWERS]
        files = {f"{name}.parquet": getattr(self, name).to_parquet(index=False) for name in TABLES}
        # steps.csv is last: where a step is, its scores are.
        files["steps.csv"] = self.steps.to_csv(index=False).encode()
        write_files({self.output_dir / name: content for name, content in files.items()})

    def retry_failed(self) -> None:
        """Forgets the steps that failed."""
        self.steps = self.steps[self.steps["status"] != "failed"].reset_index(drop=True)

    def _replace(self, table: pd.DataFrame, rows: pd.DataFrame, run: str, part: str) -> pd.DataFrame:
        others = table[(table["run"] != run) | (table["part"] != part)]
        return _append(others, rows.assign(run=run, part=part))

    def validation_score(self, run: str, metric: str) -> float | None:
        """Returns the mean over the tasks of a run's validation score, higher is better.

        None before it is there, minus infinity for a run that failed or has no score.
        """
        if "failed" in (self.status(run, "train"), self.status(run, "validation")):
            return float("-inf")
        if self.status(run, "validation") is None:
            return None
        rows = self.scores[(self.scores["run"] == run) & (self.scores["part"] == "validation")]
        rows = rows[(rows["metric"] == metric) & (rows["kind"] == "model")]
        mean = rows.groupby("task")["score"].mean().mean()
        if pd.isna(mean):
            return float("-inf")
        return float(mean) if rows["higher_is_better"].iloc[0] else -float(mean)


def _append(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, rows], ignore_index=True) if len(table) else rows.reset_index(drop=True)
