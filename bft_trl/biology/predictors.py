"""Expression changes of perturbations never seen, from those seen: every predictor is a matrix of weights over these.

`weights @ changes` is the prediction, with weights (test, train) that do not look at the changes. So hyperparameters
are chosen on the Gram matrix of the changes, (P, P), however many genes there are.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

# Ridge penalties, beside vectors of unit mean square length: 1000 is nearly the mean of the training perturbations.
_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
_KERNEL_PENALTIES = (0.1, 1.0, 10.0)
_NEIGHBOURS = (1, 3, 5, 10)
INNER_FOLDS = 3


def fold_rows(count: int, n_folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Test rows of each of `n_folds` folds of `count` rows, at random, in order within a fold."""
    return [np.sort(rows) for rows in np.array_split(rng.permutation(count), n_folds)]


def training_rows(test: np.ndarray, related: np.ndarray) -> np.ndarray:
    """Rows that share no gene with those of `test`, and are none of them.

    Args:
        related: which perturbations have a gene in common, (P, P) bool, True on the diagonal.
    """
    return np.flatnonzero(~related[:, test].any(1))


def predict_unseen(
    vectors: np.ndarray,
    changes: np.ndarray,
    folds: list[np.ndarray],
    *,
    rng: np.random.Generator,
    related: np.ndarray | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Predicted changes (P, G) of each fold from the others, and the name of the predictor chosen for each fold.

    The predictor and its hyperparameters are those of the smallest squared error in three inner folds of the training
    perturbations.

    Args:
        vectors: of the perturbed genes, (P, D).
        changes: of the perturbations, (P, G); those of a fold are not looked at when it is predicted.
        folds: rows of each fold; see [`fold_rows`].
        rng: of the inner folds.
        related: which perturbations have a gene in common, (P, P) bool: none of those is learned from either. None:
            each has a gene of its own.
    """
    related = np.eye(len(changes), dtype=bool) if related is None else related
    predicted = np.empty_like(changes)
    gram = changes @ changes.T
    chosen = []
    for test in folds:
        train = training_rows(test, related)
        within = np.ix_(train, train)
        name = _best(vectors[train], gram[within], related[within], rng)
        predicted[test] = candidates(vectors[train], vectors[test])[name]() @ changes[train]
        chosen.append(name)
    return predicted, chosen


def candidates(train: np.ndarray, test: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """What gives the weights (test, train) of each predictor: ridge and kernel ridge around the mean, neighbours.

    Args:
        train, test: vectors, (N, D); centred on the training mean and scaled to its mean square length first.
    """
    from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

    centre = train.mean(0)
    length = np.sqrt(np.mean(((train - centre) ** 2).sum(1))) or 1.0
    a, b = (train - centre) / length, (test - centre) / length
    own = euclidean_distances(a, squared=True)
    width = np.median(own[np.triu_indices(len(a), 1)]) if len(a) > 1 else 1.0
    width = width or 1.0
    linear = a @ a.T, b @ a.T
    radial = np.exp(-own / width), np.exp(-euclidean_distances(b, a, squared=True) / width)
    nearest = np.argsort(cosine_distances(test, train), axis=1, kind="stable")
    found: dict[str, Callable[[], np.ndarray]] = {}
    for penalty in _PENALTIES:
        found[f"ridge, penalty {penalty:g}"] = partial(_ridge, *linear, penalty)
    for penalty in _KERNEL_PENALTIES:
        found[f"kernel ridge, penalty {penalty:g}"] = partial(_ridge, *radial, penalty)
    for count in _NEIGHBOURS:
        if count < len(train):
            found[f"{count} nearest neighbours"] = partial(_neighbours, nearest[:, :count], len(train))
    return found


def _ridge(own: np.ndarray, other: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of kernel ridge regression on changes less their mean, plus the mean."""
    from scipy.linalg import solve

    weights = solve(own + penalty * np.eye(len(own)), other.T, assume_a="pos").T
    return weights + (1 - weights.sum(1, keepdims=True)) / len(own)


def _neighbours(nearest: np.ndarray, count: int) -> np.ndarray:
    """Equal weights for the neighbours (test, k), none for the rest of `count`."""
    weights = np.zeros((len(nearest), count))
    np.put_along_axis(weights, nearest, 1 / nearest.shape[1], axis=1)
    return weights


def additive(perturbations: list[str], changes: np.ndarray) -> np.ndarray:
    """Sum of the changes under each single perturbation, (P, G), for perturbations of several genes ("A+B").

    NaN for single ones and where one of the parts was not perturbed alone.
    """
    singles = {name: row for row, name in enumerate(perturbations) if "+" not in name}
    found = np.full_like(changes, np.nan)
    for row, name in enumerate(perturbations):
        parts = name.split("+")
        if len(parts) > 1 and all(part in singles for part in parts):
            found[row] = changes[[singles[part] for part in parts]].sum(0)
    return found


def _best(vectors: np.ndarray, gram: np.ndarray, related: np.ndarray, rng: np.random.Generator) -> str:
    """The candidate of the smallest squared error in inner folds: |w Y - y|^2 = w G w' - 2 w g + g0, G = Y Y'."""
    errors: dict[str, list[float]] = {}
    for test in fold_rows(len(vectors), min(INNER_FOLDS, len(vectors)), rng):
        train = training_rows(test, related)
        if not len(train):
            continue
        for name, weigh in candidates(vectors[train], vectors[test]).items():
            weights = weigh()
            error = np.sum((weights @ gram[np.ix_(train, train)]) * weights)
            error += np.trace(gram[np.ix_(test, test)]) - 2 * np.sum(weights * gram[np.ix_(test, train)])
            errors.setdefault(name, []).append(float(error))
    # One that a fold does not have (so many neighbours) would win by the error that it lacks.
    most = max(map(len, errors.values()), default=0)
    whole = {name: sum(found) for name, found in errors.items() if len(found) == most}
    return min(whole, key=whole.__getitem__, default=f"ridge, penalty {_PENALTIES[-1]:g}")
