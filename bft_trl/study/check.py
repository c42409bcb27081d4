"""Everything about a study that can be wrong, found before anything trains."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bft_trl.evaluation.runner import load_tasks
from bft_trl.io import check_folder
from bft_trl.models import Run, demo_model, load_tokenizer
from bft_trl.study.inputs import Inputs, find_leaks, prepare, training_file
from bft_trl.study.plan import Study
from bft_trl.study.steps import Steps

logger = logging.getLogger(__name__)

# Options of `bft-trl eval` without which a metric is left out.
NEEDS = {
    "similarity": ("encoder",),
    "percentile": ("encoder", "background"),
    **dict.fromkeys(("go_hit", "go_lin"), ("ontology",)),
}


def check_study(study: Study, output_dir: Path, *, allow_leaks: bool = False, problems: Sequence[str] = ()) -> Steps:
    """Writes the data of a study to `output_dir`/data and returns its steps.

    Args:
        study: of [`read_study`].
        output_dir: folder of the study.
        allow_leaks: continue although evaluation documents are in the training data.
        problems: of the file, to be reported with the others; the data sets that they name are not loaded.

    Raises ValueError with all problems: those, data and tasks that cannot be loaded, leaks, base models that cannot be
    loaded, and too little disk.
    """
    check_folder(output_dir)
    problems = list(problems)
    if len(study.seeds) == 1:
        logger.warning("One seed: the intervals will not include the variance over training runs.")
    named = {name for name in study.data if any(problem.startswith(f"`data: {name}") for problem in problems)}
    data = {name: entry for name, entry in study.data.items() if name not in named}
    inputs = {name: _prepared(name, entry, output_dir, problems) for name, entry in data.items()}
    found = {name: given for name, given in inputs.items() if given is not None}
    for name, given in found.items():
        problems += [*_task_problems(name, given, study), *_leak_problems(name, given, study, allow_leaks)]
    bases, sizes = {}, {}
    for name, entry in study.models.items():
        try:
            bases[name] = str(entry.get("model_name_or_path") or demo_model().path)
            sizes[name] = _adapter_bytes(bases[name], {**study.train, **entry})
        except (ValueError, OSError, ModuleNotFoundError) as error:
            problems.append(f"`models: {name}`: {str(error).splitlines()[0]}")
    if not problems:
        steps = Steps(study, found, bases, output_dir)
        problems += _disk_problems(steps, sizes)
    if problems:
        raise ValueError(f"The study has {len(problems)} problems:\n  " + "\n  ".join(problems))
    return steps


def _prepared(name: str, entry: Mapping[str, Any], output_dir: Path, problems: list[str]) -> Inputs | None:
    try:
        return prepare(name, entry, output_dir / "data" / name.replace("/", "_"))
    except (ValueError, OSError) as error:
        problems.append(f"`data: {name}`: {error}")
        return None


def _task_problems(name: str, inputs: Inputs, study: Study) -> list[str]:
    """Tasks and metrics that do not exist, and data without documents to choose on or to report on."""
    options = study.eval_options(name)
    without = {
        needed
        for needed, default in (("encoder", ""), ("background", ""), ("ontology", "none"))
        if options.get(needed, default) == "none"
    }
    problems = [
        f"`data: {name}: metrics`: {metric!r} needs `{needed}` under `eval`"
        for metric in study.metrics(name)
        for needed in NEEDS.get(metric, ())
        if needed in without
    ]
    for part, folder in (("validation", inputs.validation_dir), ("test", inputs.test_dir)):
        metadata = {"data_dir": str(folder), "encoder": "none"}  # nothing is scored here
        include_path = options.get("include_path")
        try:
            manager, loaded, left_out = load_tasks(
                inputs.tasks.split(","), metadata=metadata, include_path=include_path
            )
        except (ValueError, OSError) as error:
            problems.append(f"`data: {name}`: {error}")
            continue
        if not loaded:
            problems.append(f"`data: {name}` has no {part} documents: {'; '.join(left_out.values())}")
            continue
        tasks = manager.load(loaded)["tasks"].values()
        known = {entry["metric"] for task in tasks for entry in task.config.metric_list or []}
        missing = [metric for metric in study.metrics(name) if metric not in known]
        if missing and part == "test":
            problems.append(f"`data: {name}: metrics`: {missing} are not of its tasks, which have {sorted(known)}")
    return problems


def _leak_problems(name: str, inputs: Inputs, study: Study, allow_leaks: bool) -> list[str]:
    """Training rows that cannot be read, and evaluation documents among them."""
    model = next(iter(study.models))
    try:
        with TemporaryDirectory() as folder:
            train = training_file(inputs, study.train_options(model, name), Path(folder))
            leaks = find_leaks(inputs, train)
    except (ValueError, OSError) as error:
        return [f"`data: {name}`: {error}"]
    if leaks.empty or allow_leaks:
        return []
    examples = ", ".join(dict.fromkeys(f"{row.against} ({row.reason})" for row in leaks.itertuples()))
    return [f"`data: {name}`: {len(leaks)} leaks into {examples}; see `bft-trl data check`, or --allow_leaks"]


def _adapter_bytes(base: str, options: Mapping[str, Any]) -> int:
    """Size of an adapter with its last checkpoint, about. Raises ValueError or OSError without the model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    load_tokenizer(Run(base))
    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    parameters = sum(module.in_features + module.out_features for module in linear) * options.get("lora_r", 16)
    return 4 * parameters * 4  # adapter, its copy in the checkpoint and two moments of the optimizer, in float32


def _disk_problems(steps: Steps, sizes: Mapping[str, int]) -> list[str]:
    folder = next(path for path in (steps.output_dir, *steps.output_dir.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(folder).free, disk_bytes(steps, sizes)
    logger.info("Disk: about %.1f GB, %.1f GB are free.", needed / 1e9, free / 1e9)
    if needed <= free:
        return []
    return [f"`output_dir={str(steps.output_dir)!r}` needs about {needed / 1e9:.1f} GB and has {free / 1e9:.1f} GB"]


def disk_bytes(steps: Steps, sizes: Mapping[str, int]) -> int:
    """Returns the most disk that the adapters need at a time: those of all seeds, and of one choice.

    Args:
        steps: of the study.
        sizes: bytes of an adapter with its checkpoint by base model.
    """
    study = steps.study
    kept = sum(sizes[model] * len(study.seeds) * len(objectives) for model, _, objectives in study.grid())
    return kept + max(sizes.values()) * len(study.tuning(*next((m, d, o[0]) for m, d, o in study.grid())))
