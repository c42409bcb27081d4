"""What text vectors have to beat: vectors without meaning, what is known of a gene's name, and what is annotated."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.biology.vectors import Vectors

logger = logging.getLogger(__name__)

# Dimensions of the vectors of annotations and of letters.
DIMENSION = 128


def annotation_vectors(genes: Sequence[str], sets: pd.DataFrame, *, seed: int) -> np.ndarray:
    """Truncated SVD of the TF-IDF of the sets that a gene is in, (genes, D) float32; 0 for a gene in none.

    Args:
        sets: with a column `genes`, lists of symbols, such as GO terms.
    """
    from scipy.sparse import csr_matrix

    index = {gene: row for row, gene in enumerate(genes)}
    entries = [
        (index[gene], term) for term, members in enumerate(sets["genes"]) for gene in set(members) if gene in index
    ]
    if not entries:
        logger.warning("None of the genes is in one of the gene sets: the control 'go' knows nothing.")
        return np.zeros((len(genes), 1), dtype=np.float32)
    rows, columns = np.array(entries).T
    return _compressed(csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(genes), len(sets))), seed=seed)


def symbol_vectors(genes: Sequence[str], vectors: Sequence[Vectors], *, seed: int) -> tuple[np.ndarray, str]:
    """Vectors of the symbols alone, (genes, D) float32, and what made them.

    By the sentence encoder of the first of `vectors` that has one which can be loaded; else a truncated SVD of the
    TF-IDF of their letters (one to three in a row).
    """
    for encoder in dict.fromkeys(found.manifest.get("encoder") for found in vectors):
        if encoder in (None, "self"):
            continue
        from bft_trl.encoders import load_encoder

        try:
            return load_encoder(encoder).encode(genes), f"symbol, encoded by {encoder}"
        except (ValueError, ModuleNotFoundError) as error:
            logger.warning("The control 'symbol' does without the encoder: %s", error)
    from sklearn.feature_extraction.text import CountVectorizer

    letters = CountVectorizer(analyzer="char_wb", ngram_range=(1, 3), lowercase=False).fit_transform(genes)
    return _compressed(letters, seed=seed), "letters of the symbol"


def degree_features(train: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """What the training pairs say of the genes of a pair without any vector, symmetric, (N, 4) float32.

    Sum and distance of log1p of a gene's number of pairs, and of their share of positives (that of all where it has
    none).
    """
    ends = pd.concat(
        [
            train[["gene_a", "label"]].set_axis(["gene", "label"], axis=1),
            train[["gene_b", "label"]].set_axis(["gene", "label"], axis=1),
        ]
    )
    known = ends.groupby("gene")["label"].agg(["size", "mean"])
    features = []
    for statistic, missing in (("size", 0.0), ("mean", float(train["label"].mean()))):
        a, b = (pairs[end].map(known[statistic]).fillna(missing).to_numpy() for end in ("gene_a", "gene_b"))
        if statistic == "size":
            a, b = np.log1p(a), np.log1p(b)
        features += [a + b, np.abs(a - b)]
    return np.stack(features, axis=1).astype(np.float32)


def identity_features(genes: Sequence[str], pairs: pd.DataFrame) -> Any:
    """Which two genes a pair has, (N, genes) sparse with two ones a row."""
    from scipy.sparse import csr_matrix

    index = {gene: row for row, gene in enumerate(genes)}
    columns = pairs[["gene_a", "gene_b"]].map(index.__getitem__).to_numpy()
    rows = np.repeat(np.arange(len(pairs)), 2)
    return csr_matrix((np.ones(2 * len(pairs)), (rows, columns.ravel())), shape=(len(pairs), len(genes)))


def _compressed(counts: Any, *, seed: int) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    weighted = TfidfTransformer().fit_transform(counts)
    dimension = min(DIMENSION, min(weighted.shape) - 1)
    if dimension < 1:
        return weighted.toarray().astype(np.float32)
    return TruncatedSVD(dimension, random_state=seed).fit_transform(weighted).astype(np.float32)
