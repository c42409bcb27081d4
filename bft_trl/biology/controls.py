"""What text vectors are compared with: random and shuffled vectors, the genes' training pairs, and annotations."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bft_trl.biology.pairs import degree_features, pair_features
from bft_trl.biology.vectors import Vectors

logger = logging.getLogger(__name__)

# Dimensions of annotation vectors.
DIMENSION = 128
# Random and shuffled vectors are drawn several times up to this many training pairs.
SMALL = 20_000
DRAWS = 5
ENDS = ("gene_a", "gene_b")


def shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the same vectors (G, D), randomly assigned to other genes."""
    return rng.permutation(values)


def random_like(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns random unit vectors of the same shape (G, D), float32."""
    drawn = rng.standard_normal(values.shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def annotation_vectors(genes: Sequence[str], sets: pd.DataFrame, *, seed: int) -> np.ndarray:
    """Returns a truncated SVD of the TF-IDF of the sets of each gene, (G, D) float32; 0 for a gene in no set.

    `sets` have a column `genes`, lists of symbols.
    """
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    members = sets["genes"].reset_index(drop=True).explode()
    members = members[members.isin(genes)].reset_index().drop_duplicates()
    if members.empty:
        logger.warning("None of the genes is in a gene set: the control 'go' has no information.")
        return np.zeros((len(genes), 1), dtype=np.float32)
    rows = pd.Index(genes).get_indexer(members["genes"])
    counts = csr_matrix((np.ones(len(rows)), (rows, members["index"])), shape=(len(genes), len(sets)))
    weighted = TfidfTransformer().fit_transform(counts)
    dimension = min(DIMENSION, min(weighted.shape) - 1)
    if dimension < 1:
        return weighted.toarray().astype(np.float32)
    return TruncatedSVD(dimension, random_state=seed).fit_transform(weighted).astype(np.float32)


class PairInput(NamedTuple):
    """Features of a vector set or control, one function per draw."""

    draws: list[Callable[[pd.DataFrame], np.ndarray]]
    content: bytes  # what the features depend on


def pair_inputs(
    pairs: Mapping[str, pd.DataFrame], named: Mapping[str, Vectors], sets: pd.DataFrame, *, seed: int
) -> dict[str, PairInput]:
    """Returns the features of each vector set and control, by name, for pairs of the splits train, valid and test."""
    genes = sorted({gene for split in pairs.values() for end in ENDS for gene in split[end]})
    index = {gene: row for row, gene in enumerate(genes)}

    def of(*draws: np.ndarray) -> PairInput:
        def features(values: np.ndarray) -> Callable[[pd.DataFrame], np.ndarray]:
            return lambda split: pair_features(values, *(split[end].map(index).to_numpy() for end in ENDS))

        return PairInput([features(values) for values in draws], b"".join(values.tobytes() for values in draws))

    train = pairs["train"]
    wanted = {name: found.values[found.rows(genes)] for name, found in named.items()}
    first = next(iter(wanted.values()))
    n_draws = DRAWS if len(train) <= SMALL else 1
    inputs = {name: of(values) for name, values in wanted.items()}
    controls = {"random": random_like, "shuffled": shuffled}
    for (name, draw), rng in zip(controls.items(), np.random.default_rng(seed).spawn(2), strict=True):
        inputs[name] = of(*(draw(first, rng) for _ in range(n_draws)))
    inputs["degree"] = PairInput([lambda split: degree_features(train, split)], b"")
    inputs["go"] = of(annotation_vectors(genes, sets, seed=seed))
    return inputs
