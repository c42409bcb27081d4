"""How near a predicted expression change is to the true one: a few lines each, arrays in, numbers out.

P perturbations, G genes. Changes are log expression against control cells, (P, G). `keep` (P, G) bool says which genes
count for which perturbation: the perturbed gene itself is left out there, because its change is no prediction.
Each returns one number per perturbation, (P,).
"""

import numpy as np


def l1_distances(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Sum over genes of |predicted - true| of each prediction and each perturbation, (P, P): what takes the time."""
    from sklearn.metrics import pairwise_distances

    return pairwise_distances(predicted, true, metric="manhattan", n_jobs=-1)  # threads


def pearson_delta(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray, *, top: int | None = None) -> np.ndarray:
    """Pearson correlation over genes, in [-1, 1]; 0 for a prediction that is the same for all genes, as it says
    nothing; NaN where the true change is.

    Args:
        top: only so many genes, those that change most (by |true|; ties by position).
    """
    found = np.full(len(true), np.nan)
    for row, (guess, change, kept) in enumerate(zip(predicted, true, keep, strict=True)):
        chosen = np.flatnonzero(kept)
        if top is not None:
            chosen = chosen[np.argsort(-np.abs(change[chosen]), kind="stable")[:top]]
        if len(chosen) < 2 or np.ptp(change[chosen]) == 0:
            continue
        found[row] = 0.0 if np.ptp(guess[chosen]) == 0 else np.corrcoef(guess[chosen], change[chosen])[0, 1]
    return found


def mse(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Mean squared error over genes, in squared log expression."""
    return np.mean((predicted - true) ** 2, axis=1, where=keep)


def mae(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Mean absolute error over genes, in log expression."""
    return np.mean(np.abs(predicted - true), axis=1, where=keep)


def sign_accuracy(predicted: np.ndarray, true: np.ndarray, keep: np.ndarray, significant: np.ndarray) -> np.ndarray:
    """Share of the significantly changed genes (P, G) whose direction is right, in [0, 1]; a predicted 0 is wrong. NaN
    where no gene changed significantly.
    """
    counted = keep & significant
    right = (np.sign(predicted) == np.sign(true)) & (predicted != 0) & counted
    total = counted.sum(1)
    return np.divide(right.sum(1), total, out=np.full(len(true), np.nan), where=total > 0)


def discrimination(
    predicted: np.ndarray,
    true: np.ndarray,
    keep: np.ndarray,
    *,
    own: np.ndarray | None = None,
    distances: np.ndarray | None = None,
) -> np.ndarray:
    """Is a prediction nearest to its own perturbation? In [0, 1], .5 for one that has nothing to do with any.

    A predictor without signal that was fitted to the others gets less than .5, because it is nearer to them.

    1 - rank / (P - 1), where the rank counts the other perturbations whose true change is nearer, ties by half.
    Distance is L1 over the genes that count for the predicted perturbation. cell-eval's `discrimination_score_l1`
    divides by P and counts ties by position.

    Args:
        own: the row of `true` that each prediction is of; None: they are in the same order.
        distances: [`l1_distances`] over all genes, where they are known; of those that do not count the share is taken
            off.
    """
    found = np.full(len(predicted), np.nan)
    if len(true) < 2:
        return found
    own = np.arange(len(true)) if own is None else own
    distances = l1_distances(predicted, true) if distances is None else distances
    for row, (guess, kept) in enumerate(zip(predicted, keep, strict=True)):
        distance = distances[row] - np.abs(true[:, ~kept] - guess[~kept]).sum(1)
        others = np.delete(distance, own[row])
        rank = (others < distance[own[row]]).sum() + 0.5 * (others == distance[own[row]]).sum()
        found[row] = 1 - rank / len(others)
    return found
