"""`bft-trl eval`: lm-eval with what the run folder knows filled in, and with the tasks that ship with bft_trl."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bft_trl.atomic import check_folder
from bft_trl.data.evaluation_sets import load_background
from bft_trl.data.tables import read_json_object

logger = logging.getLogger(__name__)

# The name of lm-eval's Hugging Face model with a quantized base, registered when it is needed.
QUANTIZED = "bft-quantized"


def tasks_path() -> Path:
    """The folder of the lm-eval tasks: inside an installed package, beside it in a clone."""
    package = Path(__file__).parent
    installed = package / "eval_tasks"
    return installed if installed.is_dir() else package.parent / "eval_tasks"


@dataclass(frozen=True)
class Run:
    """What an evaluation has to load."""

    base: str
    adapter: Path | None = None
    quantization: Mapping[str, Any] | None = None
    tokenizer: str | None = None
    chat_template: bool = False

    def model_args(self) -> dict[str, str]:
        """As `lm_eval --model_args` takes them."""
        arguments = {"pretrained": self.base, "peft": self.adapter and str(self.adapter), "tokenizer": self.tokenizer}
        return {name: value for name, value in arguments.items() if value}


def read_run(
    model: str | None,
    adapter: Path | None,
    *,
    base_only: bool = False,
    load_in_4bit: bool | None = None,
    chat_template: bool | None = None,
) -> Run:
    """Base model, quantization, tokenizer and chat template, from the run folder where they are not given.

    Args:
        model: base model; None takes the one that the adapter names.
        adapter: folder of a PEFT adapter; None evaluates the base model itself. A folder that holds a whole model
            counts as the model.
        base_only: leave the adapter out, and load the base with its quantization, tokenizer and chat template: the
            baseline that differs from the run in the adapter alone.
        load_in_4bit: True loads the base in NF4, False as it is; None as it was in training.
        chat_template: None applies it where the tokenizer has one.

    Raises ValueError or FileNotFoundError that names the argument.
    """
    if base_only and adapter is None:
        raise ValueError("`base_only=True` needs `adapter`, whose base model it evaluates.")
    if adapter is None and model is None:
        raise ValueError("Name a base model with `model`, or a trained run with `adapter`.")
    quantization = tokenizer = None
    if adapter is not None:
        file = adapter / "adapter_config.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"`adapter={str(adapter)!r}` has no adapter_config.json: name the folder that training wrote "
                "(its output_dir or a checkpoint). A whole model goes into `model`."
            )
        model = model or read_json_object(file).get("base_model_name_or_path")
        if not model:
            raise ValueError(f"{file} names no base model: give it with `model`.")
        loading = adapter / "base_model.json"
        if loading.is_file():
            quantization = read_json_object(loading).get("quantization")
        elif load_in_4bit is None:
            logger.warning("%s does not say whether the base was quantized: loading it as it is.", adapter)
        if (adapter / "tokenizer_config.json").is_file():
            tokenizer = str(adapter)
    if load_in_4bit is not None:
        nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        quantization = (quantization or nf4) if load_in_4bit else None
    if chat_template is None:
        chat_template = _has_chat_template(tokenizer or str(model))
    return Run(str(model), None if base_only else adapter, quantization, tokenizer, chat_template)


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
    before = set(out.rglob("results_*.json"))
    arguments = [
        *("--model", QUANTIZED if run.quantization is not None else "hf"),
        *("--model_args", json.dumps(run.model_args())),
        *("--tasks", ",".join(present)),
        *("--include_path", str(tasks_path())),
        *("--output_path", str(out)),
        "--log_samples",
        *(["--metadata", json.dumps(settings)] if settings else []),
        *(["--apply_chat_template"] if run.chat_template else []),
        *passed_on,
    ]
    logger.info("lm_eval run %s", " ".join(arguments))
    own = sys.argv
    sys.argv = ["lm_eval", "run", *arguments]  # the entry point takes no other arguments
    try:
        cli_evaluate()
    finally:
        sys.argv = own
    if not set(out.rglob("results_*.json")) - before:
        raise OSError(f"lm-eval saved no results in {out}; its last lines say why.")
    return missing


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


def _has_chat_template(tokenizer: str) -> bool:
    from transformers import AutoTokenizer

    try:
        return bool(AutoTokenizer.from_pretrained(tokenizer).chat_template)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`model={tokenizer!r}`: its tokenizer cannot be loaded ({reason}).") from error
