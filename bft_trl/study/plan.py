"""A study: its grid, its options, and the training runs that it asks for."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from bft_trl.study.inputs import BUILDERS

# Options of training that `bft-trl inspect` has as well: how rows become prompt and answer.
ROW_OPTIONS = ("dataset_config", "prompt_column", "completion_columns", "completion_only_loss", "assistant_only_loss")


@dataclass(frozen=True)
class Trial:
    """One training run: an objective at one value of each tuned option, on one base model, data set and seed."""

    model: str
    data: str
    objective: str
    tuned: tuple[tuple[str, Any], ...]
    seed: int
    options: str  # JSON of everything that decides the result

    @property
    def id(self) -> str:
        """Name of its folder: what it is, and a hash of its options."""
        words = [self.model, self.data, self.objective, *(f"{value}" for _, value in self.tuned), f"{self.seed}"]
        return "-".join([*map(as_name, words), _hash(self.options)])

    @property
    def cell(self) -> tuple[str, str, str]:
        """Base model, data set and objective, for which the tuned options are chosen."""
        return self.model, self.data, self.objective


@dataclass(frozen=True)
class Study:
    """A grid of base models, data sets and objectives, all by name, and how each run is trained and evaluated."""

    models: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Mapping[str, Any]]
    objectives: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    eval: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The objective that the others are compared with: SFT."""
        return next(name for name, options in self.objectives.items() if is_sft(options))

    def grid(self) -> Iterator[tuple[str, str, list[str]]]:
        """Yields each base model and data set with the objectives that it is trained with."""
        for model, data in product(self.models, self.data):
            entry = self.models[model]
            if data in entry.get("data", self.data):
                yield model, data, [name for name in self.objectives if name in entry.get("objectives", [name])]

    def tuning(self, model: str, data: str, objective: str) -> list[Trial]:
        """Returns a run of the first seed for each combination of the tuned options."""
        values = [dict(zip(self.tune, found, strict=True)) for found in product(*self.tune.values())]
        return [self.trial(model, data, objective, found, self.seeds[0]) for found in values]

    def trial(self, model: str, data: str, objective: str, tuned: Mapping[str, Any], seed: int) -> Trial:
        """Returns the run of an objective at these values of the tuned options."""
        train = {**self.train_options(model, data), **self.objectives[objective], **tuned, "seed": seed}
        options = json.dumps([train, self.data_source(data), self.eval_options(data)], sort_keys=True)
        return Trial(model, data, objective, tuple(tuned.items()), seed, options)

    def train_options(self, model: str, data: str) -> dict[str, Any]:
        """Returns the training options of a base model and a data set; the more special ones override."""
        others = ("data", "objectives", "model_name_or_path")  # the name stands for the place, which may differ
        entry = {name: value for name, value in self.models[model].items() if name not in others}
        return {**self.train, **self.data[data].get("train", {}), **entry}

    def eval_options(self, data: str) -> dict[str, Any]:
        """Returns the evaluation options of a data set."""
        return {**self.eval, **self.data[data].get("eval", {})}

    def data_source(self, data: str) -> dict[str, Any]:
        """Returns what decides which rows a data set has, without the folder of the publishers' files."""
        entry = {name: value for name, value in self.data[data].items() if name not in ("train", "eval", "metrics")}
        for name in BUILDERS.keys() & entry.keys():
            entry[name] = {key: value for key, value in (entry[name] or {}).items() if key != "data_dir"}
        return entry

    def base_options(self, model: str, data: str) -> str:
        """Returns a hash of what decides what the base model measures, but for the model."""
        names = ("load_in_4bit", "max_length", *ROW_OPTIONS)
        train = {name: value for name, value in self.train_options(model, data).items() if name in names}
        return "base-" + _hash(json.dumps([train, self.data_source(data), self.eval_options(data)], sort_keys=True))

    def metrics(self, data: str) -> list[str]:
        """Returns the metrics to compare. The tuned options are chosen by the first one."""
        entry = self.data[data]
        made = [BUILDERS[name].metrics for name in BUILDERS if name in entry]
        return list(entry.get("metrics") or made[0])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def as_name(text: str) -> str:
    """Returns a text as part of the name of a folder."""
    return re.sub(r"[^\w.]+", "_", text)


def is_sft(objective: Mapping[str, Any]) -> bool:
    """Whether an objective is plain SFT: `loss_type: nll` without an anchor."""
    return objective.get("loss_type") == "nll" and not objective.get("anchor_coef")
