"""Which pairs interact: logistic regression and boosted trees on pair features, chosen on a validation part."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

# Inverse strengths of the penalty, for standardised features.
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_LEAVES = (15, 31)


class Fit(NamedTuple):
    """What the chosen classifier says of the test part."""

    probabilities: np.ndarray  # (N,)
    chosen: str
    validation: dict[str, float]  # AUROC of each candidate on the validation part


def fit(
    train: tuple[Any, np.ndarray], valid: tuple[Any, np.ndarray], test: Any, *, seed: int, trees: bool = True
) -> Fit:
    """Fits the candidates to the training part and takes the one with the best AUROC on the validation part.

    Args:
        train, valid: features (N, F), dense or sparse, and labels (N,), 0 or 1.
        test: features.
        seed: of the trees.
        trees: False leaves them out, for sparse features.
    """
    from sklearn.metrics import roc_auc_score

    chosen, scores = "", dict[str, float]()
    probabilities = np.empty(0)
    for name, model in _candidates(seed=seed, trees=trees):
        model.fit(*train)
        scores[name] = float(roc_auc_score(valid[1], model.predict_proba(valid[0])[:, 1]))
        if scores[name] == max(scores.values()):
            chosen, probabilities = name, model.predict_proba(test)[:, 1]
    return Fit(probabilities, chosen, scores)


def _candidates(*, seed: int, trees: bool) -> Iterator[tuple[str, Any]]:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for penalty in _PENALTIES:
        regression = LogisticRegression(C=penalty, max_iter=500, tol=1e-3)
        yield (
            f"logistic regression, C {penalty:g}",
            make_pipeline(StandardScaler(with_mean=trees), regression),  # sparse features cannot be centred
        )
    for leaves in _LEAVES if trees else ():
        yield (
            f"boosted trees, {leaves} leaves",
            HistGradientBoostingClassifier(
                max_iter=150, max_leaf_nodes=leaves, max_features=0.3, early_stopping=False, random_state=seed
            ),
        )
