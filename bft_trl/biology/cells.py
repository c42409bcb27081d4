"""Expression changes of perturbations against control cells, from AnnData or from a table."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bft_trl.data.tables import ids_as_text, read_table

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
    fitted to `train` of some perturbations is compared with `test` of others, and both share no cell. From a table
    they are the same.
    """

    perturbations: list[str]
    genes: list[str]
    train: np.ndarray  # (P, G) float64
    test: np.ndarray  # (P, G) float64
    significant: np.ndarray | None  # (P, G) bool; None if unknown
    report: dict[str, Any]


def read_anndata(path: Path) -> Any:
    """Reads an AnnData from a .h5ad file. Raises FileNotFoundError or ValueError with the name of the file."""
    import anndata

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        cells = anndata.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError) as error:  # TypeError: HDF5 that is not AnnData
        raise ValueError(f"{path}: cannot be read as h5ad ({error}). Is the file complete?") from error
    if cells.X is None or not cells.var_names.is_unique:
        raise ValueError(f"{path}: needs an expression matrix X, and unique var_names.")
    return cells


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
        column: of `cells.obs`, with the perturbation of each cell: a gene, or several joined by "+". Parts that are
            `control` ("A+ctrl") are dropped.
        control: value of `column` for control cells.
        raw_counts: X contains counts. They are normalized to the median total of the control cells, then log1p.
        min_cells: perturbations with fewer cells are left out, with a warning.
        rng: splits the control cells into halves.

    Raises ValueError with the name of the argument for an unknown column, too few control cells or perturbations, and
    X that is not finite, negative, or contains counts or log values where the other is expected.
    """
    from scipy import sparse

    names, kept, left_out = _cell_labels(cells.obs, column, control, min_cells)
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
    return Changes(
        perturbations=kept,
        genes=[str(gene) for gene in cells.var_names],
        train=mean[:-2] - mean[-2],
        test=mean[:-2] - mean[-1],
        significant=_significant(mean, variance, size),
        report={"control_cells": [len(half) for half in halves], "left_out": left_out},
    )


def changes_of_table(path: Path, *, control: str | None = None) -> Changes:
    """Reads expression changes from a table with perturbation, gene, delta and optionally fdr.

    Args:
        path: every perturbation needs every gene.
        control: value of perturbation that is left out.

    Raises ValueError for missing or repeated entries, numbers that are not finite, and fewer than 3 perturbations.
    """
    table = read_table(path, ["perturbation", "gene", "delta"])
    try:
        numbers = {name: pd.to_numeric(table[name]) for name in ("delta", "fdr") if name in table}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: 'delta' and 'fdr' must be numbers ({error}).") from error
    genes = ids_as_text(table["gene"], where=path)
    names = ids_as_text(table["perturbation"], where=path).map(lambda name: _canonical(name, control))
    missing = (names == "") | genes.isna() | (genes == "")
    if missing.any():
        raise ValueError(
            f"{path}: {missing.sum()} rows lack a perturbation or a gene, the first is row {missing.argmax()}."
        )
    table = pd.DataFrame({"perturbation": names, "gene": genes, **numbers})[names != control]
    repeated = table.duplicated(["perturbation", "gene"])
    if repeated.any():
        row = table[repeated].iloc[0]
        raise ValueError(f"{path}: {row['perturbation']!r} and {row['gene']!r} are together more than once.")
    wide = table.pivot(index="perturbation", columns="gene")  # sorted
    deltas = wide["delta"].to_numpy(dtype=np.float64)
    bad = np.argwhere(~np.isfinite(deltas))
    if len(bad):
        perturbation, gene = wide.index[bad[0][0]], wide["delta"].columns[bad[0][1]]
        raise ValueError(
            f"{path}: {len(bad)} deltas are missing or not finite, such as that of {gene!r} under {perturbation!r}: "
            "each perturbation needs each gene."
        )
    if len(wide) < MIN_PERTURBATIONS:
        raise ValueError(f"{path}: {len(wide)} perturbations; at least {MIN_PERTURBATIONS} are needed.")
    if "fdr" not in table:
        logger.warning("%s has no column 'fdr', so sign accuracy is not computed.", path)
    significant = (wide["fdr"] < FDR).to_numpy() if "fdr" in table else None
    return Changes(list(wide.index), [str(gene) for gene in wide["delta"].columns], deltas, deltas, significant, {})


def _canonical(name: str | None, control: str | None) -> str:
    """Genes sorted and without controls: "B+A" is "A+B", "A+ctrl" is "A", and "ctrl+ctrl" is the control."""
    parts = {part.strip() for part in (name or "").split("+")} - {""}
    return "+".join(sorted(parts - {control})) or (control if control in parts and control else "")


def _cell_labels(
    obs: pd.DataFrame, column: str, control: str, min_cells: int
) -> tuple[np.ndarray, list[str], dict[str, int]]:
    """Perturbation of each cell, perturbations with enough cells, and sizes of the others."""
    if min_cells < 1:
        raise ValueError(f"`min_cells={min_cells}` must be at least 1.")
    if column not in obs:
        raise ValueError(f"`perturbation_column={column!r}` is not in the data; obs has {list(obs.columns)}.")
    labels = obs[column].astype("string").fillna("")
    names = labels.map({label: _canonical(label, control) for label in labels.unique()})
    sizes = names.value_counts()
    if sizes.get(control, 0) < 2 * min_cells:
        raise ValueError(
            f"`control={control!r}`: {sizes.get(control, 0)} control cells, and {2 * min_cells} are needed. The most "
            f"frequent values of {column!r} are {list(sizes.index[:5])}."
        )
    if "" in sizes:
        logger.warning("%d cells have no perturbation and are left out.", sizes[""])
    sizes = sizes.drop([control, ""], errors="ignore")
    few = sizes[sizes < min_cells]
    if len(few):
        shown = ", ".join(f"{name} ({size})" for name, size in few.head(5).items())
        logger.warning("%d perturbations have fewer than %d cells and are left out: %s", len(few), min_cells, shown)
    if len(sizes) - len(few) < MIN_PERTURBATIONS:
        raise ValueError(f"`min_cells={min_cells}`: fewer than {MIN_PERTURBATIONS} perturbations have as many cells.")
    kept = sorted(sizes.index[sizes >= min_cells])
    return names.to_numpy(dtype=object), kept, {str(name): int(size) for name, size in few.items()}


def _check_expression(values: np.ndarray, *, raw_counts: bool) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"X contains {(~np.isfinite(values)).sum()} values that are NaN or infinite.")
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0:
        raise ValueError(
            f"X contains negative values (down to {low:.3g}); log expression is needed, not scaled values."
        )
    whole = len(values) > 0 and bool((values == np.rint(values)).all())
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
