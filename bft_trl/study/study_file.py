"""Reads the YAML file of a study and reports all of its problems together."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from bft_trl.study.inputs import BUILDERS
from bft_trl.study.plan import Study, is_sft

# Options of `bft-trl train` besides the fields of TRL's and our dataclasses, and options of `bft-trl eval`.
TRAIN_OPTIONS = ("dataset_name", "dataset_config", "prompt_column", "completion_columns", "eval_samples")
EVAL_OPTIONS = (
    *("batch_size", "limit", "num_fewshot", "gen_kwargs", "system_instruction", "apply_chat_template", "device"),
    *("encoder", "background", "ontology", "load_in_4bit", "include_path"),
)
DATA_OPTIONS = ("dataset_name", "tasks", "validation_dir", "test_dir", "metrics", "train", "eval", *BUILDERS)


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


def read_study(path: Path) -> Study:
    """Returns the study in a YAML file. Raises ValueError with all problems that the file itself shows."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"`study={str(path)!r}` cannot be read: {' '.join(str(error).split())}") from error
    problems = _shape_problems(content) or [*_name_problems(content), *_value_problems(content)]
    if problems:
        raise ValueError(f"`study={str(path)!r}` has problems:\n  " + "\n  ".join(problems))
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
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds):
        problems.append(f"`seeds: {seeds}` must be a list of different whole numbers, 0 or more")
    for group in () if problems else ("models", "data", "objectives"):
        found = [name for name, entry in content[group].items() if not isinstance(entry, dict)]
        problems += [f"`{group}: {name}` must be a mapping of options" for name in found]
    tune = {} if problems else content.get("tune", {})
    return problems + [
        f"`tune: {k}` must be a list of values" for k, v in tune.items() if not (isinstance(v, list) and v)
    ]


def _name_problems(content: Mapping[str, Any]) -> Iterator[str]:
    if not any(is_sft(objective) for objective in content["objectives"].values()):
        yield "`objectives` has no SFT arm: add one with `loss_type: nll`"
    for place, options, known in _places(content):
        yield from (_unknown(f"`{place}`:", name, known) for name in options if name not in known)
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
        yield f"models: {name}", entry, {*train, "data", "objectives"}
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
    return (names | {*TRAIN_OPTIONS}) - {"output_dir", "seed", "dataset_name"}


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
