"""Predictors of both tasks: classifiers of pairs, and regressors of the changes under unseen perturbations."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

# Inverse penalties of the logistic regression, for standardized features, and leaves of the boosted trees.
_INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_LEAVES = (15, 31)
# Penalties for vectors of unit mean square length: 1000 nearly gives the mean of the training perturbations.
_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
_KERNEL_PENALTIES = (0.1, 1.0, 10.0)
_NEIGHBORS = (1, 3, 5, 10)
INNER_FOLDS = 3


class Fit(NamedTuple):
    """Predictions of the classifier with the best AUROC on the validation pairs."""

    probabilities: np.ndarray  # (N,), of the test pairs
    chosen: str
    validation: dict[str, float]  # AUROC of each candidate


def fit(
    train: tuple[np.ndarray, np.ndarray], valid: tuple[np.ndarray, np.ndarray], test: np.ndarray, *, seed: int
) -> Fit:
    """Fits the candidates to the training pairs and predicts the test pairs with the best on the validation pairs.

    Args:
        train, valid: features (N, F) and labels (N,), 0 or 1.
        test: features.
        seed: of the trees.
    """
    from sklearn.metrics import roc_auc_score

    chosen, scores = "", dict[str, float]()
    probabilities = np.empty(0)
    for name, model in _classifiers(seed):
        model.fit(*train)
        scores[name] = float(roc_auc_score(valid[1], model.predict_proba(valid[0])[:, 1]))
        if scores[name] == max(scores.values()):
            chosen, probabilities = name, model.predict_proba(test)[:, 1]
    return Fit(probabilities, chosen, scores)


def fold_rows(count: int, n_folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns the test rows of each of `n_folds` random folds of `count` rows, sorted within a fold."""
    return [np.sort(rows) for rows in np.array_split(rng.permutation(count), n_folds)]


def predict_unseen(
    vectors: np.ndarray, changes: np.ndarray, folds: list[np.ndarray], *, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Predicts the changes of each fold from the other perturbations.

    The predictor with the smallest squared error in three inner folds of the training perturbations is used. Every
    predictor is a matrix of weights (test, train) that does not depend on the changes, and `weights @ changes` is its
    prediction. So the inner errors need only the Gram matrix (P, P) of the changes.

    Args:
        vectors: of the perturbations, (P, D).
        changes: (P, G).
        folds: rows of each fold; see [`fold_rows`].
        rng: of the inner folds.

    Returns the predicted changes (P, G), and the name of the predictor of each fold.
    """
    predicted = np.empty_like(changes)
    gram = changes @ changes.T
    chosen = []
    for test in folds:
        train = np.setdiff1d(np.arange(len(changes)), test)
        name = _best(vectors[train], gram[np.ix_(train, train)], rng)
        predicted[test] = candidates(vectors[train], vectors[test])[name]() @ changes[train]
        chosen.append(name)
    return predicted, chosen


def candidates(train: np.ndarray, test: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Returns functions that compute the weights (test, train) of each predictor.

    They are ridge and kernel ridge regression around the mean, and nearest neighbors by cosine distance.

    Args:
        train, test: vectors, (N, D), which are centered on the training mean and scaled to its mean square length.
    """
    from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

    center = train.mean(0)
    length = np.sqrt(np.mean(((train - center) ** 2).sum(1))) or 1.0
    a, b = (train - center) / length, (test - center) / length
    own = euclidean_distances(a, squared=True)
    width = (np.median(own[np.triu_indices(len(a), 1)]) if len(a) > 1 else 1.0) or 1.0
    linear = a @ a.T, b @ a.T
    radial = np.exp(-own / width), np.exp(-euclidean_distances(b, a, squared=True) / width)
    nearest = np.argsort(cosine_distances(test, train), axis=1, kind="stable")
    found: dict[str, Callable[[], np.ndarray]] = {}
    for penalty in _PENALTIES:
        found[f"ridge, penalty {penalty:g}"] = partial(_ridge, *linear, penalty)
    for penalty in _KERNEL_PENALTIES:
        found[f"kernel ridge, penalty {penalty:g}"] = partial(_ridge, *radial, penalty)
    for count in _NEIGHBORS:
        if count < len(train):
            found[f"{count} nearest neighbors"] = partial(_neighbors, nearest[:, :count], len(train))
    return found


def _classifiers(seed: int) -> Iterator[tuple[str, Any]]:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for inverse in _INVERSE_PENALTIES:
        regression = LogisticRegression(C=inverse, max_iter=500, tol=1e-3)
        yield f"logistic regression, C {inverse:g}", make_pipeline(StandardScaler(), regression)
    options: dict[str, Any] = {"max_iter": 150, "max_features": 0.3, "early_stopping": False, "random_state": seed}
    for leaves in _LEAVES:
        yield f"boosted trees, {leaves} leaves", HistGradientBoostingClassifier(max_leaf_nodes=leaves, **options)


def _ridge(own: np.ndarray, other: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of kernel ridge regression on the changes minus their mean, plus the mean."""
    from scipy.linalg import solve

    weights = solve(own + penalty * np.eye(len(own)), other.T, assume_a="pos").T
    return weights + (1 - weights.sum(1, keepdims=True)) / len(own)


def _neighbors(nearest: np.ndarray, count: int) -> np.ndarray:
    """Equal weights for the neighbors (test, k), and 0 for the rest of `count`."""
    weights = np.zeros((len(nearest), count))
    np.put_along_axis(weights, nearest, 1 / nearest.shape[1], axis=1)
    return weights


def _best(vectors: np.ndarray, gram: np.ndarray, rng: np.random.Generator) -> str:
    """The candidate with the smallest squared error in inner folds: |w Y - y|^2 = w G w' - 2 w g + g0, G = Y Y'."""
    errors: dict[str, list[float]] = {}
    folds = fold_rows(len(vectors), min(INNER_FOLDS, len(vectors)), rng)
    for test in folds:
        train = np.setdiff1d(np.arange(len(vectors)), test)
        for name, weights_of in candidates(vectors[train], vectors[test]).items():
            weights = weights_of()
            error = np.sum((weights @ gram[np.ix_(train, train)]) * weights)
            error += np.trace(gram[np.ix_(test, test)]) - 2 * np.sum(weights * gram[np.ix_(test, train)])
            errors.setdefault(name, []).append(float(error))
    # A fold that is smaller than others may lack a candidate: it has too few neighbors.
    complete = {name: sum(found) for name, found in errors.items() if len(found) == len(folds)}
    return min(complete, key=complete.__getitem__)
