"""Labeled gene pairs: reading, overlap between splits, and features of a pair."""

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bft_trl.biology.genes import warn_of_symbols
from bft_trl.data.tables import ids_as_text, read_table

logger = logging.getLogger(__name__)


class Pairs(NamedTuple):
    """Unordered pairs (gene_a < gene_b, label 0 or 1), each once, and counts of what was in the file."""

    pairs: pd.DataFrame
    report: dict[str, Any]


def read_pairs(path: Path) -> Pairs:
    """Reads a table with gene_a, gene_b and label (0 or 1).

    Pairs are unordered. A repeated pair is kept once; if its labels contradict each other, it is left out. Pairs of a
    gene with itself are left out.

    Raises ValueError for another label, a missing gene, or if no pair is left.
    """
    table = read_table(path, ["gene_a", "gene_b", "label"])[["gene_a", "gene_b", "label"]]
    a, b = (ids_as_text(table[end], where=path).str.strip().replace("", None) for end in ("gene_a", "gene_b"))
    missing = a.isna() | b.isna() | table["label"].isna()
    if missing.any():
        raise ValueError(f"{path}: {missing.sum()} rows lack a gene or a label, the first is row {missing.argmax()}.")
    labels = pd.to_numeric(table["label"], errors="coerce")
    odd = ~labels.isin([0, 1])
    if odd.any():
        raise ValueError(f"{path}: the label must be 0 or 1; found {table['label'][odd].iloc[0]}.")
    ordered = pd.DataFrame({"gene_a": a.where(a <= b, b), "gene_b": b.where(a <= b, a), "label": labels.astype(int)})
    itself = a == b
    counts = ordered[~itself].groupby(["gene_a", "gene_b"], sort=True)["label"].agg(["min", "max", "size"])
    contradictory = counts["min"] != counts["max"]
    kept = counts[~contradictory].reset_index().rename(columns={"min": "label"})[["gene_a", "gene_b", "label"]]
    if kept.empty:
        raise ValueError(f"{path}: no pair is left: each is of a gene with itself or contradicts another row.")
    repeated = (counts["size"] > 1) & ~contradictory
    report = {"pairs": len(kept), "with_itself": int(itself.sum()), "contradictory": int(contradictory.sum())}
    report["repeated"] = int(repeated.sum())
    if len(kept) < len(table):
        logger.warning(
            "%s: left out %d pairs of a gene with itself and %d contradictory pairs; %d repeated pairs count once.",
            *(path, report["with_itself"], report["contradictory"], report["repeated"]),
        )
    warn_of_symbols(sorted({*kept["gene_a"], *kept["gene_b"]}))
    return Pairs(kept, report)


def shared_genes(splits: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, int]]:
    """Returns how many genes and pairs each two splits ("train and test") have in common."""
    genes = {name: {*pairs["gene_a"], *pairs["gene_b"]} for name, pairs in splits.items()}
    edges = {name: set(zip(pairs["gene_a"], pairs["gene_b"], strict=True)) for name, pairs in splits.items()}
    return {
        f"{a} and {b}": {"genes": len(genes[a] & genes[b]), "pairs": len(edges[a] & edges[b])}
        for a, b in combinations(splits, 2)
    }


def share_a_term(pairs: pd.DataFrame, sets: pd.DataFrame) -> np.ndarray:
    """Returns whether both genes of a pair are in one of the gene sets (column `genes`), (N,) bool."""
    terms = sets["genes"].reset_index(drop=True).explode().dropna()
    by_gene = terms.groupby(terms).agg(lambda members: set(members.index)).to_dict()
    none: set[int] = set()
    both = zip(pairs["gene_a"], pairs["gene_b"], strict=True)
    return np.array([not by_gene.get(a, none).isdisjoint(by_gene.get(b, none)) for a, b in both], dtype=bool)


def pair_features(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns symmetric features of pairs: product and distance in each dimension, (N, 2 D) float32.

    Args:
        vectors: (G, D).
        first, second: rows of `vectors`, (N,) each.
    """
    a, b = vectors[first], vectors[second]
    return np.concatenate([a * b, np.abs(a - b)], axis=1, dtype=np.float32)


def degree_features(train: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """Returns symmetric features of pairs from the training pairs of their genes, (N, 4) float32.

    They are sum and distance of log1p of each gene's number of training pairs, and of the positive fraction of these
    (for a gene without training pairs, the fraction of all).
    """
    ends = pd.concat([train[[end, "label"]].set_axis(["gene", "label"], axis=1) for end in ("gene_a", "gene_b")])
    known = ends.groupby("gene")["label"].agg(["size", "mean"])
    features = []
    for statistic, missing in (("size", 0.0), ("mean", float(train["label"].mean()))):
        a, b = (pairs[end].map(known[statistic]).fillna(missing).to_numpy() for end in ("gene_a", "gene_b"))
        if statistic == "size":
            a, b = np.log1p(a), np.log1p(b)
        features += [a + b, np.abs(a - b)]
    return np.stack(features, axis=1).astype(np.float32)


def identity_features(genes: Sequence[str], pairs: pd.DataFrame) -> Any:
    """Returns a sparse matrix (N, G) with a one for each of the two genes of a pair."""
    from scipy.sparse import csr_matrix

    columns = pairs[["gene_a", "gene_b"]].map({gene: row for row, gene in enumerate(genes)}.__getitem__).to_numpy()
    rows = np.repeat(np.arange(len(pairs)), 2)
    return csr_matrix((np.ones(2 * len(pairs)), (rows, columns.ravel())), shape=(len(pairs), len(genes)))
