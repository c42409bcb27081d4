"""Gene sets as training data: the sets that ship with the package, and sets built from published files."""

import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bft_trl import markdown
from bft_trl.data.card import Source, write_data
from bft_trl.data.leakage import connected_sets, split, without_leaks
from bft_trl.data.tables import check_sizes, read_gene_sets, read_table
from bft_trl.io import check_folder
from bft_trl.prompts import conversation, gene_set_answer, gene_set_prompt

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SHIPPED = resources.files("bft_trl") / "data" / "gene_sets"


def load_gene_sets(split: str = "train", *, described: bool = False, max_genes: int | None = None) -> "Dataset":
    """Loads the gene sets that ship with the package, in TRL's conversational prompt-completion form.

    Args:
        split: "train" (1,200 sets), "eval" (150 sets) or, with `described` only, "test": 100 of GeneAgent's GO sets
            of 3 to 9 genes, which do not leak into the others.
        described: prompts with the full names of the genes and answers with the name of the process alone, instead of
            symbols and an analysis.
        max_genes: leave larger sets out.

    Returns a data set with the columns id, source, name, genes, gene_names, prompt and completion. Attribution and
    the command are in the README beside the files. Raises ValueError for another split.
    """
    from datasets import Dataset

    if split not in ("train", "eval", *(["test"] if described else [])):
        raise ValueError(f"`split={split!r}` is not known: choose 'train' or 'eval' ('test' with `described=True`).")
    with resources.as_file(SHIPPED / f"{split}.parquet") as path:
        table = read_table(path)
    if max_genes is not None:
        table = table[table["genes"].str.len() <= max_genes].reset_index(drop=True)
    if described:
        table = to_rows(table, source="go_bp", analysis=False, described=True)
    return Dataset.from_pandas(table, preserve_index=False)


def shipped_sets(*splits: str) -> pd.DataFrame:
    """Returns id, name and genes of the sets that ship with the package, of the given splits or of both."""
    tables = [load_gene_sets(name).to_pandas() for name in splits or ("train", "eval")]
    return pd.concat(tables, ignore_index=True)[["id", "name", "genes"]]


def read_table_source(path: Path, *, min_genes: int = 3, max_genes: int = 100) -> Source:
    """Returns the gene sets of a GMT file, or of a table with or without a column definition ([`read_gene_sets`])."""
    check_sizes(min_genes, max_genes)
    sets = read_gene_sets(path)
    genes = sets["genes"].map(lambda symbols: list(dict.fromkeys(symbols)))
    sets = sets[["id", "name"]].assign(definition=sets.get("definition"), genes=genes)
    sets = sets[sets["genes"].str.len().between(min_genes, max_genes)].reset_index(drop=True)
    attribution = f"{markdown.text(path.name)}: check the license of its author before you redistribute it."
    return Source(sets, Path(path.name.removesuffix(".gz")).stem, [attribution], [path])


def to_rows(sets: pd.DataFrame, *, source: str, analysis: bool = True, described: bool = False) -> pd.DataFrame:
    """Converts gene sets to TRL rows: id, source, name, genes, gene_names, prompt and completion (one message each).

    With `analysis` the answer has the definition of the set and, if `sets` has gene_names, those of its first genes.
    With `described` the prompt has those of all genes.
    """
    rows = []
    for entry in sets.itertuples():
        full_names = list(getattr(entry, "gene_names", [None] * len(entry.genes)))
        answer = gene_set_answer(
            entry.name,
            definition=entry.definition if analysis else None,
            gene_names={gene: full for gene, full in zip(entry.genes, full_names, strict=True) if full},
        )
        genes = list(entry.genes)  # parquet gives arrays
        prompt = gene_set_prompt(genes, analysis=analysis, full_names=full_names if described else None)
        row = {"id": entry.id, "source": source, "name": entry.name, "genes": genes, "gene_names": full_names}
        rows.append(row | conversation(prompt, answer))
    return pd.DataFrame(rows)


def build(
    source: Source,
    output_dir: Path,
    *,
    train_sets: int | None = None,
    eval_sets: int = 150,
    exclude: Sequence[Path] = (),
    analysis: bool = True,
    described: bool = False,
    seed: int = 0,
    command: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Writes `train.parquet`, `eval.parquet` and their data card to `output_dir`.

    Args:
        source: gene sets.
        output_dir: folder.
        train_sets, eval_sets: rows of each file; None takes all that remain.
        exclude: files of evaluation sets that must not leak into either.
        analysis: answers with the definition; sets without one are dropped. False gives the name alone.
        described: prompts with the full names of the genes.
        seed: seed of the split.
        command: command line for the data card.

    Returns the two tables, by name. Raises ValueError or FileNotFoundError before anything is written.
    """
    check_folder(output_dir)
    if described and not source.sets.get("gene_names", pd.Series(dtype=object)).map(any).any():
        raise ValueError("--described (`described=True`) needs a source with full names of genes: --org_db or --gaf.")
    tests = [read_gene_sets(path) for path in exclude]
    kept = without_leaks(source.sets, source.sets, tests)
    logger.info("%d of %d gene sets remain without the evaluation sets", len(kept), len(source.sets))
    if analysis:
        kept = _with_definition(kept, source)
    sizes = {"eval": eval_sets, "train": train_sets}
    parts = split(kept, connected_sets(kept), sizes, rng=np.random.default_rng(seed))
    form: dict[str, Any] = {"source": source.label, "analysis": analysis, "described": described}
    tables = {name: to_rows(part, **form) for name, part in parts.items()}
    write_data(
        output_dir,
        tables,
        title=f"Gene sets ({markdown.text(source.label)})",
        description="Gene sets in TRL's conversational prompt-completion form, with the columns `id`, `source`, "
        "`name`, `genes` and `gene_names`. No name and no gene set (Jaccard index 0.8) is in both files.",
        excluded=[(path.name, len(test)) for path, test in zip(exclude, tests, strict=True)],
        attribution=source.attribution,
        inputs=[*source.files, *exclude],
        command=command,
    )
    return tables


def _with_definition(sets: pd.DataFrame, source: Source) -> pd.DataFrame:
    """Drops sets without a definition, such as the newest terms of GO.db 3.16."""
    defined = sets["definition"].notna()
    if len(sets) and not defined.any():
        files = ", ".join(path.name for path in source.files)
        raise ValueError(
            f"{files}: no gene set has a definition, which the analysis needs. Use --names_only (`analysis=False`), "
            "or a table with a column definition."
        )
    logger.info("%d of them have no definition and are dropped; --names_only keeps them", (~defined).sum())
    return sets[defined].reset_index(drop=True)
