"""The steps of a study - train, evaluate, inspect - each a `bft-trl` command in a process of its own."""

import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.io import read_json_object
from bft_trl.models import wheel_encoder
from bft_trl.study.inputs import Inputs
from bft_trl.study.plan import ROW_OPTIONS, Study, Trial, as_name
from bft_trl.study.records import Records

# Options of every training run, which the file of the study overrides. nll is evaluated once, at the end.
TRAIN_DEFAULTS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "eval_on_start": False,
    "save_strategy": "steps",
    "save_total_limit": 1,
    "show_samples": 0,
}
BASE = "base model"


@dataclass(frozen=True)
class Step:
    """A command of a run.

    Attributes:
        run: id of a [`Trial`], or of a base model on a data set.
        kind: "train", "validation", "test", or "inspect" (confidence of the base model).
        command: arguments of `bft-trl`.
        trial: None for a base model.
        options: hash of what decides the result of a base model, whose name has none; "" for a trial.
    """

    run: str
    kind: str
    command: tuple[str, ...]
    trial: Trial | None = None
    options: str = ""


class Steps:
    """Which steps a study has, which of them can start, and what was chosen."""

    def __init__(self, study: Study, inputs: Mapping[str, Inputs], bases: Mapping[str, str], output_dir: Path) -> None:
        self.study, self.inputs, self.bases, self.output_dir = study, inputs, bases, output_dir

    def folder(self, run: str) -> Path:
        """Returns the folder of a run."""
        return self.output_dir / "runs" / run

    def ready(self, records: Records, busy: Collection[str] = ()) -> list[Step]:
        """Returns the steps that are neither done nor failed and whose inputs are there, in order.

        Args:
            records: of the study.
            busy: runs that are left out, because one of their steps is running.
        """
        known = [step for step in self.known(records) if step.run not in busy]
        left = [step for step in known if records.status(step.run, step.kind) is None]
        # An adapter that was deleted, or left on another machine, is trained again if an evaluation still needs it.
        without = {s.run for s in left if s.kind != "train" and s.trial and not self.has_adapter(s.run)}
        again = [
            s for s in known if s.kind == "train" and s.run in without and records.status(s.run, "train") == "done"
        ]
        return [*again, *(s for s in left if s.run not in without or s.kind == "train")]

    def known(self, records: Records) -> list[Step]:
        """Returns all steps that are known so far: those of the seeds are known once the tuned options are chosen.

        On each base model and data set all objectives are tuned, then all run with the first seed, and so on.
        """
        steps = []
        for model, data, objectives in self.study.grid():
            base = base_run(model, data)
            options = self.study.base_options(model, data)
            steps += [
                Step(base, kind, self._base_command(kind, model, data), options=options)
                for kind in ("inspect", "test")
            ]
            tuning = [self.study.tuning(model, data, objective) for objective in objectives]
            trials = [trial for found in tuning if len(found) > 1 for trial in found]
            steps += [self._step(trial, kind) for trial in trials for kind in ("train", "validation")]
            chosen = [self.chosen(records, model, data, objective) for objective in objectives]
            seeds = [
                self.study.trial(model, data, trial.objective, dict(trial.tuned), seed)
                for seed in self.study.seeds
                for trial in chosen
                if trial is not None
            ]
            steps += [self._step(trial, kind) for trial in seeds for kind in ("train", "test")]
        return list({(step.run, step.kind): step for step in steps}.values())

    def count(self) -> dict[str, int]:
        """Returns the number of steps of each kind, also of those that are not known yet."""
        cells = [(m, d, o) for m, d, objectives in self.study.grid() for o in objectives]
        values, seeds = len(self.study.tuning(*cells[0])), len(self.study.seeds)
        grid = len(list(self.study.grid()))
        tuned = len(cells) * values if values > 1 else 0
        return {
            "train": tuned + len(cells) * (seeds - (values > 1)),
            "validation": tuned,
            "test": len(cells) * seeds + grid,
            "inspect": grid,
        }

    def chosen(self, records: Records, model: str, data: str, objective: str) -> Trial | None:
        """Returns the run with the best score on the validation documents; None before all of them have one.

        The first one wins a tie. None if all of them failed.
        """
        trials = self.study.tuning(model, data, objective)
        if len(trials) == 1:
            return trials[0]
        scores = [records.validation_score(trial.id, self.study.metrics(data)[0]) for trial in trials]
        known = [score for score in scores if score is not None]
        if len(known) < len(trials) or max(known) == -np.inf:
            return None
        return trials[int(np.argmax(known))]

    def losers(self, records: Records) -> list[Trial]:
        """Returns the tuning runs that were not chosen, of the objectives for which the choice is made."""
        found = []
        for model, data, objectives in self.study.grid():
            for objective in objectives:
                chosen = self.chosen(records, model, data, objective)
                found += [t for t in self.study.tuning(model, data, objective) if chosen and t != chosen]
        return found

    def is_complete(self, step: Step) -> bool:
        """Returns whether the folder of a step has all that its command writes."""
        folder = self.folder(step.run)
        if step.kind == "train":
            return self.has_adapter(step.run)
        # What each command writes last.
        return (folder / step.kind / ("index.html" if step.kind == "inspect" else "settings.json")).is_file()

    def has_adapter(self, run: str) -> bool:
        """Returns whether the training of a run has ended, uninterrupted, and its adapter is there."""
        file = self.folder(run) / "train" / "summary.json"
        return file.is_file() and not read_json_object(file).get("interrupted")

    def _step(self, trial: Trial, kind: str) -> Step:
        folder, data = self.folder(trial.id), self.inputs[trial.data]
        if kind == "train":
            return Step(trial.id, kind, ("train", "--config", str(folder / "train.yaml")), trial)
        return Step(trial.id, kind, self._eval(kind, trial.data, data, folder, "--adapter", folder / "train"), trial)

    def _eval(self, kind: str, name: str, data: Inputs, folder: Path, *model: Any) -> tuple[str, ...]:
        where = data.validation_dir if kind == "validation" else data.test_dir
        options = {"tasks": data.tasks, "data_dir": where, "output_dir": folder / kind, "encoder": wheel_encoder()}
        options |= self.study.eval_options(name)
        words = [*model, *(word for key, value in options.items() for word in as_flag(key, value))]
        return ("eval", *map(str, words), "--allow_missing", "--overwrite_output_dir")

    def _base_command(self, kind: str, model: str, data: str) -> tuple[str, ...]:
        inputs, folder = self.inputs[data], self.folder(base_run(model, data))
        given = self.study.train_options(model, data)
        base: tuple[str, ...] = ("--model_name_or_path", self.bases[model])
        if given.get("load_in_4bit", True):
            base = (*base, "--load_in_4bit")  # as in training
        if kind == "test":
            return self._eval(kind, data, inputs, folder, *base)
        rows = ["--dataset_name", inputs.dataset_name, "--num_samples", "100"]
        rows += ["--max_length", f"{given.get('max_length', 1024)}"]
        rows += [word for name in ROW_OPTIONS if name in given for word in as_flag(name, given[name])]
        return ("inspect", *base, *rows, "--output_dir", str(folder / "inspect"))

    def train_config(self, trial: Trial) -> dict[str, Any]:
        """Returns the content of a run's train.yaml."""
        options, _, _ = json.loads(trial.options)
        where = {
            "model_name_or_path": self.bases[trial.model],
            "dataset_name": self.inputs[trial.data].dataset_name,
            "output_dir": str(self.folder(trial.id) / "train"),
        }
        return {**TRAIN_DEFAULTS, **options, **where}


def base_run(model: str, data: str) -> str:
    """Returns the id of a base model on a data set."""
    return as_name(f"{BASE}-{model}-{data}")


def as_flag(name: str, value: Any) -> list[str]:
    """Returns an option as words of a command line."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [] if value is None else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def shown(step: Step) -> str:
    """Returns the command of a step to repeat it by hand."""
    return shlex.join(["bft-trl", *step.command])


def measured(step: Step, folder: Path) -> tuple[dict[str, Any], pd.DataFrame | None, pd.DataFrame | None]:
    """Returns what a finished step left in the folder of its run: numbers, scores and answers."""
    if step.kind == "inspect":
        metrics = read_json_object(folder / "inspect" / "report.json")["metrics"]
        return {"confidence": metrics["token_confidence"], "nll": metrics["nll"]}, None, None
    if step.kind == "train":
        summary = read_json_object(folder / "train" / "summary.json")
        history = pd.read_csv(folder / "train" / "metrics.csv")
        # Tokens and seconds of a run that was resumed are those of its last part.
        tokens = history["num_tokens"].dropna().tail(1).max() if "num_tokens" in history else np.nan
        memory = summary["peak_memory"]
        return (
            {
                "nll": summary["eval_nll_after"],
                "train_seconds": summary["seconds"],
                "memory_gib": memory.get("cuda_gib", memory.get("host_gib")),
                "tokens_per_second": tokens / summary["seconds"] if summary["seconds"] else None,
                "steps": summary["steps"],
            },
            None,
            None,
        )
    scores = pd.read_parquet(folder / step.kind / "scores.parquet")
    answers = pd.read_parquet(folder / step.kind / "answers.parquet")
    settings = read_json_object(folder / step.kind / "settings.json")
    kinds = {name: entry.get("kind", "model") for name, entry in settings["models"].items()}
    scores["kind"] = scores["model"].map(kinds).fillna("model")
    scores["name"] = scores["model"].where(scores["kind"] != "model", "")  # not the path of an adapter
    better = {task: entry.get("higher_is_better", {}) for task, entry in settings["tasks"].items()}
    scores["higher_is_better"] = [
        better.get(task, {}).get(metric.partition("[")[0], True)
        for task, metric in zip(scores["task"], scores["metric"], strict=True)
    ]
    models = [name for name, kind in kinds.items() if kind == "model"]
    return {}, scores, answers[answers["model"].isin(models)]
