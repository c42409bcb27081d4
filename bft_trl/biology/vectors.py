"""Vectors of genes: made from profiles, read and checked, and averaged over the genes that a cell expresses."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology.profiles import check_table, manifest_path, read_manifest, read_profiles
from bft_trl.data.tables import ids_as_text, read_json_object, read_table, write_together
from bft_trl.encoders import Encoder, cached_vectors
from bft_trl.io import check_folder
from bft_trl.models import Run, fingerprint, load_run, load_tokenizer

logger = logging.getLogger(__name__)

# Products of greater numbers would not fit float32 comfortably.
MOST = 1e9


class Vectors(NamedTuple):
    """Vectors of genes: genes[i] has values[i]."""

    genes: list[str]
    values: np.ndarray  # (genes, D) float32
    manifest: dict[str, Any]

    def rows(self, genes: Sequence[str]) -> np.ndarray:
        """The row of each of `genes`, (N,), -1 where it has no vector."""
        index = {gene: row for row, gene in enumerate(self.genes)}
        return np.array([index.get(gene, -1) for gene in genes], dtype=int)


def embed_profiles(profiles: Path, encoder: Encoder, out: Path, *, cache: Path | None = None) -> dict[str, Any]:
    """Writes unit vectors of profiles by a sentence encoder to `out` (columns gene, vector), and its manifest (.json).

    Args:
        profiles: table with gene and text.
        encoder: a loaded encoder; texts longer than its limit are cut, and counted.
        out: a .parquet file.
        cache: folder in which vectors are kept by content; see [`cached_vectors`].
    """
    _check_out(out, profiles)
    table = read_profiles(profiles)
    made_by = {"encoder": encoder.model, "encoder_hash": encoder.fingerprint, "max_tokens": encoder.max_tokens}
    if _already_made(out, made_by, profiles):
        return read_manifest(out)
    cut = encoder.n_cut(table["text"].tolist())
    if cut:
        logger.warning(
            "%d of %d profiles are longer than the %d tokens that %s reads; their ends are ignored.",
            *(cut, len(table), encoder.max_tokens, encoder.model),
        )
    values, _ = cached_vectors(encoder, table["text"].tolist(), cache=cache)
    return _write(table["gene"].tolist(), values, out, made_by | {"n_cut": cut}, profiles)


def embed_by_model(
    profiles: Path, run: Run, out: Path, *, batch_size: int = 16, max_tokens: int = 512, device: str | None = None
) -> dict[str, Any]:
    """Writes unit vectors of profiles by the language model itself to `out`, and its manifest.

    A vector is the mean of the last layer's hidden states over the tokens of the profile, which stands alone, without
    a prompt. Batches are by length.

    Args:
        profiles: table with gene and text.
        run: the model and its adapter.
        out: a .parquet file.
        batch_size: texts per forward pass.
        max_tokens: longer texts are cut.
        device: see [`load_run`].
    """
    import torch

    _check_out(out, profiles)
    if batch_size < 1 or max_tokens < 1:
        raise ValueError(f"`batch_size={batch_size}` and `max_tokens={max_tokens}` must be 1 or more.")
    table = read_profiles(profiles)
    made_by: dict[str, Any] = {"encoder": "self", **fingerprint(run), "max_tokens": max_tokens}
    made_by["quantization"] = run.quantization and dict(run.quantization)  # another base gives other vectors
    if _already_made(out, made_by, profiles):
        return read_manifest(out)
    tokenizer = load_tokenizer(run)
    tokenizer.padding_side = "right"  # absolute positions, where a model has them, count from the first token
    model = load_run(run, device=device)
    layers = (model.get_base_model() if run.adapter else model).base_model
    ids = tokenizer(table["text"].tolist(), truncation=True, max_length=max_tokens)["input_ids"]
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
    return _write(table["gene"].tolist(), values, out, made_by, profiles)


def read_vectors(path: Path) -> Vectors:
    """Vectors of a table with gene and vector (lists of numbers, of one length), each gene once.

    Raises ValueError for repeated genes, vectors of several lengths, numbers that are not finite, and vectors that
    are all the same.
    """
    table = read_table(path, ["gene", "vector"])
    if table["gene"].isna().any():
        raise ValueError(f"{path}: {int(table['gene'].isna().sum())} vectors have no gene.")
    genes = ids_as_text(table["gene"], where=path).str.strip().tolist()
    if len(set(genes)) < len(genes):
        repeated = next(gene for gene in genes if genes.count(gene) > 1)
        raise ValueError(f"{path}: more than one vector for {repeated!r}.")
    try:
        values = np.array(table["vector"].tolist(), dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the vectors are not lists of numbers, all of one length ({error}).") from error
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"{path}: the vectors are not lists of numbers, all of one length.")
    broken = ~np.isfinite(values).all(1)
    if broken.any():
        raise ValueError(
            f"{path}: {int(broken.sum())} of {len(genes)} vectors hold NaN or infinity, such as that of "
            f"{genes[int(broken.argmax())]!r}: make them again."
        )
    if np.abs(values).max() > MOST:
        raise ValueError(
            f"{path}: the vectors hold numbers up to {np.abs(values).max():.3g}; at most {MOST:g} can be used."
        )
    if len(genes) > 1 and np.ptp(values, axis=0).max() == 0:
        raise ValueError(f"{path}: all {len(genes)} vectors are the same: nothing can be learned from them.")
    manifest = read_manifest(path)
    if manifest and manifest.get("content_hash") != _hash(genes, values):
        logger.warning(
            "%s is not of the vectors in %s and is not used: was the run that wrote them killed?",
            manifest_path(path),
            path,
        )
        manifest = {}
    return Vectors(genes, values, manifest)


def read_named_vectors(paths: Sequence[Path], *, reserved: Sequence[str]) -> dict[str, Vectors]:
    """Several tables by the stem of their file. Raises ValueError for a stem that stands twice or is `reserved`."""
    if not paths:
        raise ValueError("`vectors`: name at least one table of vectors.")
    names = [path.stem for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`vectors`: two files are named {name!r}; results go by the name of the file, so rename one."
            )
        if name in reserved:
            raise ValueError(f"`vectors`: {name!r} is the name of a control or of a column; rename the file.")
    return {name: read_vectors(path) for name, path in zip(names, paths, strict=True)}


def check_task(out: Path, task: str) -> None:
    """Raises ValueError where `out` cannot be a folder for the results of `task`, or holds those of another one."""
    check_folder(out, name="out")
    results = out / "results.json"
    made = read_json_object(results).get("task") if results.is_file() else task
    if made != task:
        raise ValueError(f"`out={str(out)!r}` holds the results of {made!r}; name another folder for {task!r}.")


def shuffled(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """The same vectors, each given to another gene at random: what is left is not about the genes."""
    return vectors._replace(values=rng.permutation(vectors.values), manifest={})


def random_like(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """Random unit vectors for the same genes, of the same size."""
    values = rng.standard_normal(vectors.values.shape).astype(np.float32)
    return vectors._replace(values=values / np.linalg.norm(values, axis=1, keepdims=True), manifest={})


def cell_vectors(data: Path, vectors: Path, out: Path) -> dict[str, Any]:
    """Writes the mean of gene vectors, weighted by expression, of each cell of an AnnData (columns cell, vector).

    Expression is taken as it stands in X, which must not be negative. Genes without a vector are left out and counted;
    a cell that expresses none of the others has no vector, and is counted too.
    """
    from bft_trl.biology.cells import read_anndata

    _check_out(out, data, vectors)
    known = read_vectors(vectors)
    cells = read_anndata(data)
    rows = known.rows([str(gene) for gene in cells.var_names])
    if not (rows >= 0).any():
        raise ValueError(f"`vectors={str(vectors)!r}`: none of its genes is in {data}; are both symbols?")
    expression = cells[:, rows >= 0].X
    total = np.asarray(expression.sum(1), dtype=np.float64).reshape(-1, 1)
    if not np.isfinite(total).all():
        raise ValueError(f"{data}: {int((~np.isfinite(total)).sum())} cells hold NaN or infinity in X.")
    if expression.min() < 0:
        raise ValueError(f"{data}: X has negative values; weights need expression, not scaled values.")
    if not total.any():
        raise ValueError(f"{data}: no cell expresses a gene that has a vector.")
    means = np.asarray(expression @ known.values[rows[rows >= 0]].astype(np.float64)) / np.where(total > 0, total, 1)
    kept = total[:, 0] > 0
    manifest: dict[str, Any] = {
        "vectors": vectors.name,
        "dimension": int(known.values.shape[1]),
        "n_cells": int(kept.sum()),
        "n_cells_without": int((~kept).sum()),
        "coverage": float((rows >= 0).mean()),
    }
    logger.info("%d of %d genes have a vector.", int((rows >= 0).sum()), len(rows))
    names, values = cells.obs_names[kept].astype(str).tolist(), means[kept].astype(np.float32)
    manifest["content_hash"] = _hash(names, values)
    table = pd.DataFrame({"cell": names, "vector": list(values)})
    write_together({manifest_path(out): json.dumps(manifest, indent=2) + "\n", out: table})
    return manifest


def _hash(genes: Sequence[str], values: np.ndarray) -> str:
    content = "\0".join(genes).encode() + np.ascontiguousarray(values, dtype=np.float32).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _check_out(out: Path, *sources: Path) -> None:
    """`out` can be written and is nothing that must stay: neither a source nor a table that is not of vectors."""
    check_table(out)
    if out.resolve() in [source.resolve() for source in sources]:
        raise ValueError(f"`out={str(out)!r}` is what is to be read; choose another name.")
    if out.exists() and "dimension" not in read_manifest(out):
        raise ValueError(f"`out={str(out)!r}` is there and is no table of vectors; choose another name, or remove it.")


def _already_made(out: Path, made_by: dict[str, Any], profiles: Path) -> bool:
    """Whether `out` is there, of these profiles by this encoder. Raises ValueError where it is of others."""
    if not out.exists():
        return False
    wanted = made_by | {"profiles": _source(profiles)}
    made = read_manifest(out)
    changed = [name for name in wanted if made.get(name) != wanted[name]]
    if changed:
        raise ValueError(
            f"`out={str(out)!r}` is there, made with other settings ({', '.join(changed)}). Choose another name, or "
            "remove it."
        )
    logger.info("%s is there already, with these settings.", out)
    return True


def _source(profiles: Path) -> dict[str, Any]:
    """The manifest of profiles; where they have none, what they are."""
    return read_manifest(profiles) or described_file(profiles)


def described_file(path: Path) -> dict[str, Any]:
    """Name and hash of a file, for what is made of it."""
    with path.open("rb") as stream:
        return {"file": path.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()[:16]}


def _write(genes: list[str], values: np.ndarray, out: Path, made_by: dict[str, Any], profiles: Path) -> dict[str, Any]:
    if not np.isfinite(values).all():
        raise ValueError(f"The encoder gave NaN or infinity for {int((~np.isfinite(values).all(1)).sum())} profiles.")
    manifest = made_by | {
        "n_genes": len(genes),
        "dimension": int(values.shape[1]),
        "content_hash": _hash(genes, values),
        "profiles": _source(profiles),
    }
    described = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_together({manifest_path(out): described, out: pd.DataFrame({"gene": genes, "vector": list(values)})})
    return manifest
