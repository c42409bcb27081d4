"""Labelled pairs of genes: read, the rules for repeated and contradictory ones, and what splits share."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bft_trl.biology.genes import warn_of_symbols
from bft_trl.data.tables import ids_as_text, read_table

logger = logging.getLogger(__name__)


class Pairs(NamedTuple):
    """Unordered pairs (gene_a < gene_b, label 0 or 1), each once, and what was left out of the file."""

    pairs: pd.DataFrame
    report: dict[str, Any]


def read_pairs(path: Path) -> Pairs:
    """Pairs from a table with gene_a, gene_b and label (0 or 1).

    A pair is unordered. Of repeated pairs that agree one is kept; of those that contradict each other none, because
    nobody knows which label is right. Pairs of a gene with itself are left out.

    Raises ValueError for another label, a missing gene and where no pair is left.
    """
    table = read_table(path, ["gene_a", "gene_b", "label"])
    table = table.assign(
        **{end: ids_as_text(table[end], where=path).str.strip().replace("", None) for end in ("gene_a", "gene_b")}
    )
    if table[["gene_a", "gene_b", "label"]].isna().any(axis=None):
        rows = table.index[table[["gene_a", "gene_b", "label"]].isna().any(axis=1)]
        raise ValueError(f"{path}: {len(rows)} rows lack a gene or a label, the first of them row {rows[0]} (from 0).")
    labels = pd.to_numeric(table["label"], errors="coerce")
    if not labels.isin([0, 1]).all():
        odd = table["label"][~labels.isin([0, 1])].iloc[0]
        raise ValueError(f"{path}: the label must be 0 or 1; found {odd}.")
    a, b = table["gene_a"], table["gene_b"]
    ordered = pd.DataFrame({"gene_a": a.where(a <= b, b), "gene_b": b.where(a <= b, a), "label": labels.astype(int)})
    itself = ordered["gene_a"] == ordered["gene_b"]
    counted = ordered[~itself].groupby(["gene_a", "gene_b"], sort=True)["label"].agg(["min", "max", "size"])
    contradictory = counted["min"] != counted["max"]
    kept = counted[~contradictory].reset_index().rename(columns={"min": "label"})[["gene_a", "gene_b", "label"]]
    if kept.empty:
        raise ValueError(f"{path}: no pair is left: each is of a gene with itself, or contradicts another row.")
    report = {
        "rows": len(table),
        "pairs": len(kept),
        "genes": int(pd.concat([kept["gene_a"], kept["gene_b"]]).nunique()),
        "positive": float(kept["label"].mean()),
        "with_itself": int(itself.sum()),
        "repeated": int((counted["size"] > 1).sum()),
        "contradictory": int(contradictory.sum()),
    }
    if itself.any() or report["repeated"]:
        logger.warning(
            "%s: %d pairs of a gene with itself and %d contradictory ones are left out, %d repeated ones count once.",
            *(path, report["with_itself"], report["contradictory"], report["repeated"] - report["contradictory"]),
        )
    warn_of_symbols(sorted({*kept["gene_a"], *kept["gene_b"]}))
    return Pairs(kept, report)


def shared_genes(parts: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, int]]:
    """For each two parts ("train and test"), how many genes and pairs they share."""
    genes = {name: {*pairs["gene_a"], *pairs["gene_b"]} for name, pairs in parts.items()}
    edges = {name: set(zip(pairs["gene_a"], pairs["gene_b"], strict=True)) for name, pairs in parts.items()}
    names = list(parts)
    return {
        f"{one} and {other}": {"genes": len(genes[one] & genes[other]), "pairs": len(edges[one] & edges[other])}
        for position, one in enumerate(names)
        for other in names[position + 1 :]
    }


def share_a_term(pairs: pd.DataFrame, sets: pd.DataFrame) -> np.ndarray:
    """Whether both genes of a pair stand in one of the gene sets, (N,) bool.

    Args:
        sets: with a column `genes`, lists of symbols.
    """
    terms: dict[str, set[int]] = {}
    for number, genes in enumerate(sets["genes"]):
        for gene in genes:
            terms.setdefault(gene, set()).add(number)
    none: set[int] = set()
    both = zip(pairs["gene_a"], pairs["gene_b"], strict=True)
    return np.array([not terms.get(a, none).isdisjoint(terms.get(b, none)) for a, b in both], dtype=bool)


def pair_features(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Symmetric features of pairs: product and distance in each dimension, (N, 2 D) float32.

    Args:
        vectors: (genes, D).
        first, second: rows of `vectors`, (N,) each.
    """
    a, b = vectors[first], vectors[second]
    features = np.empty((len(a), 2 * vectors.shape[1]), dtype=np.float32)
    np.multiply(a, b, out=features[:, : vectors.shape[1]])
    np.abs(a - b, out=features[:, vectors.shape[1] :])
    return features
