"""`bft-trl eval`: lm-eval with what the run folder knows filled in, and with the tasks that ship with bft_trl."""

import argparse
import functools
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bft_trl.data.evaluation_sets import load_background
from bft_trl.data.tables import read_json_object
from bft_trl.io import atomic_folder, check_folder
from bft_trl.models import Run

logger = logging.getLogger(__name__)

# The name of lm-eval's Hugging Face model with a quantized base, registered when it is needed.
QUANTIZED = "bft-quantized"
# Flags of lm-eval that are ours to set.
OURS = {
    "--output_path": ("-o", "--out"),
    "--log_samples": ("-s", "--out"),
    "--model_args": ("-a", "--model and --adapter"),
    "--tasks": ("-t", "--tasks"),
    "--model": ("-M", "--model and --adapter"),
}
# A credential, by the name that goes before it or by its form; "tokenizer=" and "eos_token=" are none.
_CREDENTIAL = re.compile(
    r"(?<![a-z_])(?:(?:hf|hub|auth|access)_)*(?:token|api_key|password|secret)\b[\"']?\s*[=:]|\bhf_[A-Za-z0-9]{20,}",
    re.IGNORECASE,
)


def tasks_path() -> Path:
    """The folder of the lm-eval tasks: inside an installed package, beside it in a clone."""
    package = Path(__file__).parents[1]
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

    check_flags(passed_on)
    settings = dict(metadata or {})
    present, missing = available(tasks, settings)
    if not present:
        raise ValueError("None of the tasks has its data: " + "; ".join(missing.values()))
    for task, reason in missing.items():
        logger.warning("Left out %s: %s", task, reason)
    if given(passed_on, "--trust_remote_code", "--trust_remote_code"):
        logger.warning("--trust_remote_code: runs the Python files that come with %s, with all your rights", run.base)
    if run.quantization is not None:
        _register_quantized(run.quantization)
    check_folder(out, name="out")  # lm-eval only warns where it cannot save, after all the work
    own = sys.argv
    with atomic_folder(out) as written:  # lm-eval writes in place
        arguments = [
            *("--model", QUANTIZED if run.quantization is not None else "hf"),
            *("--model_args", json.dumps(run.model_args())),
            *("--tasks", ",".join(present)),
            *("--include_path", include_path(present, passed_on)),
            *("--output_path", str(written)),
            "--log_samples",
            *(["--metadata", json.dumps(settings)] if settings else []),
            *(["--apply_chat_template"] if run.chat_template else []),
            *_user_folder().parse_known_args(passed_on)[1],
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


def check_flags(passed_on: Sequence[str]) -> None:
    """Raises ValueError for flags of lm-eval that `bft-trl eval` sets, and for credentials among them.

    A credential on a command line is seen by every user of the machine and kept by the shell, and lm-eval prints its
    settings. The message does not repeat it.
    """
    for long, (short, instead) in OURS.items():
        if given(passed_on, long, short):
            raise ValueError(f"`{long}` is set by `bft-trl eval` itself; use {instead}.")
    flag = ""
    for word in passed_on:
        if word.startswith("-"):
            flag = word.split("=")[0] if word.startswith("--") else word[:2]
        configured = given([flag], "--config", "-C")
        file = Path(word.split("=", 1)[-1])
        text = file.read_text(encoding="utf-8") if configured and file.is_file() else ""
        if _CREDENTIAL.search(word) or _CREDENTIAL.search(text):
            raise ValueError(
                f"`{flag}` holds a token or key, which lm-eval would print. Leave it out, and set HF_TOKEN in the "
                "environment or log in with `hf auth login`."
            )


def given(passed_on: Sequence[str], long: str, short: str) -> bool:
    """Is a flag among those that go to lm-eval: in full, cut short as argparse allows it, or by its letter?"""
    names = [word.split("=")[0] for word in passed_on]
    return any(
        len(name) > 2 and long.startswith(name) if name.startswith("--") else name.startswith(short) for name in names
    )


def include_path(tasks: Sequence[str], passed_on: Sequence[str]) -> str:
    """Where lm-eval finds tasks besides its own: it takes one folder, which is ours where a task of `tasks` is."""
    folder = _user_folder().parse_known_args(passed_on)[0].include_path
    files = {path.stem for path in tasks_path().rglob("*.yaml")}
    return (
        str(tasks_path())
        if folder is None or files & {name for task in tasks for name in (task, f"_{task}")}
        else folder
    )


def _user_folder() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--include_path")
    return parser


def _register_quantized(quantization: Mapping[str, Any]) -> None:
    """lm-eval 0.4.13 hands `load_in_4bit` to from_pretrained, which transformers 5 refuses: it wants a config."""
    _quantized_class().quantization = dict(quantization)


@functools.cache  # a name can be registered once in a process
def _quantized_class() -> Any:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from transformers.quantizers import AutoQuantizationConfig

    @register_model(QUANTIZED)
    class QuantizedHFLM(HFLM):
        quantization: Mapping[str, Any]

        def _create_model(self, *args: Any, **kwargs: Any) -> None:
            kwargs["quantization_config"] = AutoQuantizationConfig.from_dict(dict(self.quantization))
            super()._create_model(*args, **kwargs)

    return QuantizedHFLM
