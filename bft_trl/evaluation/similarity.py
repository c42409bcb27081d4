"""Semantic similarity of names, and its rank among background names."""

import numpy as np

# Vectors of one name, computed in batches of different shapes, differ in the last bits: that is no difference.
TOLERANCE = 1e-6
CHUNK = 128


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angle between each row of `a` and the same row of `b`, shape (N,), in [-1, 1].

    Args:
        a, b: unit vectors of shape (N, D).
    """
    return np.einsum("nd,nd->n", a, b).clip(-1, 1)


def background_percentile(answers: np.ndarray, references: np.ndarray, background: np.ndarray) -> np.ndarray:
    """100 x (1 - share of background names more similar to the answer than the true name is), shape (N,), in [0, 100].

    100 says that no background name is closer to the answer than the true one. Memory is that of 128 rows of
    similarities, whatever the number of answers.

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
