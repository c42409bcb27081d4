"""Vectors that text vectors are compared with: random and shuffled ones, annotations, and the symbol alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bft_trl.biology.pairs import degree_features, identity_features, pair_features
from bft_trl.biology.vectors import Vectors
from bft_trl.models import load_encoder

logger = logging.getLogger(__name__)

# Dimensions of annotation and letter vectors.
DIMENSION = 128
# Random and shuffled vectors are drawn several times up to this many training pairs.
SMALL = 20_000
DRAWS = 5
ENDS = ("gene_a", "gene_b")


def shuffled(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """Returns the same vectors, randomly assigned to other genes."""
    return vectors._replace(values=rng.permutation(vectors.values), manifest={})


def random_like(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """Returns random unit vectors for the same genes, of the same dimension."""
    values = rng.standard_normal(vectors.values.shape).astype(np.float32)
    return vectors._replace(values=values / np.linalg.norm(values, axis=1, keepdims=True), manifest={})


def annotation_vectors(genes: Sequence[str], sets: pd.DataFrame, *, seed: int) -> np.ndarray:
    """Returns a truncated SVD of the TF-IDF of the sets of each gene, (G, D) float32; 0 for a gene in no set.

    `sets` have a column `genes`, lists of symbols.
    """
    from scipy.sparse import csr_matrix

    members = sets["genes"].reset_index(drop=True).explode()
    members = members[members.isin(genes)].reset_index().drop_duplicates()
    if members.empty:
        logger.warning("None of the genes is in a gene set: the control 'go' has no information.")
        return np.zeros((len(genes), 1), dtype=np.float32)
    rows = pd.Index(genes).get_indexer(members["genes"])
    shape = (len(genes), len(sets))
    return _compressed(csr_matrix((np.ones(len(rows)), (rows, members["index"])), shape=shape), seed=seed)


def symbol_vectors(genes: Sequence[str], vectors: Sequence[Vectors], *, seed: int) -> tuple[np.ndarray, str]:
    """Returns vectors of the symbols alone, (G, D) float32, and a description of how they were made.

    They are made by the sentence encoder of the first of `vectors` that has one. If there is none, or it cannot be
    loaded, they are a truncated SVD of the TF-IDF of the symbols' letters (one to three in a row).
    """
    for encoder in dict.fromkeys(found.manifest.get("encoder") for found in vectors):
        if encoder in (None, "self"):
            continue
        try:
            return load_encoder(encoder).encode(genes), f"symbol, encoded by {encoder}"
        except (ValueError, ModuleNotFoundError) as error:
            logger.warning("The control 'symbol' does not use the encoder: %s", error)
    from sklearn.feature_extraction.text import CountVectorizer

    letters = CountVectorizer(analyzer="char_wb", ngram_range=(1, 3), lowercase=False).fit_transform(genes)
    return _compressed(letters, seed=seed), "letters of the symbol"


class PairInput(NamedTuple):
    """Features of a vector set or control."""

    draws: list[Callable[[pd.DataFrame], Any]]
    content: bytes  # what the features depend on
    made_of: str
    trees: bool = True


def pair_inputs(
    pairs: Mapping[str, pd.DataFrame], named: Mapping[str, Vectors], sets: pd.DataFrame, *, seed: int
) -> dict[str, PairInput]:
    """Returns the features of each vector set and control, by name, for pairs of the splits train, valid and test."""
    genes = sorted({gene for split in pairs.values() for end in ENDS for gene in split[end]})
    index = {gene: row for row, gene in enumerate(genes)}

    def of(values: Sequence[np.ndarray], made_of: str) -> PairInput:
        def features(values: np.ndarray) -> Callable[[pd.DataFrame], np.ndarray]:
            return lambda split: pair_features(values, *(split[end].map(index).to_numpy() for end in ENDS))

        return PairInput([features(one) for one in values], b"".join(one.tobytes() for one in values), made_of)

    for_random, for_shuffled = np.random.default_rng(seed).spawn(2)
    train = pairs["train"]
    wanted = {name: found.values[found.rows(genes)] for name, found in named.items()}
    name, first = next(iter(named.items()))
    covered = first._replace(genes=genes, values=wanted[name])
    draws = range(DRAWS if len(train) <= SMALL else 1)
    inputs = {name: of([values], "vectors") for name, values in wanted.items()}
    noise = [random_like(covered, for_random).values for _ in draws]
    inputs["random"] = of(noise, f"random vectors of the dimension of {name}")
    others = [shuffled(covered, for_shuffled).values for _ in draws]
    inputs["shuffled"] = of(others, f"the vectors of {name}, each of another gene")
    # These depend on the pairs alone.
    inputs["identity"] = PairInput([lambda split: identity_features(genes, split)], b"", "which genes", trees=False)
    inputs["degree"] = PairInput([lambda split: degree_features(train, split)], b"", "training pairs of each gene")
    symbols, made_of = symbol_vectors(genes, list(named.values()), seed=seed)
    inputs["symbol"] = of([symbols], made_of)
    inputs["go"] = of([annotation_vectors(genes, sets, seed=seed)], f"TF-IDF of {len(sets)} gene sets, SVD")
    return inputs


def _compressed(counts: Any, *, seed: int) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    weighted = TfidfTransformer().fit_transform(counts)
    dimension = min(DIMENSION, min(weighted.shape) - 1)
    if dimension < 1:
        return weighted.toarray().astype(np.float32)
    return TruncatedSVD(dimension, random_state=seed).fit_transform(weighted).astype(np.float32)
