"""What a trained run folder says of how to load it again: base model, quantization, tokenizer, chat template."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bft_trl.data.tables import read_json_object

logger = logging.getLogger(__name__)


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
    if (
        model is not None
        and (Path(model) / "adapter_config.json").is_file()
        and not (Path(model) / "config.json").is_file()
    ):
        raise ValueError(f"`model={model!r}` is an adapter: name it with `adapter`.")
    if adapter is not None:
        file = adapter / "adapter_config.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"`adapter={str(adapter)!r}` has no adapter_config.json: name the folder that training wrote "
                "(its output_dir or a checkpoint). A whole model goes into `model`."
            )
        model = model or read_json_object(file).get("base_model_name_or_path")
        if not model or not isinstance(model, str):
            raise ValueError(f"{file} names no base model: give it with `model`.")
        loading = adapter / "base_model.json"
        if loading.is_file():
            quantization = read_json_object(loading).get("quantization")
            if not isinstance(quantization, dict | None):
                raise ValueError(f"{loading}: `quantization` is {quantization!r}, not null or an object.")
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


def load_tokenizer(run: Run) -> Any:
    """The tokenizer of a run, padding on the left. Raises ValueError that names the argument."""
    from transformers import AutoTokenizer

    name = run.tokenizer or run.base
    try:
        check_json(Path(name))
        # None would ask at the terminal; code that a model brings is not run here.
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=False)
    except loading_errors() as error:
        # The flag is lm-eval's, and what it loads is not this tokenizer.
        remedy = " Where you trust it: --trust_remote_code, and say --chat-template or --no-chat-template yourself."
        raise ValueError(
            f"`model={name!r}`: its tokenizer cannot be loaded ({first_line(error)})."
            f"{remedy if 'custom code' in str(error) else ''}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_run(run: Run, *, device: str | None = None) -> Any:
    """The model of a run, with its adapter, for inference.

    Args:
        run: what to load.
        device: such as "cpu" or "cuda:0"; None takes a GPU where there is one. bfloat16 there, float32 on a CPU.

    Raises ValueError that names the argument where it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoQuantizationConfig

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device={device!r}` cannot be used ({first_line(error)}).") from error
    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        quantization = run.quantization and AutoQuantizationConfig.from_dict(dict(run.quantization))
        model = AutoModelForCausalLM.from_pretrained(
            run.base,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            device_map={"": device},
            quantization_config=quantization,
            trust_remote_code=False,
        )
    except loading_errors() as error:
        raise ValueError(f"`model={run.base!r}` cannot be loaded ({first_line(error)}).") from error
    except ImportError as error:  # of transformers: bitsandbytes is not there
        raise ValueError(f"{first_line(error)} Or load the base as it is: --no-load-in-4bit.") from error
    if run.adapter is not None:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, run.adapter)
        except loading_errors() as error:
            raise ValueError(f"`adapter={str(run.adapter)!r}` cannot be loaded ({first_line(error)}).") from error
    return model.eval()


def check_json(folder: Path) -> None:
    """Raises ValueError that names the file where a JSON file of a model's folder is damaged; a Hub id has none.

    Libraries tell a damaged file by errors of any kind, tokenizers by a plain Exception.
    """
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: not JSON ({error})") from error


def loading_errors() -> tuple[type[Exception], ...]:
    """What transformers and peft raise for folders whose files are damaged, or hold values of the wrong kind."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    of_files = (OSError, ValueError, EOFError, SafetensorError, StrictDataclassError)
    return *of_files, AttributeError, TypeError, LookupError, RuntimeError, MemoryError, OverflowError


def fingerprint(run: Run) -> dict[str, str | None]:
    """Which weights a run has: the Hub's commit or the hash of a folder's weight files, for base and adapter."""
    return {
        "model": run.base,
        "model_hash": _weights_hash(run.base),
        "adapter": None if run.adapter is None else str(run.adapter),
        "adapter_hash": None if run.adapter is None else _weights_hash(str(run.adapter)),
    }


def _weights_hash(model: str) -> str | None:
    folder = Path(model)
    if not folder.is_dir():
        from transformers.utils import cached_file, extract_commit_hash

        file = cached_file(model, "config.json", _raise_exceptions_for_missing_entries=False)
        return extract_commit_hash(file, None)
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _has_chat_template(tokenizer: str) -> bool:
    return bool(load_tokenizer(Run(tokenizer)).chat_template)


def first_line(error: Exception) -> str:
    """Of its message; its name where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
