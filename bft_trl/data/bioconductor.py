"""GO biological processes from Bioconductor's SQLite files."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd

from bft_trl.data.tables import check_sizes

# go_bp_all holds each annotation at the term and at all its ancestors.
_QUERY_ANNOTATIONS = """
    SELECT DISTINCT go_bp_all.go_id AS id, gene_info.symbol, gene_info.gene_name
    FROM go_bp_all JOIN gene_info USING (_id)
    ORDER BY go_bp_all.go_id, gene_info.symbol
"""
_QUERY_TERMS = "SELECT go_id AS id, term AS name, definition FROM go_term WHERE ontology = 'BP'"


def read_bioconductor(org_db: Path, go_db: Path, *, min_genes: int = 3, max_genes: int = 100) -> pd.DataFrame:
    """GO biological processes with their human genes, from Bioconductor's org.Hs.eg.sqlite and GO.sqlite.

    Both are inside Debian's packages r-bioc-org.hs.eg.db and r-bioc-go.db. Annotations are propagated to ancestors.

    Returns:
        One row per term with `min_genes` to `max_genes` symbols, ordered by id: id, name, definition, genes (sorted
        symbols), gene_names (full names in the same order).
    """
    check_sizes(min_genes, max_genes)
    annotations = _query(org_db, _QUERY_ANNOTATIONS).drop_duplicates(["id", "symbol"])
    sets = annotations.groupby("id").agg(genes=("symbol", list), gene_names=("gene_name", list)).reset_index()
    sets = sets[sets["genes"].str.len().between(min_genes, max_genes)]
    terms = _query(go_db, _QUERY_TERMS)
    return terms.merge(sets, on="id").sort_values("id", ignore_index=True)


def bioconductor_versions(go_db: Path) -> dict[str, str]:
    """What GO.sqlite says of itself, such as GOSOURCEDATE and GOEGSOURCEDATE."""
    return dict(_query(go_db, "SELECT name, value FROM metadata").itertuples(index=False))


def _query(database: Path, query: str) -> pd.DataFrame:
    if not database.is_file():
        raise FileNotFoundError(
            f"{database}: no such file. It is inside Debian's r-bioc-org.hs.eg.db or r-bioc-go.db."
        )
    try:
        # Opened read-only: sqlite3 would otherwise create what is not there.
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            # SQLite reads a damaged file up to the damage and beyond, without a word.
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(f"damaged: {found}")
            return pd.read_sql_query(query, connection)
    except (pd.errors.DatabaseError, sqlite3.DatabaseError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{database}: not the expected Bioconductor database ({error}).") from error
