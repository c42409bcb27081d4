"""Texts to unit vectors. A model is loaded when an encoder is made, never on import."""

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from bft_trl.io import atomic_file
from bft_trl.models import check_json, first_line, loading_errors

logger = logging.getLogger(__name__)

# GeneAgent's: the [CLS] vector of the query encoder, 64 tokens.
MEDCPT = "ncbi/MedCPT-Query-Encoder"
MAX_TOKENS = 64


class Encoder:
    """A sentence encoder, from the Hub or a folder.

    A model without a sentence-transformers configuration, such as MedCPT and SapBERT, gives its [CLS] vector: mean
    pooling, the library's guess, is not what these were trained for.

    Args:
        model: Hub id or folder.
        batch_size: texts per forward pass.
        max_tokens: texts are cut there; None takes what the model is configured for (64 where it is not).

    Raises ValueError that names the option where the model cannot be loaded or reads fewer tokens.
    """

    def __init__(self, model: str, *, batch_size: int = 64, max_tokens: int | None = None) -> None:
        self.model = model
        self.batch_size = batch_size
        self._encoder = _load(model)
        if max_tokens is not None:
            longest = getattr(self._encoder[0].auto_model.config, "max_position_embeddings", max_tokens)
            if not 1 <= max_tokens <= longest:
                raise ValueError(f"`max_tokens={max_tokens}`: {model} reads 1 to {longest} tokens.")
            self._encoder.max_seq_length = max_tokens

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of `texts`, shape (N, D), float32. Each text is computed once; none give (0, D)."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.zeros((0, self.dimension), dtype=np.float32)
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
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self._encoder.get_embedding_dimension()

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read, special ones among them."""
        return self._encoder.max_seq_length

    def n_cut(self, texts: Sequence[str]) -> int:
        """How many of `texts` are longer than that."""
        lengths = self._encoder.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.max_tokens for ids in lengths)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, pooling and length: the same encoder has the same one wherever it lies."""
        digest = hashlib.sha256()
        for name, tensor in self._encoder.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        pooling = [module for module in self._encoder if hasattr(module, "pooling_mode")]
        settings = [getattr(module, "pooling_mode", None) for module in pooling]
        digest.update(repr((settings, self._encoder.max_seq_length)).encode())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def load_encoder(model: str) -> Encoder:
    """The encoder `model`; several tasks of one run share it."""
    return Encoder(model)


def cached_vectors(encoder: Encoder, texts: Sequence[str], *, cache: Path | None = None) -> tuple[np.ndarray, str]:
    """Unit vectors of `texts` and the hash of what they were made from, computed once and kept in `cache`.

    The file's name is the hash of the encoder's weights and of the texts: another encoder or list is another file.
    By default `bft_trl/vectors` in the Hugging Face home folder.
    """
    if cache is None:
        from huggingface_hub.constants import HF_HOME

        cache = Path(HF_HOME) / "bft_trl" / "vectors"
    content = hashlib.sha256("\n".join([encoder.fingerprint, *texts]).encode()).hexdigest()[:16]
    file = cache / f"{content}.npz"  # a zip file: its CRC-32 says whether a bit has changed
    if file.is_file():
        try:
            with np.load(file) as stored:  # never unpickles
                vectors = stored["vectors"]
            if _are_unit(vectors, (len(texts), encoder.dimension)):
                return vectors, content
            logger.warning("%s is damaged (no unit vectors of the right shape): encoding anew.", file)
        # Of cut and changed files; the last ones of headers that ask for what zipfile and numpy do not do.
        except (
            *(ValueError, EOFError, LookupError, OSError, zipfile.BadZipFile, zlib.error, RuntimeError),
            *(SyntaxError, TokenError, TypeError, MemoryError),
        ) as error:
            logger.warning("%s is damaged (%s): encoding anew.", file, error)
    logger.info("Encoding %d texts with %s, once; kept in %s", len(texts), encoder.model, file)
    vectors = encoder.encode(texts)
    try:
        with atomic_file(file) as temporary:
            np.savez(temporary, vectors=vectors)
    except OSError as error:
        logger.warning("%s cannot be kept (%s): the next run will encode again.", file, error)
    return vectors, content


def _are_unit(vectors: Any, shape: tuple[int, int]) -> bool:
    """Whether these are unit vectors: a file of numbers has no checksum, but few changed numbers leave the length."""
    if not isinstance(vectors, np.ndarray) or vectors.shape != shape or vectors.dtype.kind != "f":
        return False
    return bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))


def _load(model: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers.utils import cached_file

    if not model or model == "none":
        raise ValueError(f"`encoder={model!r}`: name a Hub id or a folder with a sentence encoder.")
    try:
        check_json(Path(model))
        configured = cached_file(model, "modules.json", _raise_exceptions_for_missing_entries=False)
        if configured:
            loaded = SentenceTransformer(model, trust_remote_code=False)
        else:
            # None would ask at the terminal; code that a model brings is not run here.
            parts = ("model_kwargs", "processor_kwargs", "config_kwargs")
            transformer = Transformer(model, **{part: {"trust_remote_code": False} for part in parts})
            pooling = Pooling(transformer.get_embedding_dimension(), "cls")
            loaded = SentenceTransformer(modules=[transformer, pooling])
            logger.info("%s has no sentence-transformers configuration: using its [CLS] vector.", model)
            loaded.max_seq_length = MAX_TOKENS
    except loading_errors() as error:
        raise ValueError(
            f"`encoder={model!r}` cannot be loaded ({first_line(error)}). Give a folder with a sentence "
            'encoder; where only similarity needs it, "none" does without.'
        ) from error
    loaded.eval()
    return loaded
