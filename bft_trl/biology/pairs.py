"""Labeled gene pairs: reading, overlap with gene sets, and features of a pair."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from bft_trl.data.tables import ids_as_text, read_table

logger = logging.getLogger(__name__)


def read_pairs(path: Path) -> pd.DataFrame:
    """Reads a table with gene_a, gene_b and label (0 or 1); returns unordered pairs (gene_a < gene_b), each once.

    A repeated pair is kept once; if its labels contradict each other, it is left out. Pairs of a gene with itself are
    left out.

    Raises ValueError for another label, a missing gene, or if no pair is left.
    """
    table = read_table(path, ["gene_a", "gene_b", "label"])
    a, b = (ids_as_text(table[end], where=path).str.strip().replace("", None) for end in ("gene_a", "gene_b"))
    missing = a.isna() | b.isna() | table["label"].isna()
    if missing.any():
        raise ValueError(f"{path}: {missing.sum()} rows lack a gene or a label, the first is row {missing.argmax()}.")
    labels = pd.to_numeric(table["label"], errors="coerce")
    odd = ~labels.isin([0, 1])
    if odd.any():
        raise ValueError(f"{path}: the label must be 0 or 1; found {table['label'][odd].iloc[0]}.")
    ordered = pd.DataFrame({"gene_a": a.where(a <= b, b), "gene_b": b.where(a <= b, a), "label": labels.astype(int)})
    unique = ordered[a != b].drop_duplicates()
    contradictory = unique.duplicated(["gene_a", "gene_b"], keep=False)
    kept = unique[~contradictory].sort_values(["gene_a", "gene_b"], ignore_index=True)
    if kept.empty:
        raise ValueError(f"{path}: no pair is left: each is of a gene with itself or contradicts another row.")
    if (a == b).any() or contradictory.any():
        logger.warning(
            "%s: left out %d pairs of a gene with itself and %d contradictory pairs.",
            *(path, (a == b).sum(), contradictory.sum() // 2),
        )
    return kept


def share_a_term(pairs: pd.DataFrame, sets: pd.DataFrame) -> np.ndarray:
    """Returns whether both genes of a pair are in one of the gene sets (column `genes`), (N,) bool."""
    terms = sets["genes"].reset_index(drop=True).explode().dropna()
    by_gene = terms.groupby(terms).agg(lambda members: set(members.index)).to_dict()
    none: set[int] = set()
    both = zip(pairs["gene_a"], pairs["gene_b"], strict=True)
    return np.array([not by_gene.get(a, none).isdisjoint(by_gene.get(b, none)) for a, b in both], dtype=bool)


def pair_features(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns symmetric features of pairs: product and distance in each dimension, (N, 2 D) float32.

    `first` and `second` are the rows of the pairs' genes, (N,), in `vectors`, (G, D).
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
    known["size"] = np.log1p(known["size"])
    features = []
    for statistic, missing in (("size", 0.0), ("mean", float(train["label"].mean()))):
        a, b = (pairs[end].map(known[statistic]).fillna(missing).to_numpy() for end in ("gene_a", "gene_b"))
        features += [a + b, np.abs(a - b)]
    return np.stack(features, axis=1).astype(np.float32)
