"""Reads the YAML file of a study and reports all of its problems together."""

import argparse
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

import yaml

from bft_trl.study.inputs import BUILDERS
from bft_trl.study.plan import Study, as_name, is_sft
from bft_trl.study.report import label
from bft_trl.study.steps import BASE, base_run

# Options of `bft-trl train` besides the fields of TRL's and our dataclasses; those that the study sets, or that it
# cannot continue with; and options of `bft-trl eval`.
TRAIN_OPTIONS = {"dataset_config", "prompt_column", "completion_columns", "eval_samples"}
NOT_TRAIN_OPTIONS = {"output_dir", "seed", "dataset_name", "model_name_or_path", "resume_from_checkpoint"}
EVAL_OPTIONS: Mapping[str, Any] = {
    "batch_size": int | str,
    "gen_kwargs": str | list,
    "limit": int | float,
    "num_fewshot": int,
    **dict.fromkeys(("apply_chat_template", "load_in_4bit"), bool),
    **dict.fromkeys(("system_instruction", "device", "encoder", "background", "ontology", "include_path"), str),
}
MODEL_OPTIONS: Mapping[str, Any] = {"model_name_or_path": str, "data": list, "objectives": list}
DATA_OPTIONS: Mapping[str, Any] = {
    **dict.fromkeys(("dataset_name", "validation_dir", "test_dir"), str),
    **dict.fromkeys(("train", "eval"), dict),
    **dict.fromkeys(BUILDERS, dict | None),
    "tasks": str | list,
    "metrics": list,
}
_KINDS = {str: "a text", list: "a list", dict: "a mapping", bool: "true or false", int: "a number, 0 or more"}


class _Loader(yaml.SafeLoader):
    """Refuses repeated names, of which YAML keeps the last, and reads 1e-3 as a number."""


def _unique(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [loader.construct_object(key) for key, _ in node.value]
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"line {node.start_mark.line + 1}: repeated name {', '.join(repeated)}")
    return dict(zip(names, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_study(path: Path, problems: list[str] | None = None) -> Study:
    """Returns the study in a YAML file.

    Args:
        path: file.
        problems: gets the problems of names and values, to be reported with others; None raises ValueError for them.

    Raises ValueError with all problems that the file itself shows, or that keep it from being read.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:  # TypeError: a name that is a list
        raise ValueError(f"`study={str(path)!r}` cannot be read: {' '.join(str(error).split())}") from error
    found = _shape_problems(content) or [*_type_problems(content)]
    readable = not found
    found = found or [*_name_problems(content), *_collisions(content), *_value_problems(Study(**content))]
    if problems is not None and readable:
        problems += found
    elif found:
        raise ValueError(f"`study={str(path)!r}` has problems:\n  " + "\n  ".join(found))
    return Study(**content)


def _shape_problems(content: Any) -> list[str]:
    """Problems that keep the other checks from reading the content."""
    names = [found.name for found in fields(Study)]
    if not isinstance(content, dict):
        return [f"it must have the keys {', '.join(names)}"]
    problems = [_unknown("the key", key, names) for key in content if key not in names]
    problems += [f"`{key}` is missing" for key in ("models", "data", "objectives", "seeds") if not content.get(key)]
    mappings = ("models", "data", "objectives", "tune", "train", "eval")
    problems += [f"`{k}` must be a mapping of names" for k in mappings if not isinstance(content.get(k, {}), dict)]
    seeds = content.get("seeds", [])
    whole = isinstance(seeds, list) and all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds):
        problems.append(f"`seeds: {seeds}` must be a list of different whole numbers, from 0 to 2**32 - 1")
    for group in () if problems else ("models", "data", "objectives"):
        found = [name for name, entry in content[group].items() if not isinstance(entry, dict)]
        problems += [f"`{group}: {name}` must be a mapping of options" for name in found]
        bad = [name for name in content[group] if not (isinstance(name, str) and re.search(r"\w", name))]
        problems += [f"`{group}`: the name {name!r} must be a text with a letter or a digit" for name in bad]
    tune = {} if problems else content.get("tune", {})
    return problems + [
        f"`tune: {name}` must be a list of different numbers or texts"
        for name, values in tune.items()
        if not (values and isinstance(values, list) and len({*map(str, values)}) == len(values))
        or any(isinstance(value, list | dict) for value in values)
    ]


def _type_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Options whose value has another type."""
    for place, options, types in _typed(content):
        for name in types.keys() & options.keys():
            value, known = options[name], types[name]
            if value is None:
                wrong = known in (list, dict)
            else:
                negative = isinstance(value, int | float) and value < 0
                wrong = negative or not isinstance(value, known) or (isinstance(value, bool) and known is not bool)
            if wrong:
                kinds = [_KINDS[kind] for kind in get_args(known) or (known,) if kind in _KINDS]
                yield f"`{place}: {name}`: {value!r} must be {' or '.join(kinds)}"


def _typed(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yields places of options, the options, and the type of each value."""
    yield "eval", content.get("eval", {}), EVAL_OPTIONS
    for name, entry in content["models"].items():
        yield f"models: {name}", entry, MODEL_OPTIONS
    for name, entry in content["data"].items():
        yield f"data: {name}", entry, DATA_OPTIONS
        if isinstance(options := entry.get("eval"), dict):
            yield f"data: {name}: eval", options, EVAL_OPTIONS
        for builder, made in BUILDERS.items():
            if isinstance(options := entry.get(builder), dict):
                types = {key: str if value is None else type(value) for key, value in made.defaults.items()}
                yield f"data: {name}: {builder}", options, types


def _name_problems(content: Mapping[str, Any]) -> Iterator[str]:
    if len(content["objectives"]) < 2:
        yield "`objectives` has nothing to compare: add another one"
    if not any(is_sft(objective) for objective in content["objectives"].values()):
        yield "`objectives` has no SFT arm: add one with `loss_type: nll`"
    else:
        baseline = Study(**content).baseline
        for name, entry in content["models"].items():
            if baseline not in entry.get("objectives", [baseline]):
                yield f"`models: {name}: objectives` has no {baseline}, which the others are compared with"
    for name, entry in content["models"].items():
        if "data" in entry and not entry["data"]:
            yield f"`models: {name}: data` is empty"
    for place, options, known in _places(content):
        yield from (_unknown(f"`{place}`:", name, known) for name in options if name not in [*known])
        tuned = [name for name in options if name in content.get("tune", {})]
        if place not in ("train", "tune"):
            yield from (f"`{place}: {name}` has no effect, because `tune` sets it" for name in tuned)
        if not place.startswith("objectives: "):
            of_objectives = [name for name in ("loss_type", "anchor_coef") if name in options]
            yield from (f"`{place}: {name}` must be under the objectives" for name in of_objectives)
    for name, entry in content["data"].items():
        sources = [source for source in ("dataset_name", *BUILDERS) if source in entry]
        if len(sources) != 1:
            yield f"`data: {name}` needs one of dataset_name, {', '.join(BUILDERS)}"
        if "dataset_name" in entry:
            missing = [key for key in ("tasks", "validation_dir", "test_dir", "metrics") if not entry.get(key)]
            yield from (f"`data: {name}` has a dataset_name and needs `{key}`" for key in missing)


def _places(content: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields every place of options, the options, and the names that it may have."""
    train = _train_names()
    yield "train", content.get("train", {}), train
    yield "tune", content.get("tune", {}), train
    yield "eval", content.get("eval", {}), EVAL_OPTIONS
    for name, options in content["objectives"].items():
        yield f"objectives: {name}", options, train
    for name, entry in content["models"].items():
        yield f"models: {name}", entry, {*train, *MODEL_OPTIONS}
        for group in ("data", "objectives"):
            yield f"models: {name}: {group}", entry.get(group, []), content[group]
    for name, entry in content["data"].items():
        yield f"data: {name}", entry, DATA_OPTIONS
        yield f"data: {name}: train", entry.get("train", {}), train
        yield f"data: {name}: eval", entry.get("eval", {}), EVAL_OPTIONS
        for builder in BUILDERS.keys() & entry.keys():
            yield f"data: {name}: {builder}", entry[builder] or {}, BUILDERS[builder].defaults


def _train_names() -> set[str]:
    from trl import ModelConfig

    from bft_trl.config import BFTConfig

    names = {found.name for options in (BFTConfig, ModelConfig) for found in fields(options)}
    return (names | TRAIN_OPTIONS) - NOT_TRAIN_OPTIONS


def _collisions(content: Mapping[str, Any]) -> Iterator[str]:
    """Names that would share a folder, or a place on the page."""
    if BASE in content["objectives"]:
        yield f"`objectives: {BASE}`: the page uses this name for the models before training"
    for group in ("models", "data", "objectives"):
        for first, second in combinations(content[group], 2):
            if as_name(first) == as_name(second):
                yield f"`{group}`: {first!r} and {second!r} would have the same folders"
    for first, second in combinations(product(content["models"], content["data"]), 2):
        labels = sorted(label(*names, "") for names in (first, second))
        if base_run(*first) == base_run(*second) or labels[1].startswith(labels[0]):
            yield f"`models`, `data`: {', '.join(first)!r} and {', '.join(second)!r} cannot be told apart"


def _value_problems(study: Study) -> list[str]:
    """What `BFTConfig` and TRL's `ModelConfig` say about the options of each run, each problem once."""
    import torch
    from trl import ModelConfig, TrlParser

    from bft_trl.config import BFTConfig

    lists = {found.name for kind in (BFTConfig, ModelConfig) for found in fields(kind) if "list" in str(found.type)}
    problems: dict[str, str] = {}
    for model, data, objectives in study.grid():
        for objective, values in product(objectives, product(*study.tune.values())):
            tuned = dict(zip(study.tune, values, strict=True))
            options = {**study.train_options(model, data), **study.objectives[objective], **tuned}
            # A parser converts and checks texts only.
            kept = {n: v for n, v in options.items() if v is None or isinstance(v, dict) or (n in lists and v)}
            texts = {"output_dir": "study", "report_to": "none", "bf16": "False"}
            texts |= {"use_cpu": f"{not torch.cuda.is_available()}"} | {n: f"{v}" for n, v in options.items()}
            parser = TrlParser((BFTConfig, ModelConfig), exit_on_error=False)
            parser.set_defaults_with_config(**texts | kept)
            try:
                parser.parse_args_into_dataclasses([])
                if options.get("use_peft") is False:
                    raise ValueError("`use_peft=False`: a study evaluates adapters")
            except (ValueError, TypeError, argparse.ArgumentError) as error:
                problems.setdefault(str(error), f"`objectives: {objective}` ({model}, {data})")
    return [f"{place}: {error}" for error, place in problems.items()]


def _unknown(place: str, name: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(name), [str(found) for found in known], 1)
    return f"{place} {name!r} is not known" + (f"; did you mean {close[0]!r}?" if close else "")
