"""The YAML file of a study, its problems, and the runs that it asks for."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from bft_trl.study.inputs import BUILDERS

# Options of `bft-trl train` besides the fields of TRL's and our dataclasses, and options of `bft-trl eval`.
TRAIN_OPTIONS = ("dataset_name", "dataset_config", "prompt_column", "completion_columns", "eval_samples")
EVAL_OPTIONS = (
    *("batch_size", "limit", "num_fewshot", "gen_kwargs", "system_instruction", "apply_chat_template", "device"),
    *("encoder", "background", "ontology", "load_in_4bit", "include_path"),
)
DATA_OPTIONS = ("dataset_name", "tasks", "validation_dir", "test_dir", "metrics", "train", "eval", *BUILDERS)


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
        digest = hashlib.sha256(self.options.encode()).hexdigest()[:8]
        return "-".join([re.sub(r"[^\w.]+", "_", word) for word in words] + [digest])

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
        entry = {name: value for name, value in self.models[model].items() if name not in ("data", "objectives")}
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

    def metrics(self, data: str) -> list[str]:
        """Returns the metrics to compare. The tuned options are chosen by the first one."""
        entry = self.data[data]
        made = [BUILDERS[name].metrics for name in BUILDERS if name in entry]
        return list(entry.get("metrics") or made[0])


def is_sft(objective: Mapping[str, Any]) -> bool:
    """Whether an objective is plain SFT: `loss_type: nll` without an anchor."""
    return objective.get("loss_type") == "nll" and not objective.get("anchor_coef")


def read_study(path: Path) -> Study:
    """Returns the study in a YAML file. Raises ValueError with all problems that the file itself shows."""
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_unique_keys(yaml))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"`study={str(path)!r}` cannot be read: {' '.join(str(error).split())}") from error
    problems = _problems(content)
    if problems:
        raise ValueError(f"`study={str(path)!r}` has problems:\n  " + "\n  ".join(problems))
    return Study(**content)


def _unique_keys(yaml: Any) -> Any:
    """A safe loader that refuses repeated keys, which YAML would overwrite silently: two arms with one name."""

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> Any:
        keys = [loader.construct_object(key) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"line {node.start_mark.line + 1}: repeated name {', '.join(repeated)}")
        return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    # "1e-3" is a text in YAML 1.1, and a number for every reader of a configuration.
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
    return Loader


def _problems(content: Any) -> list[str]:
    names = {found.name: found.type for found in fields(Study)}
    if not isinstance(content, dict):
        return [f"it must have the keys {', '.join(names)}"]
    problems = [_unknown("key", key, names) for key in content if key not in names]
    problems += [f"`{key}` is missing" for key in ("models", "data", "objectives", "seeds") if not content.get(key)]
    mappings = ("models", "data", "objectives", "tune", "train", "eval")
    problems += [f"`{k}` must be a mapping of names" for k in mappings if not isinstance(content.get(k, {}), dict)]
    seeds = content.get("seeds", [])
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        problems.append(f"`seeds: {seeds}` must be a list of whole numbers, 0 or more")
    elif len(set(seeds)) < len(seeds):
        problems.append(f"`seeds: {seeds}` has a seed twice")
    if problems:
        return problems
    for group in ("models", "data", "objectives"):
        found = [name for name, entry in content[group].items() if not isinstance(entry, dict)]
        problems += [f"`{group}: {name}` must be a mapping of options" for name in found]
    problems += [
        f"`tune: {k}` must be a list of values"
        for k, v in content.get("tune", {}).items()
        if not isinstance(v, list) or not v
    ]
    if problems:
        return problems
    if not any(is_sft(objective) for objective in content["objectives"].values()):
        problems.append("`objectives` has no SFT arm: add one with `loss_type: nll`")
    known_train = _train_names()
    for place, options in _train_places(content):
        problems += [_unknown(place, name, known_train) for name in options if name not in known_train]
    for name, entry in content["models"].items():
        for group in ("data", "objectives"):
            found = [found for found in entry.get(group, []) if found not in content[group]]
            problems += [_unknown(f"`models: {name}: {group}`:", found, content[group]) for found in found]
    for name, entry in content["data"].items():
        problems += _data_problems(name, entry)
    for place, options in [("`eval`:", content.get("eval", {}))] + [
        (f"`data: {n}: eval`:", e.get("eval", {})) for n, e in content["data"].items()
    ]:
        problems += [_unknown(place, name, EVAL_OPTIONS) for name in options if name not in EVAL_OPTIONS]
    return problems or _value_problems(content)


def _train_places(content: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every place of training options, and the options."""
    places = [("`train`:", content.get("train", {})), ("`tune`:", content.get("tune", {}))]
    places += [(f"`objectives: {name}`:", options) for name, options in content["objectives"].items()]
    places += [(f"`data: {name}: train`:", entry.get("train", {})) for name, entry in content["data"].items()]
    models = {n: {k: v for k, v in e.items() if k not in ("data", "objectives")} for n, e in content["models"].items()}
    return [*places, *((f"`models: {name}`:", options) for name, options in models.items())]


def _train_names() -> set[str]:
    from trl import ModelConfig

    from bft_trl.config import BFTConfig

    names = {found.name for options in (BFTConfig, ModelConfig) for found in fields(options)}
    return (names | {*TRAIN_OPTIONS}) - {"output_dir", "seed", "dataset_name"}


def _data_problems(name: str, entry: Mapping[str, Any]) -> list[str]:
    problems = [_unknown(f"`data: {name}`:", key, DATA_OPTIONS) for key in entry if key not in DATA_OPTIONS]
    builders = [builder for builder in BUILDERS if builder in entry]
    if len(builders) + ("dataset_name" in entry) != 1:
        problems.append(f"`data: {name}` needs one of dataset_name, {', '.join(BUILDERS)}")
    if "dataset_name" in entry:
        for key in ("tasks", "validation_dir", "test_dir", "metrics"):
            if not entry.get(key):
                problems.append(f"`data: {name}` has a dataset_name and needs `{key}`")
    for builder in builders:
        known = BUILDERS[builder].defaults
        problems += [
            _unknown(f"`data: {name}: {builder}`:", key, known) for key in entry[builder] or {} if key not in known
        ]
    return problems


def _value_problems(content: Mapping[str, Any]) -> list[str]:
    """What `BFTConfig` says about the values of each objective."""
    from bft_trl.config import BFTConfig

    known = {found.name for found in fields(BFTConfig)}
    problems = []
    for name, objective in content["objectives"].items():
        options = {key: value for key, value in objective.items() if key in known}
        try:
            BFTConfig("study", use_cpu=True, bf16=False, report_to="none", **options)
        except (ValueError, TypeError) as error:
            problems.append(f"`objectives: {name}`: {error}")
    return problems


def _unknown(place: str, name: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(name), [str(found) for found in known], 1)
    return f"{place} {name!r} is not known" + (f"; did you mean {close[0]!r}?" if close else "")
