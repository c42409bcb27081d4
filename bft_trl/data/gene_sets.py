"""Gene Ontology gene sets as training data: read, keep evaluation sets out, split, and write TRL rows."""

import hashlib
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bft_trl.atomic import write_text
from bft_trl.data.leakage import connected_sets, find_leaks
from bft_trl.data.tables import read_gene_sets, write_parquet
from bft_trl.prompts import conversation, gene_set_answer, gene_set_prompt

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SHIPPED = resources.files("bft_trl") / "data" / "gene_sets"

# go_bp_all holds each annotation at the term and at all its ancestors.
_QUERY_ANNOTATIONS = """
    SELECT DISTINCT go_bp_all.go_id AS id, gene_info.symbol, gene_info.gene_name
    FROM go_bp_all JOIN gene_info USING (_id)
    ORDER BY go_bp_all.go_id, gene_info.symbol
"""
_QUERY_TERMS = "SELECT go_id AS id, term AS name, definition FROM go_term WHERE ontology = 'BP'"


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
        return Dataset.from_pandas(pd.read_parquet(path), preserve_index=False)


def read_bioconductor(org_db: Path, go_db: Path, *, min_genes: int = 3, max_genes: int = 100) -> pd.DataFrame:
    """GO biological processes with their human genes, from Bioconductor's org.Hs.eg.sqlite and GO.sqlite.

    Both are inside Debian's packages r-bioc-org.hs.eg.db and r-bioc-go.db. Annotations are propagated to ancestors.

    Returns:
        One row per term with `min_genes` to `max_genes` symbols, ordered by id: id, name, definition, genes (sorted
        symbols), gene_names (full names in the same order).
    """
    if not 1 <= min_genes <= max_genes:
        raise ValueError(f"`min_genes={min_genes}` and `max_genes={max_genes}`: need 1 <= min_genes <= max_genes.")
    annotations = _query(org_db, _QUERY_ANNOTATIONS).drop_duplicates(["id", "symbol"])
    sets = annotations.groupby("id").agg(genes=("symbol", list), gene_names=("gene_name", list)).reset_index()
    sets = sets[sets["genes"].str.len().between(min_genes, max_genes)]
    terms = _query(go_db, _QUERY_TERMS)
    return terms.merge(sets, on="id").sort_values("id", ignore_index=True)


def exclude(sets: pd.DataFrame, evaluation_sets: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """`sets` without those that leak into one of `evaluation_sets`, by id, by name or by their genes."""
    leaked: set[str] = set()
    for other in evaluation_sets:
        leaked |= set(find_leaks(sets, other)["train_id"])
    return sets[~sets["id"].isin(leaked)].reset_index(drop=True)


def split(sets: pd.DataFrame, sizes: Mapping[str, int | None], *, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Disjoint random parts of `sets` between which no name and no gene set (Jaccard 0.8) is shared.

    Args:
        sets: columns id, name, genes.
        sizes: rows of each part, filled in this order; None for the last one takes all that remain.
        rng: decides the order. Sets that belong together stay together; those that do not fit a part go to the next.

    Raises ValueError where there are not enough sets.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}: {size} gene sets asked for; ask for 1 or more.")
    groups = connected_sets(sets)
    order = [groups[i] for i in rng.permutation(len(groups))]
    parts = {}
    for name, size in sizes.items():
        taken: list[int] = []
        remaining = []
        for group in order:
            if size is None or len(taken) + len(group) <= size:
                taken += group
            else:
                remaining.append(group)
        if len(taken) < (1 if size is None else size):
            raise ValueError(
                f"{name}: {size or 'some'} gene sets asked for, {len(taken)} left of {len(sets)} after the parts "
                "before. Ask for fewer, or allow larger sets with `max_genes`."
            )
        parts[name] = sets.iloc[sorted(taken)].reset_index(drop=True)
        order = remaining
    return parts


def to_rows(sets: pd.DataFrame, *, source: str, analysis: bool = True) -> pd.DataFrame:
    """Gene sets as TRL rows: id, source, name, genes, prompt and completion (lists of one message each)."""
    rows = []
    for entry in sets.itertuples():
        answer = gene_set_answer(
            entry.name,
            definition=entry.definition if analysis else None,
            gene_names=dict(zip(entry.genes, entry.gene_names, strict=True)),
        )
        row = {"id": entry.id, "source": source, "name": entry.name, "genes": entry.genes}
        rows.append(row | conversation(gene_set_prompt(entry.genes, analysis=analysis), answer))
    return pd.DataFrame(rows)


def build(
    org_db: Path,
    go_db: Path,
    out: Path,
    *,
    train_sets: int | None = None,
    eval_sets: int = 150,
    min_genes: int = 3,
    max_genes: int = 100,
    excluded: Sequence[Path] = (),
    analysis: bool = True,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Writes `train.parquet`, `eval.parquet` and their README into `out`; nothing before all input has been read.

    Returns the two tables of rows.
    """
    if seed < 0:
        raise ValueError(f"`seed={seed}` must be 0 or more.")
    evaluation_sets = [read_gene_sets(path) for path in excluded]
    dates = dict(_query(go_db, "SELECT name, value FROM metadata").itertuples(index=False))
    sets = read_bioconductor(org_db, go_db, min_genes=min_genes, max_genes=max_genes)
    kept = exclude(sets, evaluation_sets)
    logger.info("%d of %d gene sets remain after excluding evaluation sets", len(kept), len(sets))
    if analysis:
        # GO.db 3.16 lacks the definitions of its newest terms; an analysis without one would have nothing to say.
        defined = kept["definition"].notna()
        logger.info("%d of them have no definition and are left out; --names-only can use them", (~defined).sum())
        kept = kept[defined].reset_index(drop=True)
    parts = split(kept, {"eval": eval_sets, "train": train_sets}, rng=np.random.default_rng(seed))
    tables = {name: to_rows(part, source="go_bp", analysis=analysis) for name, part in parts.items()}
    for name, table in tables.items():
        write_parquet(out / f"{name}.parquet", table)
    command = [f"bft-trl data gene-sets --org-db {org_db.name} --go-db {go_db.name} --out {out.name}"]
    command += [f"--max-genes {max_genes}", f"--eval-sets {eval_sets}", f"--seed {seed}"]
    command += [f"--train-sets {train_sets}"] if train_sets is not None else []
    command += [f"--min-genes {min_genes}"] if min_genes != 3 else []
    command += [] if analysis else ["--names-only"]
    command += [f"--exclude {' '.join(path.name for path in excluded)}"] if excluded else []
    write_text(out / "README.md", _data_card(out, tables, dates, evaluation_sets, excluded, command))
    return tables


def _query(database: Path, query: str) -> pd.DataFrame:
    if not database.is_file():
        raise FileNotFoundError(
            f"{database}: no such file. It is inside Debian's r-bioc-org.hs.eg.db or r-bioc-go.db."
        )
    try:
        # Opened read-only: sqlite3 would otherwise create what is not there.
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return pd.read_sql_query(query, connection)
    except (pd.errors.DatabaseError, sqlite3.DatabaseError) as error:
        raise ValueError(f"{database}: not the expected Bioconductor database ({error}).") from error


def _data_card(
    out: Path,
    tables: Mapping[str, pd.DataFrame],
    dates: Mapping[str, str],
    evaluation_sets: Sequence[pd.DataFrame],
    excluded: Sequence[Path],
    command: Sequence[str],
) -> str:
    files = "\n".join(
        f"| `{name}.parquet` | {len(table)} | {table['genes'].str.len().median():.0f} | "
        f"{hashlib.sha256((out / f'{name}.parquet').read_bytes()).hexdigest()} |"
        for name, table in tables.items()
    )
    checks = "\n".join(
        f"| {path.name} | {len(other)} | {len(find_leaks(pd.concat(tables.values()), other))} |"
        for path, other in zip(excluded, evaluation_sets, strict=True)
    )
    typed = " \\\n    ".join(command)
    return f"""# Gene sets of GO biological processes

Human genes annotated to a process or its descendants, in TRL's conversational prompt-completion form, with `id`,
`source`, `name` and `genes` beside it. No name and no gene set (Jaccard 0.8) is shared between the files.

| file | sets | median genes | sha256 |
|---|---|---|---|
{files}

Evaluation sets kept out, by id, by name and by overlap of the genes; `bft-trl data check` finds:

| evaluation sets | sets | leaks |
|---|---|---|
{checks or "| none given | | |"}

## Attribution

- Terms, definitions and annotations: the Gene Ontology ({dates.get("GOSOURCEDATE", "date unknown")}),
  https://geneontology.org, CC BY 4.0. Changed: annotations propagated to ancestors, sets selected by size, wrapped
  into prompts and answers.
- Gene symbols and names: NCBI Gene ({dates.get("GOEGSOURCEDATE", "date unknown")}), public domain.
- Both taken from the Bioconductor packages org.Hs.eg.db and GO.db (Artistic-2.0), as packaged by Debian in
  r-bioc-org.hs.eg.db and r-bioc-go.db.

## Made by

```
{typed}
```
"""
