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
    train: tuple[Any, np.ndarray], valid: tuple[Any, np.ndarray], test: Any, *, seed: int, trees: bool = True
) -> Fit:
    """Fits the candidates to the training pairs and predicts the test pairs with the best on the validation pairs.

    Args:
        train, valid: features (N, F), dense or sparse, and labels (N,), 0 or 1.
        test: features.
        seed: of the trees.
        trees: False leaves out the trees, for sparse features.
    """
    from sklearn.metrics import roc_auc_score

    chosen, scores = "", dict[str, float]()
    probabilities = np.empty(0)
    for name, model in _classifiers(seed=seed, trees=trees):
        model.fit(*train)
        scores[name] = float(roc_auc_score(valid[1], model.predict_proba(valid[0])[:, 1]))
        if scores[name] == max(scores.values()):
            chosen, probabilities = name, model.predict_proba(test)[:, 1]
    return Fit(probabilities, chosen, scores)


def fold_rows(count: int, n_folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns the test rows of each of `n_folds` random folds of `count` rows, sorted within a fold."""
    return [np.sort(rows) for rows in np.array_split(rng.permutation(count), n_folds)]


def training_rows(test: np.ndarray, related: np.ndarray) -> np.ndarray:
    """Returns the rows that share no gene with those of `test`.

    Args:
        related: whether two perturbations have a gene in common, (P, P) bool, True on the diagonal.
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
    """Predicts the changes of each fold from the other perturbations.

    The predictor with the smallest squared error in three inner folds of the training perturbations is used. Every
    predictor is a matrix of weights (test, train) that does not depend on the changes, and `weights @ changes` is its
    prediction. So the inner errors need only the Gram matrix (P, P) of the changes.

    Args:
        vectors: of the perturbations, (P, D).
        changes: (P, G).
        folds: rows of each fold; see [`fold_rows`].
        rng: of the inner folds.
        related: whether two perturbations have a gene in common, (P, P) bool: those of a fold are predicted from
            perturbations that share no gene with them. None: each has its own gene.

    Returns:
        Predicted changes (P, G), and the name of the predictor of each fold.
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


def additive(perturbations: list[str], changes: np.ndarray) -> np.ndarray:
    """Returns the sum of the changes under each single perturbation, (P, G), for perturbations of several genes.

    NaN for single perturbations, and where one of the genes was not perturbed alone.
    """
    singles = {name: row for row, name in enumerate(perturbations) if "+" not in name}
    found = np.full_like(changes, np.nan)
    for row, name in enumerate(perturbations):
        genes = name.split("+")
        if len(genes) > 1 and all(gene in singles for gene in genes):
            found[row] = changes[[singles[gene] for gene in genes]].sum(0)
    return found


def _classifiers(*, seed: int, trees: bool) -> Iterator[tuple[str, Any]]:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for inverse in _INVERSE_PENALTIES:
        regression = LogisticRegression(C=inverse, max_iter=500, tol=1e-3)
        # Sparse features cannot be centered.
        yield f"logistic regression, C {inverse:g}", make_pipeline(StandardScaler(with_mean=trees), regression)
    for leaves in _LEAVES if trees else ():
        yield (
            f"boosted trees, {leaves} leaves",
            HistGradientBoostingClassifier(
                max_iter=150, max_leaf_nodes=leaves, max_features=0.3, early_stopping=False, random_state=seed
            ),
        )


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


def _best(vectors: np.ndarray, gram: np.ndarray, related: np.ndarray, rng: np.random.Generator) -> str:
    """The candidate with the smallest squared error in inner folds: |w Y - y|^2 = w G w' - 2 w g + g0, G = Y Y'."""
    errors: dict[str, list[float]] = {}
    for test in fold_rows(len(vectors), min(INNER_FOLDS, len(vectors)), rng):
        train = training_rows(test, related)
        if not len(train):
            continue
        for name, weights_of in candidates(vectors[train], vectors[test]).items():
            weights = weights_of()
            error = np.sum((weights @ gram[np.ix_(train, train)]) * weights)
            error += np.trace(gram[np.ix_(test, test)]) - 2 * np.sum(weights * gram[np.ix_(test, train)])
            errors.setdefault(name, []).append(float(error))
    # A candidate that a fold lacks (too few neighbors) has a sum over fewer folds, so it is left out.
    most = max(map(len, errors.values()), default=0)
    complete = {name: sum(found) for name, found in errors.items() if len(found) == most}
    return min(complete, key=complete.__getitem__, default=f"ridge, penalty {_PENALTIES[-1]:g}")
