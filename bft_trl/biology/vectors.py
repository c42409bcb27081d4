"""Gene vectors: embedded profiles."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology.profiles import check_output_path, made_before, read_profiles, text_hash, write_with_settings
from bft_trl.data.tables import ids_as_text, read_table
from bft_trl.models import Encoder, Run, fingerprint, load_run, load_tokenizer

logger = logging.getLogger(__name__)


class Vectors(NamedTuple):
    """Vectors of genes: genes[i] has values[i]."""

    genes: list[str]
    values: np.ndarray  # (G, D) float32

    def rows(self, genes: Sequence[str]) -> np.ndarray:
        """Returns the row of each of `genes`, (N,), -1 if it has no vector."""
        return pd.Index(self.genes).get_indexer(list(genes))


def embed_profiles(profiles: Path, encoder: Encoder, output_path: Path) -> Vectors:
    """Writes and returns unit vectors of profiles (gene, text) by a sentence encoder (columns gene, vector).

    Texts longer than the encoder's limit are truncated, with a warning. Raises ValueError if `output_path` is no
    .parquet file, or was made with other settings.
    """

    def encode(texts: list[str]) -> np.ndarray:
        n_cut = encoder.n_cut(texts)
        if n_cut:
            logger.warning("%d of %d profiles are truncated to %d tokens.", n_cut, len(texts), encoder.max_tokens)
        return encoder.encode(texts)

    return _embed(profiles, output_path, {"encoder": encoder.model, "encoder_hash": encoder.fingerprint}, encode)


def embed_by_model(
    profiles: Path,
    run: Run,
    output_path: Path,
    *,
    batch_size: int = 16,
    max_tokens: int = 512,
    device: str | None = None,
) -> Vectors:
    """Writes and returns unit vectors of profiles (gene, text) by a language model (columns gene, vector).

    A vector is the mean of the last layer's hidden states over the tokens of the profile, without a prompt.

    Args:
        profiles, output_path: as for [`embed_profiles`].
        run: the model and its adapter.
        batch_size: texts per forward pass; texts of similar length share a batch.
        max_tokens: longer texts are truncated.
        device: see [`load_run`].

    """
    if batch_size < 1 or max_tokens < 1:
        raise ValueError(f"`batch_size={batch_size}` and `max_tokens={max_tokens}` must be at least 1.")
    quantization = run.quantization and dict(run.quantization)
    made_by = {**fingerprint(run), "max_tokens": max_tokens, "quantization": quantization}

    def encode(texts: list[str]) -> np.ndarray:
        return _mean_hidden_states(run, texts, batch_size, max_tokens, device)

    return _embed(profiles, output_path, made_by, encode)


def read_vectors(path: Path) -> Vectors:
    """Reads a table with gene and vector (lists of numbers of one length), each gene once.

    Raises ValueError for anything else, numbers that are not finite, and vectors that are all the same.
    """
    table = read_table(path, ["gene", "vector"])
    genes = ids_as_text(table["gene"], where=path).str.strip()
    if genes.isna().any() or genes.duplicated().any():
        raise ValueError(f"{path}: each vector needs a gene, and each gene one vector.")
    try:
        values = np.array(table["vector"].tolist(), dtype=np.float32).reshape(len(table), -1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the vectors are not lists of numbers of one length ({error}).") from error
    bad = genes[~np.isfinite(values).all(1)]
    if len(bad):
        raise ValueError(f"{path}: {len(bad)} vectors contain NaN or infinity, such as that of {bad.iloc[0]!r}.")
    if len(genes) > 1 and not np.ptp(values, axis=0).any():
        raise ValueError(f"{path}: all {len(genes)} vectors are the same.")
    return Vectors(genes.tolist(), values)


def read_named_vectors(paths: Sequence[Path], *, reserved: Sequence[str]) -> dict[str, Vectors]:
    """Reads several tables; the name of each is its file's stem.

    Raises ValueError for two files of one name and for names that are `reserved`.
    """
    names = [path.stem for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"`vectors`: two files are named {name!r}. Rename one: results use the file's name.")
        if name in reserved:
            raise ValueError(f"`vectors`: {name!r} is the name of a control or a column. Rename the file.")
    return {name: read_vectors(path) for name, path in zip(names, paths, strict=True)}


def covered(named: Mapping[str, Vectors], *genes: Sequence[str]) -> tuple[np.ndarray, dict[str, float]]:
    """Returns which units have vectors of their genes in every set, (N,) bool, and the fraction that each set has.

    Logs a warning if units are left out. `genes` are one or two sequences (N,): units are genes or pairs of genes.
    """
    has = {
        name: np.logical_and.reduce([pd.Series(ends).isin(found.genes) for ends in genes])
        for name, found in named.items()
    }
    coverage = {name: float(mask.mean()) for name, mask in has.items()}
    kept = np.logical_and.reduce(list(has.values()))
    if not kept.all():
        first = [ends[int(kept.argmin())] for ends in genes]
        logger.warning(
            "%d of %d have no vector in one of the sets and are left out, such as %s. Coverage: %s",
            *((~kept).sum(), len(kept), " ".join(first), coverage),
        )
    return kept, coverage


def _mean_hidden_states(
    run: Run, texts: Sequence[str], batch_size: int, max_tokens: int, device: str | None
) -> np.ndarray:
    """Normalized means over tokens of the last layer's hidden states, (N, H) float32."""
    import torch

    tokenizer = load_tokenizer(run)
    tokenizer.padding_side = "right"  # absolute positions, if a model has them, count from the first token
    model = load_run(run, device=device)
    layers = (model.get_base_model() if run.adapter else model).base_model
    ids = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    values = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
    with tqdm(total=len(ids), desc="Vectors", unit="gene") as progress, torch.inference_mode():
        for first in range(0, len(ids), batch_size):
            rows = order[first : first + batch_size]
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(model.device)
            hidden = layers(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            values[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
            progress.update(len(rows))
    return values


def _embed(
    profiles: Path, output_path: Path, made_by: dict[str, Any], encode: Callable[[list[str]], np.ndarray]
) -> Vectors:
    check_output_path(output_path)
    table = read_profiles(profiles)
    settings = made_by | {"text_hash": text_hash([*table["gene"], *table["text"]])}
    if not made_before(output_path, settings):
        values = encode(table["text"].tolist())
        write_with_settings(table[["gene"]].assign(vector=list(values)), output_path, settings)
    return read_vectors(output_path)
