"""`bft-trl eval`: lm-eval with what the run folder knows filled in, and with the tasks that ship with bft_trl."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bft_trl.atomic import check_folder, replacing_folder
from bft_trl.data.evaluation_sets import load_background
from bft_trl.data.tables import read_json_object
from bft_trl.run_folder import Run

logger = logging.getLogger(__name__)

# The name of lm-eval's Hugging Face model with a quantized base, registered when it is needed.
QUANTIZED = "bft-quantized"


def tasks_path() -> Path:
    """The folder of the lm-eval tasks: inside an installed package, beside it in a clone."""
    package = Path(__file__).parent
    installed = package / "eval_tasks"
    return installed if installed.is_dir() else package.parent / "eval_tasks"


def evaluate(
    run: Run,
    tasks: Sequence[str],
    out: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    passed_on: Sequence[str] = (),
) -> dict[str, str]:
    """Runs lm-eval with logged samples into `out`.

    Args:
        run: what to evaluate.
        tasks: names of tasks and groups, ours and lm-eval's own.
        out: folder for lm-eval's results and samples.
        metadata: data_dir, encoder and background of our tasks.
        passed_on: further flags of `lm_eval run`.

    Returns:
        Tasks that were left out because their data are missing, with the reason. The others ran.
    """
    from lm_eval.__main__ import cli_evaluate

    ours = {"--output_path", "-o", "--log_samples", "--model_args"}
    taken = [flag for flag in passed_on if flag.split("=")[0] in ours]
    if taken:
        raise ValueError(f"`{taken[0]}` is set by `bft-trl eval` itself; use --out, --model and --adapter.")
    settings = dict(metadata or {})
    present, missing = available(tasks, settings)
    if not present:
        raise ValueError("None of the tasks has its data: " + "; ".join(missing.values()))
    for task, reason in missing.items():
        logger.warning("Left out %s: %s", task, reason)
    if run.quantization is not None:
        _register_quantized(run.quantization)
    check_folder(out)  # lm-eval only warns where it cannot save, after all the work
    own = sys.argv
    with replacing_folder(out) as written:  # lm-eval writes in place
        arguments = [
            *("--model", QUANTIZED if run.quantization is not None else "hf"),
            *("--model_args", json.dumps(run.model_args())),
            *("--tasks", ",".join(present)),
            *("--include_path", str(tasks_path())),
            *("--output_path", str(written)),
            "--log_samples",
            *(["--metadata", json.dumps(settings)] if settings else []),
            *(["--apply_chat_template"] if run.chat_template else []),
            *passed_on,
        ]
        logger.info("lm_eval run %s", " ".join(arguments))
        sys.argv = ["lm_eval", "run", *arguments]  # the entry point takes no other arguments
        try:
            cli_evaluate()
        finally:
            sys.argv = own
        _check_written(written, out)
    return missing


def _check_written(written: Path, out: Path) -> None:
    """Raises OSError where results or samples are missing or cut short: lm-eval only logs what it could not save."""
    results = list(written.rglob("results_*.json"))
    if not results:
        raise OSError(f"lm-eval saved no results in {out}; its last lines say why.")
    for file in results:
        try:
            counts = read_json_object(file)["n-samples"]
        except ValueError as error:
            raise OSError(f"{out}: the results were cut short while they were saved. Is the disk full?") from error
        for task, count in counts.items():
            samples = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
            lines = samples.read_bytes().count(b"\n") if samples.is_file() else 0
            if lines < count["effective"]:
                raise OSError(
                    f"{out}: of {task} {lines} of {count['effective']} samples were saved. Is the disk full?"
                )


def available(tasks: Sequence[str], metadata: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Names to hand to lm-eval, and those of our tasks whose data are not there, with the reason.

    A group of which a part is missing is replaced by the tasks that are there: its average would be another one.
    Raises ValueError for data that are there but broken, and for an encoder that cannot be loaded.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    index = TaskManager(include_path=str(tasks_path()), include_defaults=False).task_index
    present: list[str] = []
    missing: dict[str, str] = {}
    for name in tasks:
        if name not in index:  # one of lm-eval's own
            present.append(name)
            continue
        entry = load_yaml(index[name].yaml_path, resolve_func=True)
        members = entry["task"] if isinstance(entry["task"], list) else [name]
        found = []
        for member in members:
            config = load_yaml(index[member].yaml_path, resolve_func=True)
            scored = "class" in config and metadata.get("encoder") != "none"
            try:
                config["custom_dataset"](**metadata)
                if scored and metadata.get("background") != "none":
                    load_background(metadata.get("background"), data_dir=metadata.get("data_dir"))
                found.append(member)
            except OSError as error:
                missing[member] = str(error)
            if member in found and scored:
                from bft_trl.encoders import MEDCPT, load_encoder

                load_encoder(metadata.get("encoder", MEDCPT))
        present += [name] if len(found) == len(members) else found
    return list(dict.fromkeys(present)), missing


def _register_quantized(quantization: Mapping[str, Any]) -> None:
    """lm-eval 0.4.13 hands `load_in_4bit` to from_pretrained, which transformers 5 refuses: it wants a config."""
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from transformers.quantizers import AutoQuantizationConfig

    @register_model(QUANTIZED)
    class QuantizedHFLM(HFLM):
        def _create_model(self, *args: Any, **kwargs: Any) -> None:
            kwargs["quantization_config"] = AutoQuantizationConfig.from_dict(dict(quantization))
            super()._create_model(*args, **kwargs)
