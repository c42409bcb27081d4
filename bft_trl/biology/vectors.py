"""Gene vectors: embedded profiles, and their average over the genes that a cell expresses."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology.cells import read_anndata
from bft_trl.biology.profiles import (
    check_output_path,
    file_hash,
    made_before,
    read_manifest,
    read_profiles,
    write_with_manifest,
)
from bft_trl.data.tables import ids_as_text, read_table
from bft_trl.models import Encoder, Run, fingerprint, load_run, load_tokenizer

logger = logging.getLogger(__name__)


class Vectors(NamedTuple):
    """Vectors of genes: genes[i] has values[i]."""

    genes: list[str]
    values: np.ndarray  # (G, D) float32
    manifest: dict[str, Any]

    def rows(self, genes: Sequence[str]) -> np.ndarray:
        """Returns the row of each of `genes`, (N,), -1 if it has no vector."""
        return pd.Index(self.genes).get_indexer(list(genes))


def embed_profiles(profiles: Path, encoder: Encoder, output_path: Path) -> dict[str, Any]:
    """Writes unit vectors of profiles by a sentence encoder (columns gene, vector), and returns their manifest.

    Args:
        profiles: table with gene and text. Texts longer than the encoder's limit are truncated, with a warning.
        encoder: the encoder.
        output_path: a .parquet file.

    Raises ValueError if `output_path` exists and was made with other settings.
    """

    def encode(texts: list[str]) -> np.ndarray:
        n_cut = encoder.n_cut(texts)
        if n_cut:
            logger.warning("%d of %d profiles are truncated to %d tokens.", n_cut, len(texts), encoder.max_tokens)
        return encoder.encode(texts)

    made_by = {"encoder": encoder.model, "encoder_hash": encoder.fingerprint, "max_tokens": encoder.max_tokens}
    return _embed(profiles, output_path, made_by, encode)


def embed_by_model(
    profiles: Path,
    run: Run,
    output_path: Path,
    *,
    batch_size: int = 16,
    max_tokens: int = 512,
    device: str | None = None,
) -> dict[str, Any]:
    """Writes unit vectors of profiles by a language model (columns gene, vector), and returns their manifest.

    A vector is the mean of the last layer's hidden states over the tokens of the profile, without a prompt.

    Args:
        profiles: table with gene and text.
        run: the model and its adapter.
        output_path: a .parquet file.
        batch_size: texts per forward pass; texts of similar length share a batch.
        max_tokens: longer texts are truncated.
        device: see [`load_run`].

    Raises ValueError if an option is out of range or `output_path` exists and was made with other settings.
    """
    if batch_size < 1 or max_tokens < 1:
        raise ValueError(f"`batch_size={batch_size}` and `max_tokens={max_tokens}` must be at least 1.")
    quantization = run.quantization and dict(run.quantization)
    made_by = {"encoder": "self", **fingerprint(run), "max_tokens": max_tokens, "quantization": quantization}

    def encode(texts: list[str]) -> np.ndarray:
        return _mean_hidden_states(run, texts, batch_size, max_tokens, device)

    return _embed(profiles, output_path, made_by, encode)


def read_vectors(path: Path) -> Vectors:
    """Reads a table with gene and vector (lists of numbers of one length), each gene once.

    Raises ValueError for repeated genes, vectors of several lengths, numbers that are not finite, and vectors that
    are all the same.
    """
    table = read_table(path, ["gene", "vector"])
    genes = ids_as_text(table["gene"], where=path).str.strip()
    if genes.isna().any():
        raise ValueError(f"{path}: {int(genes.isna().sum())} vectors have no gene.")
    if genes.duplicated().any():
        raise ValueError(f"{path}: more than one vector for {genes[genes.duplicated()].iloc[0]!r}.")
    try:
        values = np.array(table["vector"].tolist(), dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the vectors are not lists of numbers of one length ({error}).") from error
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"{path}: the vectors are not lists of numbers of one length.")
    bad = genes[~np.isfinite(values).all(1)]
    if len(bad):
        raise ValueError(f"{path}: {len(bad)} vectors contain NaN or infinity, such as that of {bad.iloc[0]!r}.")
    if len(genes) > 1 and np.ptp(values, axis=0).max() == 0:
        raise ValueError(f"{path}: all {len(genes)} vectors are the same.")
    return Vectors(genes.tolist(), values, read_manifest(path))


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


def write_cell_vectors(data: Path, vectors: Path, output_path: Path) -> dict[str, Any]:
    """Writes the mean of gene vectors of each cell, weighted by expression (columns cell, vector).

    Args:
        data: AnnData (.h5ad); X is used unchanged and must not be negative. Genes without a vector are ignored, and
            cells that express no other gene are left out.
        vectors: table with gene and vector.
        output_path: a .parquet file that does not exist.

    Returns:
        The manifest, with the number of cells and the fraction of genes that have a vector.
    """
    check_output_path(output_path)
    if output_path.exists():
        raise ValueError(f"`output_path={str(output_path)!r}` exists. Choose another name, or remove the file.")
    known = read_vectors(vectors)
    cells = read_anndata(data)
    rows = known.rows([str(gene) for gene in cells.var_names])
    has_vector = rows >= 0
    if not has_vector.any():
        raise ValueError(f"`vectors={str(vectors)!r}`: none of its genes is in {data}. Are both gene symbols?")
    expression = cells[:, has_vector].X
    total = np.asarray(expression.sum(1), dtype=np.float64).reshape(-1, 1)
    if not np.isfinite(total).all() or expression.min() < 0:
        raise ValueError(f"{data}: X contains NaN, infinity or negative values; expression is needed as weights.")
    means = np.asarray(expression @ known.values[rows[has_vector]].astype(np.float64)) / np.where(total > 0, total, 1)
    kept = total[:, 0] > 0
    manifest = {
        "vectors": vectors.name,
        "dimension": int(known.values.shape[1]),
        "n_cells": int(kept.sum()),
        "n_cells_without": int((~kept).sum()),
        "coverage": float(has_vector.mean()),
    }
    logger.info("%d of %d genes have a vector.", has_vector.sum(), len(rows))
    values = list(means[kept].astype(np.float32))
    write_with_manifest(pd.DataFrame({"cell": cells.obs_names[kept], "vector": values}), output_path, manifest)
    return manifest


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
) -> dict[str, Any]:
    check_output_path(output_path)
    table = read_profiles(profiles)
    source = read_manifest(profiles) or {"file": profiles.name, "sha256": file_hash(profiles)}
    made_by = made_by | {"profiles": source}
    if not made_before(output_path, made_by):
        values = encode(table["text"].tolist())
        bad = int((~np.isfinite(values).all(1)).sum())
        if bad:
            raise ValueError(f"The encoder returned NaN or infinity for {bad} profiles.")
        manifest = made_by | {"n_genes": len(table), "dimension": values.shape[1]}
        write_with_manifest(table[["gene"]].assign(vector=list(values)), output_path, manifest)
    return read_manifest(output_path)
