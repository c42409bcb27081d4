"""Expression changes of perturbations never seen, from those seen: every predictor is a matrix of weights over these.

`weights @ changes` is the prediction, with weights (test, train) that do not look at the changes. So hyperparameters
are chosen on the Gram matrix of the changes, (P, P), however many genes there are.
"""

from collections.abc import Iterator

import numpy as np

# Ridge penalties, beside vectors of unit mean square length: 1000 is nearly the mean of the training perturbations.
_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
_KERNEL_PENALTIES = (0.1, 1.0, 10.0)
_NEIGHBOURS = (1, 3, 5, 10)
INNER_FOLDS = 3


def fold_rows(count: int, n_folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Test rows of each of `n_folds` folds of `count` rows, at random, in order within a fold."""
    return [np.sort(rows) for rows in np.array_split(rng.permutation(count), n_folds)]


def predict_unseen(
    vectors: np.ndarray, changes: np.ndarray, folds: list[np.ndarray], *, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Predicted changes (P, G) of each fold from the others, and the name of the predictor chosen for each fold.

    The predictor and its hyperparameters are those of the smallest squared error in three inner folds of the training
    perturbations.

    Args:
        vectors: of the perturbed genes, (P, D).
        changes: of the perturbations, (P, G); those of a fold are not looked at when it is predicted.
        folds: rows of each fold; see [`fold_rows`].
        rng: of the inner folds.
    """
    predicted = np.empty_like(changes)
    gram = changes @ changes.T
    chosen = []
    for test in folds:
        train = np.setdiff1d(np.arange(len(changes)), test)
        name = _best(vectors[train], gram[np.ix_(train, train)], rng)
        weights = next(found for candidate, found in candidates(vectors[train], vectors[test]) if candidate == name)
        predicted[test] = weights @ changes[train]
        chosen.append(name)
    return predicted, chosen


def candidates(train: np.ndarray, test: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and weights (test, train) of each predictor: ridge and kernel ridge around the mean, nearest neighbours.

    Args:
        train, test: vectors, (N, D); centred on the training mean and scaled to its mean square length first.
    """
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

    centre = train.mean(0)
    length = np.sqrt(np.mean(((train - centre) ** 2).sum(1))) or 1.0
    a, b = (train - centre) / length, (test - centre) / length
    # Fitted to the rows of the identity, less their mean: the prediction of weights instead of changes.
    mean = np.full((1, len(train)), 1 / len(train))
    targets = np.eye(len(train)) - mean
    square = euclidean_distances(a, squared=True)
    width = np.median(square[np.triu_indices(len(a), 1)]) if len(a) > 1 else 1.0
    kernels = {
        "ridge": (a @ a.T, b @ a.T, _PENALTIES),
        "kernel ridge": (
            np.exp(-square / (width or 1.0)),
            np.exp(-euclidean_distances(b, a, squared=True) / (width or 1.0)),
            _KERNEL_PENALTIES,
        ),
    }
    for family, (own, other, penalties) in kernels.items():
        for penalty in penalties:
            model = KernelRidge(alpha=penalty, kernel="precomputed").fit(own, targets)
            yield f"{family}, penalty {penalty:g}", model.predict(other) + mean
    nearest = np.argsort(cosine_distances(test, train), axis=1, kind="stable")
    for count in _NEIGHBOURS:
        if count < len(train):
            weights = np.zeros((len(test), len(train)))
            np.put_along_axis(weights, nearest[:, :count], 1 / count, axis=1)
            yield f"{count} nearest neighbours", weights


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


def _best(vectors: np.ndarray, gram: np.ndarray, rng: np.random.Generator) -> str:
    """The candidate of the smallest squared error in inner folds: |w Y - y|^2 = w G w' - 2 w g + g0, G = Y Y'."""
    errors: dict[str, float] = {}
    for test in fold_rows(len(vectors), min(INNER_FOLDS, len(vectors)), rng):
        train = np.setdiff1d(np.arange(len(vectors)), test)
        for name, weights in candidates(vectors[train], vectors[test]):
            error = np.sum((weights @ gram[np.ix_(train, train)]) * weights)
            error += np.trace(gram[np.ix_(test, test)]) - 2 * np.sum(weights * gram[np.ix_(test, train)])
            errors[name] = errors.get(name, 0.0) + float(error)
    # A candidate that a small fold does not have (neighbours) would win by its missing errors.
    return min((name for name, _ in candidates(vectors[train], vectors[test])), key=errors.__getitem__)
