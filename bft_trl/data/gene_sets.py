"""Gene sets as training data: keep evaluation sets out, split, and write TRL rows with their data card."""

import logging
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bft_trl.data.card import write_data
from bft_trl.data.leakage import connected_sets, find_leaks
from bft_trl.data.sources import Source
from bft_trl.data.splits import split
from bft_trl.data.tables import read_gene_sets, read_parquet
from bft_trl.io import check_folder
from bft_trl.prompts import conversation, gene_set_answer, gene_set_prompt

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SHIPPED = resources.files("bft_trl") / "data" / "gene_sets"


def load_gene_sets(split: str = "train") -> "Dataset":
    """The gene sets that ship with the package, in TRL's conversational prompt-completion form.

    Args:
        split: "train" or "eval".

    Returns:
        Columns id, source, name, genes, prompt, completion. Attribution and the command that made them are in the
        README beside the files.
    """
    from datasets import Dataset

    if split not in ("train", "eval"):
        raise ValueError(f"`split={split!r}` is not known: choose 'train' or 'eval'.")
    with resources.as_file(SHIPPED / f"{split}.parquet") as path:
        return Dataset.from_pandas(read_parquet(path), preserve_index=False)


def shipped_sets(*splits: str) -> pd.DataFrame:
    """The gene sets that ship with the package (id, name, genes), of the given splits or of both."""
    tables = []
    for name in splits or ("train", "eval"):
        with resources.as_file(SHIPPED / f"{name}.parquet") as path:
            tables.append(read_parquet(path, columns=["id", "name", "genes"]))
    return pd.concat(tables, ignore_index=True)


def exclude(sets: pd.DataFrame, evaluation_sets: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """`sets` without those that leak into one of `evaluation_sets`, by id, by name or by their genes."""
    leaked: set[str] = set()
    for other in evaluation_sets:
        leaked |= set(find_leaks(sets, other)["train_id"])
    return sets[~sets["id"].isin(leaked)].reset_index(drop=True)


def to_rows(sets: pd.DataFrame, *, source: str, analysis: bool = True) -> pd.DataFrame:
    """Gene sets as TRL rows: id, source, name, genes, prompt and completion (lists of one message each).

    With `analysis` the answer has the set's definition and, where `sets` has gene_names, those of its first genes.
    """
    rows = []
    for entry in sets.itertuples():
        full_names = getattr(entry, "gene_names", [None] * len(entry.genes))
        answer = gene_set_answer(
            entry.name,
            definition=entry.definition if analysis else None,
            gene_names={gene: full for gene, full in zip(entry.genes, full_names, strict=True) if full},
        )
        row = {"id": entry.id, "source": source, "name": entry.name, "genes": entry.genes}
        rows.append(row | conversation(gene_set_prompt(entry.genes, analysis=analysis), answer))
    return pd.DataFrame(rows)


def build(
    source: Source,
    out: Path,
    *,
    train_sets: int | None = None,
    eval_sets: int = 150,
    excluded: Sequence[Path] = (),
    analysis: bool = True,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Writes `train.parquet`, `eval.parquet` and their README into `out`; nothing before all input has been read.

    Args:
        source: the gene sets, from a function of `bft_trl.data.sources`.
        out: folder.
        train_sets, eval_sets: rows of each file; None takes all that remain.
        excluded: files with evaluation sets that must not leak into either.
        analysis: answers with the definition; sets without one are left out. False gives the name alone.
        seed: of the split.

    Returns the two tables of rows. Raises ValueError for values and files that cannot be used.
    """
    check_folder(out, name="out")
    if seed < 0:
        raise ValueError(f"`seed={seed}` must be 0 or more.")
    evaluation_sets = [read_gene_sets(path) for path in excluded]
    kept = exclude(source.sets, evaluation_sets)
    logger.info("%d of %d gene sets remain after excluding evaluation sets", len(kept), len(source.sets))
    if analysis:
        kept = _defined(kept, source)
    parts = split(
        kept, connected_sets(kept), {"eval": eval_sets, "train": train_sets}, rng=np.random.default_rng(seed)
    )
    tables = {name: to_rows(part, source=source.label, analysis=analysis) for name, part in parts.items()}
    files = {out / f"{name}.parquet": table for name, table in tables.items()}
    command = [f"bft-trl data gene-sets {shlex.join([*source.options, '--out', out.name])}"]
    command += [f"--max-genes {source.max_genes}", f"--eval-sets {eval_sets}", f"--seed {seed}"]
    command += [f"--train-sets {train_sets}"] if train_sets is not None else []
    command += [f"--min-genes {source.min_genes}"] if source.min_genes != 3 else []
    command += [] if analysis else ["--names-only"]
    command += [f"--exclude {shlex.join(path.name for path in excluded)}"] if excluded else []
    rows = pd.concat(tables.values(), ignore_index=True)
    write_data(
        files,
        title=source.title,
        description=f"{source.description} No name and no gene set (Jaccard 0.8) is shared between the files.",
        extra_column=("median genes", lambda table: f"{table['genes'].str.len().median():.0f}"),
        exclusion="Evaluation sets kept out, by id, by name and by overlap of the genes; `bft-trl data check` finds:",
        excluded=[
            (path.name, len(other), len(find_leaks(rows, other)))
            for path, other in zip(excluded, evaluation_sets, strict=True)
        ],
        attribution=source.attribution,
        inputs=[*source.files, *excluded],
        command=command,
        unit="sets",
    )
    return tables


def _defined(sets: pd.DataFrame, source: Source) -> pd.DataFrame:
    """The sets with a definition: GO.db 3.16 lacks those of its newest terms, and an analysis would say nothing."""
    defined = sets["definition"].notna()
    if len(sets) and not defined.any():
        files = ", ".join(path.name for path in source.files)
        raise ValueError(
            f"{files}: no gene set has a definition, which the analysis is made of. Use --names-only "
            "(`analysis=False`), or a table with a column definition."
        )
    logger.info("%d of them have no definition and are left out; --names-only can use them", (~defined).sum())
    return sets[defined].reset_index(drop=True)
