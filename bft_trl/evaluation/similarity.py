"""Semantic similarity of names, and the rank of the true name among background names."""

import numpy as np

# Vectors of one name from batches of different shapes differ in the last bits.
TOLERANCE = 1e-6
CHUNK = 128


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosine between each row of `a` and the same row of `b`, shape (N,), in [-1, 1].

    Args:
        a, b: unit vectors of shape (N, D).
    """
    return np.einsum("nd,nd->n", a, b).clip(-1, 1)


def background_percentile(answers: np.ndarray, references: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Returns 100 x (1 - fraction of background names that are more similar to the answer than the true name), (N,).

    100: no background name is more similar to the answer. Memory does not grow with the number of answers.

    Args:
        answers, references: unit vectors of the answers and of their true names, shape (N, D).
        background: unit vectors of the background names, shape (M, D), M > 0.
    """
    if not len(background):
        raise ValueError("`background` is empty: a percentile needs names to rank among.")
    truth = cosine_similarity(answers, references)[:, None] + TOLERANCE
    percentiles = np.empty(len(answers))
    for start in range(0, len(answers), CHUNK):
        rows = slice(start, start + CHUNK)
        closer = (answers[rows] @ background.T > truth[rows]).mean(axis=1)
        percentiles[rows] = 100 * (1 - closer)
    return percentiles
