"""Expression changes of perturbations against control cells."""

import logging
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)

# A gene is significant if its p-value, adjusted by Benjamini and Hochberg, is below this.
FDR = 0.05
MIN_CELLS = 10
MIN_PERTURBATIONS = 3
# X above this is not on a log scale: it is log1p of 485 million.
_MAX_LOG = 20.0


class Changes(NamedTuple):
    """Changes of P perturbations in G genes against control cells, in log expression.

    `train` and `test` are the same perturbations against different halves of the control cells: a predictor that is
    fitted to `train` of some perturbations is compared with `test` of others, and both share no cell.
    """

    perturbations: list[str]
    genes: list[str]
    train: np.ndarray  # (P, G) float64
    test: np.ndarray  # (P, G) float64
    significant: np.ndarray  # (P, G) bool


def changes_of_cells(
    cells: Any,
    *,
    column: str,
    control: str,
    raw_counts: bool = False,
    min_cells: int = MIN_CELLS,
    rng: np.random.Generator,
) -> Changes:
    """Returns the mean log expression of perturbed cells minus that of control cells.

    Args:
        cells: AnnData; X is log expression, sparse or dense.
        column: of `cells.obs`, with the perturbed gene of each cell; "A+ctrl" is "A" if `control` is "ctrl".
        control: value of `column` for control cells.
        raw_counts: X contains counts. They are normalized to the median total of the control cells, then log1p.
        min_cells: perturbations with fewer cells are left out, with a warning.
        rng: splits the control cells into halves.

    Raises ValueError for an unknown column, too few control cells or perturbations, and X that cannot be expression.
    """
    from scipy import sparse

    names, kept = _cell_labels(cells.obs, column, control, min_cells)
    is_control = names == control
    expression = sparse.csr_matrix(cells.X, dtype=np.float64)
    _check_expression(expression.data, raw_counts=raw_counts)
    if raw_counts:  # cells without counts stay 0
        totals = np.asarray(expression.sum(1)).ravel()
        scale = np.median(totals[is_control]) / np.where(totals > 0, totals, np.inf)
        expression = (sparse.diags_array(scale) @ expression).tocsr().log1p()
    halves = np.array_split(rng.permutation(np.flatnonzero(is_control)), 2)
    groups = pd.Categorical(names, categories=kept).codes.astype(int)  # -1: left out
    for number, half in enumerate(halves):
        groups[half] = len(kept) + number
    mean, variance, size = _moments(expression, groups, len(kept) + 2)
    significant = _significant(mean, variance, size)
    return Changes(kept, list(cells.var_names), mean[:-2] - mean[-2], mean[:-2] - mean[-1], significant)


def _cell_labels(obs: pd.DataFrame, column: str, control: str, min_cells: int) -> tuple[np.ndarray, list[str]]:
    """Perturbation of each cell, and the perturbations with enough cells, sorted."""
    if column not in obs:
        raise ValueError(f"`perturbation_column={column!r}` is not in the data; obs has {list(obs.columns)}.")

    def without_control(label: str) -> str:
        parts = [part for part in label.split("+") if part]
        return "+".join(part for part in parts if part != control) or "+".join(parts[:1])

    names = obs[column].astype("string").fillna("").map(without_control)
    sizes = names.value_counts()
    if sizes.get(control, 0) < max(2, 2 * min_cells):
        raise ValueError(
            f"`control={control!r}`: {sizes.get(control, 0)} control cells, and {2 * min_cells} are needed. The most "
            f"frequent values of {column!r} are {list(sizes.index[:5])}."
        )
    sizes = sizes.drop([control, ""], errors="ignore")
    few = sizes[sizes < min_cells]
    if len(few):
        shown = ", ".join(f"{name} ({size})" for name, size in few.head(5).items())
        logger.warning("%d perturbations have fewer than %d cells and are left out: %s", len(few), min_cells, shown)
    if len(sizes) - len(few) < MIN_PERTURBATIONS:
        raise ValueError(f"`min_cells={min_cells}`: fewer than {MIN_PERTURBATIONS} perturbations have as many cells.")
    return names.to_numpy(dtype=object), sorted(sizes.index[sizes >= min_cells])


def _check_expression(values: np.ndarray, *, raw_counts: bool) -> None:
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ValueError("X contains NaN, infinite or negative values; expression is needed, not scaled values.")
    whole, high = bool((values == np.rint(values)).all()), values.max(initial=0)
    if raw_counts and not whole:
        raise ValueError(
            "`raw_counts=True`, but X contains numbers that are not counts. Is it log expression already?"
        )
    if not raw_counts and (whole or high > _MAX_LOG):
        raise ValueError(
            f"X contains {'whole numbers only' if whole else 'values'} up to {high:.4g}, which is not log expression. "
            "For raw counts, add --raw_counts; otherwise take log1p of normalized values first."
        )


def _moments(expression: Any, groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of each gene (groups, G), and number of cells (groups, 1)."""
    from scipy import sparse

    used = np.flatnonzero(groups >= 0)
    member = sparse.csr_matrix((np.ones(len(used)), (groups[used], used)), shape=(n_groups, len(groups)))
    size = np.asarray(member.sum(1)).reshape(-1, 1)
    mean = (member @ expression).toarray() / size
    square = (member @ expression.power(2)).toarray() / size
    return mean, np.maximum(square - mean**2, 0) * size / np.maximum(size - 1, 1), size


def _significant(mean: np.ndarray, variance: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether Welch's test finds a change against the last group, (P, G) bool; False for genes that never vary."""
    from scipy.stats import false_discovery_control, ttest_ind_from_stats

    vary = (variance[:-2] > 0) | (variance[-1] > 0)
    perturbed, control = ((mean[rows], np.sqrt(variance[rows]), size[rows]) for rows in (slice(-2), -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = ttest_ind_from_stats(*perturbed, *control, equal_var=False).pvalue
    found = np.zeros(vary.shape, dtype=bool)
    for row, varies in enumerate(vary):
        if varies.any():
            found[row, varies] = false_discovery_control(p[row, varies]) < FDR
    return found
