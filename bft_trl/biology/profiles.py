"""Profiles of genes in words: written by a model, or made of texts that exist."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology.genes import warn_of_symbols
from bft_trl.data.tables import (
    read_gene_sets,
    read_json_object,
    read_parquet,
    read_table,
    write_parquet,
    write_together,
)
from bft_trl.io import check_folder, write_text
from bft_trl.models import Run, fingerprint, load_run, load_tokenizer
from bft_trl.prompts import gene_profile_prompt

logger = logging.getLogger(__name__)


def manifest_path(table: Path) -> Path:
    """Where the manifest of a table of profiles or vectors is."""
    return table.with_suffix(".json")


def read_manifest(table: Path) -> dict[str, Any]:
    """The manifest beside a table of profiles or vectors; {} where there is none."""
    path = manifest_path(table)
    return read_json_object(path) if path.is_file() and path != table else {}


def check_table(out: Path) -> None:
    """Raises ValueError where `out` is no .parquet file that can be written with its manifest; makes nothing."""
    if out.suffix != ".parquet":
        raise ValueError(f"`out={str(out)!r}` must end in .parquet.")
    check_folder(out.parent, name="out")
    if out.is_dir():
        raise ValueError(f"`out={str(out)!r}` is a folder.")
    manifest = manifest_path(out)
    if manifest.is_file() and "content_hash" not in read_json_object(manifest):
        raise ValueError(
            f"`out={str(out)!r}`: its manifest would replace {manifest}, which is none; choose another name."
        )


def write_profiles(
    genes: Sequence[str],
    run: Run,
    out: Path,
    *,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """Lets a model describe genes; writes `out` (columns gene, text, finished) and, beside it, its manifest (.json).

    The batches are fixed by the sorted list of all genes and committed whole to the folder `<out>.parts`. A run that
    was killed goes on from there and writes the text that it would have written without; a finished one is not
    repeated.

    Args:
        genes: symbols, each once.
        run: base model and adapter.
        out: a .parquet file.
        max_new_tokens: longest profile; `finished` says whether the model ended by itself.
        batch_size: genes per call of `generate`.
        temperature: 0 is greedy; else sampling, with a seed for each batch.
        seed: of the sampling.
        device: see [`load_run`].

    Returns:
        The manifest: model, adapter, prompt, settings, versions, hashes of genes and texts.

    Raises ValueError where an option is out of range and where `out` was begun or made with other settings.
    """
    _check(out, genes=genes, max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature)
    settings = fingerprint(run) | {
        "source": "model",
        "quantization": run.quantization and dict(run.quantization),
        "chat_template": run.chat_template,
        "prompt": gene_profile_prompt("<gene>"),
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "temperature": temperature,
        "seed": seed,
        "genes_hash": _hash(sorted(genes)),
    }
    parts = out.with_name(f"{out.name}.parts")
    if _already_made(out, settings, parts=parts):
        shutil.rmtree(parts, ignore_errors=True)
        return read_manifest(out)
    write_text(parts / "settings.json", json.dumps(settings, indent=2) + "\n")
    tokenizer = load_tokenizer(run)
    prompts = {gene: _rendered(gene, tokenizer, chat_template=run.chat_template) for gene in genes}
    lengths = {
        gene: len(ids) for gene, ids in zip(prompts, tokenizer(list(prompts.values()))["input_ids"], strict=True)
    }
    ordered = sorted(genes, key=lambda gene: (lengths[gene], gene))
    batches = [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]
    files = [parts / f"{number:06d}.parquet" for number in range(len(batches))]
    whole = [_is_whole(file, batch) for batch, file in zip(batches, files, strict=True)]
    done = sum(len(batch) for batch, there in zip(batches, whole, strict=True) if there)
    if done:
        logger.info("%d of %d profiles are there already: going on.", done, len(genes))
    model = load_run(run, device=device) if done < len(genes) else None
    longest = getattr(model and model.config, "max_position_embeddings", None)
    if longest is not None and max(lengths.values()) + max_new_tokens > longest:
        raise ValueError(
            f"`max_new_tokens={max_new_tokens}`: with prompts of {max(lengths.values())} tokens the model, which "
            f"reads {longest}, has room for {longest - max(lengths.values())}."
        )
    with tqdm(total=len(genes), initial=done, desc="Profiles", unit="gene") as progress:
        for number, (batch, file) in enumerate(zip(batches, files, strict=True)):
            if whole[number]:
                continue
            texts = _generate(
                model,
                tokenizer,
                [prompts[gene] for gene in batch],
                special_tokens=not run.chat_template,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed + number,
            )
            write_parquet(file, pd.DataFrame(texts, columns=["text", "finished"]).assign(gene=batch))
            progress.update(len(batch))
    table = pd.concat([read_parquet(file) for file in files], ignore_index=True)
    manifest = _write(table, out, settings)
    shutil.rmtree(parts)
    return manifest


def profiles_of_texts(texts: Path, genes: Sequence[str] | None, out: Path) -> dict[str, Any]:
    """Profiles from a table of texts (gene, text), such as NCBI's summaries; several rows of a gene are joined."""
    _check(out)
    table = read_table(texts, ["gene", "text"]).dropna(subset=["gene", "text"])
    table = table.assign(gene=table["gene"].astype(str).str.strip(), text=table["text"].astype(str).str.strip())
    joined = table.drop_duplicates().groupby("gene", sort=True)["text"].agg(" ".join)
    warn_of_symbols(list(joined.index))
    return _write_given(joined, genes, out, {"source": "texts", "table": texts.name})


def profiles_of_gene_sets(gene_sets: Path, genes: Sequence[str] | None, out: Path) -> dict[str, Any]:
    """Profiles that list the sets (GO terms) a gene is in, in the order of the file."""
    _check(out)
    sets = read_gene_sets(gene_sets)[["name", "genes"]].explode("genes").drop_duplicates()
    names = sets.groupby("genes", sort=True)["name"].agg("; ".join)
    return _write_given(names, genes, out, {"source": "gene sets", "table": gene_sets.name})


def profiles_of_symbols(genes: Sequence[str], out: Path) -> dict[str, Any]:
    """Profiles that are the symbol and nothing else: what an encoder knows of the name alone."""
    _check(out, genes=genes)
    return _write_given(pd.Series(list(genes), index=list(genes)), genes, out, {"source": "symbol"})


def read_profiles(path: Path) -> pd.DataFrame:
    """Profiles (gene, text), each gene once. Genes with an empty text are left out, with a warning.

    Raises ValueError for repeated genes and where no text is left.
    """
    if not path.is_file() and path.with_name(f"{path.name}.parts").is_dir():
        raise FileNotFoundError(f"{path} is not finished; the command that began it goes on with it.")
    table = read_table(path, ["gene", "text"])
    table = table.assign(gene=table["gene"].astype(str).str.strip(), text=table["text"].fillna("").astype(str))
    repeated = table["gene"][table["gene"].duplicated()].unique()
    if len(repeated):
        raise ValueError(f"{path}: {len(repeated)} genes have more than one profile, such as {repeated[0]!r}.")
    empty = table["text"].str.strip() == ""
    if empty.any():
        shown = ", ".join(table["gene"][empty].head(5))
        logger.warning("%d of %d profiles are empty and are left out: %s", int(empty.sum()), len(table), shown)
    if empty.all():
        raise ValueError(f"{path}: every profile is empty.")
    return table[~empty].reset_index(drop=True)


def _check(
    out: Path,
    *,
    genes: Sequence[str] | None = None,
    max_new_tokens: int = 1,
    batch_size: int = 1,
    temperature: float = 0.0,
) -> None:
    check_table(out)
    for name, value in {"max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"`{name}={value}` must be 1 or more.")
    if not 0 <= temperature < 10:
        raise ValueError(f"`temperature={temperature}` must be at least 0 and under 10.")
    if genes is not None and not genes:
        raise ValueError("`genes` is empty.")


def _already_made(out: Path, settings: dict[str, Any], *, parts: Path) -> bool:
    """Whether `out` is there, whole, with these settings; False where it is to be begun or to be gone on with.

    Raises ValueError where it was begun or made with others.
    """
    wanted = json.loads(json.dumps(settings))
    made = read_manifest(out) if out.exists() else {}
    if made and {name: made.get(name) for name in wanted} == wanted:
        logger.info("%s is there already, with these settings.", out)
        return True
    begun = parts / "settings.json"
    if begun.exists() and any(parts.glob("*.parquet")):
        found = read_json_object(begun)
        if found == wanted:
            return False
        changed = ", ".join(name for name in wanted if found.get(name) != wanted[name])
        raise ValueError(
            f"`out={str(out)!r}`: {parts} was begun with other settings ({changed}). Choose another name, or remove "
            "that folder."
        )
    if not begun.exists() and any(parts.glob("*.parquet")):
        raise ValueError(
            f"`out={str(out)!r}`: {parts} does not say with what settings it was begun. Remove that folder."
        )
    if out.exists():
        changed = ", ".join(name for name in wanted if made.get(name) != wanted[name])
        raise ValueError(
            f"`out={str(out)!r}` is there, made with other settings ({changed}). Choose another name, or remove it."
        )
    return False


def _is_whole(file: Path, genes: Sequence[str]) -> bool:
    """Whether a part is there and can be read; one that cannot is to be written again."""
    if not file.exists():
        return False
    try:
        return read_table(file, ["gene", "text", "finished"])["gene"].tolist() == list(genes)
    except ValueError as error:
        logger.warning("Writing anew: %s", error)
        return False


def _rendered(gene: str, tokenizer: Any, *, chat_template: bool) -> str:
    prompt = gene_profile_prompt(gene)
    if not chat_template:
        return f"{prompt}\n\n"
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    special_tokens: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[tuple[str, bool]]:
    """Text and whether the model ended it, for each prompt."""
    import torch

    inputs = tokenizer(list(prompts), padding=True, return_tensors="pt", add_special_tokens=special_tokens)
    inputs = inputs.to(model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)  # `generate` takes no generator
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            **sampling,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
    answers = output[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ended = torch.isin(answers, torch.tensor(ends, device=answers.device)).any(1).tolist()
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [(text.strip(), end) for text, end in zip(texts, ended, strict=True)]


def _write_given(texts: pd.Series, genes: Sequence[str] | None, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if genes is not None:
        missing = [gene for gene in genes if gene not in texts.index]
        if missing:
            logger.warning("%d of %d genes have no text, such as %s", len(missing), len(genes), ", ".join(missing[:5]))
        texts = texts[texts.index.isin(genes)]
    if texts.empty:
        raise ValueError("`genes`: none of them has a text.")
    table = pd.DataFrame({"gene": texts.index, "text": texts.to_numpy(), "finished": True})
    if out.exists() and read_manifest(out).get("content_hash") != _hash([*table["gene"], *table["text"]]):
        raise ValueError(f"`out={str(out)!r}` is there, with other profiles. Choose another name, or remove it.")
    return _write(table, out, settings)


def _write(table: pd.DataFrame, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    table = table[["gene", "text", "finished"]].sort_values("gene", ignore_index=True)
    empty = int((table["text"].str.strip() == "").sum())
    if empty:
        logger.warning("%d of %d profiles are empty.", empty, len(table))
    manifest = settings | {
        "n_genes": len(table),
        "n_empty": empty,
        "n_unfinished": int((~table["finished"]).sum()),
        "content_hash": _hash([*table["gene"], *table["text"]]),
        "versions": {name: version(name) for name in ("bft-trl", "torch", "transformers", "peft")},
    }
    # The table goes last: nobody looks at a manifest without one.
    write_together({manifest_path(out): json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", out: table})
    return manifest


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
