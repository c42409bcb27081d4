"""Single cells in, expression changes out: AnnData and tables read, checked, and averaged per perturbation."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bft_trl.data.tables import ids_as_text, read_table

logger = logging.getLogger(__name__)

# Welch's p-value, adjusted by Benjamini and Hochberg, under which a gene counts as changed.
FDR = 0.05
# Above this, X is not on a log scale: log1p of 485 million.
MOST = 20.0


class Changes(NamedTuple):
    """Expression changes of P perturbations in G genes against control cells, in log expression.

    `train` and `test` are the same perturbations from the same perturbed cells, against different halves of the
    control cells: what is learned from and what it is compared with share no cell. From a table both are the same.
    """

    perturbations: list[str]
    genes: list[str]
    train: np.ndarray  # (P, G) float64
    test: np.ndarray  # (P, G) float64
    significant: np.ndarray | None  # (P, G) bool; None where the source does not say
    report: dict[str, Any]


def read_anndata(path: Path) -> Any:
    """An AnnData from a .h5ad file. Raises FileNotFoundError or ValueError that names the file.

    It is read twice, because a damaged file can end or stop the process inside HDF5, where Python cannot catch it:
    once by a process of its own, which holds 16 million numbers at most, then by anndata. That costs half a second
    and the time of reading (and unpacking) the file once more. Nothing cheaper is as good: HDF5 has no checksums
    unless the writer asked for them, and what it stumbles on may be anywhere in the file.
    """
    import anndata
    from anndata._io.specs.registry import IORegistryError  # has no public name, and is no ValueError

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    _check_hdf5(path)
    try:
        cells = anndata.read_h5ad(path)
        if hasattr(cells.X, "check_format"):  # scipy's products would read beyond the ends of X
            cells.X.check_format(full_check=True)
    except (
        *(OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError, MemoryError, OverflowError),
        *(NotImplementedError, IORegistryError),
    ) as error:
        raise ValueError(f"{path}: cannot be read as h5ad, was it cut short? ({_one_line(error)})") from error
    if cells.X is None or not cells.n_obs or not cells.n_vars:
        raise ValueError(f"{path}: has no expression matrix X with cells and genes; it is {cells.shape}.")
    if not cells.var_names.is_unique:
        repeated = cells.var_names[cells.var_names.duplicated()][0]
        raise ValueError(f"{path}: the gene {repeated!r} stands twice in var_names; make them unique.")
    return cells


def changes_of_cells(
    cells: Any,
    *,
    column: str,
    control: str,
    counts: bool = False,
    min_cells: int = 10,
    rng: np.random.Generator,
) -> Changes:
    """Mean log expression of the perturbed cells minus that of control cells, for each perturbation and gene.

    Args:
        cells: AnnData, X as log expression, sparse or dense.
        column: of `cells.obs`, with the perturbation of each cell: a gene, or several with "+" between them. Parts
            that are `control` ("A+ctrl") are dropped.
        control: the value of `column` that marks control cells.
        counts: X holds counts: normalise each cell to the median total of the control cells, then log1p.
        min_cells: perturbations with fewer cells are left out, and named in the report.
        rng: halves the control cells.

    Raises ValueError that names the argument for an unknown column, no or too few control cells, counts where log
    values are expected and the reverse, values that are not finite or negative, and where fewer than 3 perturbations
    are left.
    """
    from scipy import sparse

    if min_cells < 1:
        raise ValueError(f"`min_cells={min_cells}` must be 1 or more.")
    if column not in cells.obs:
        raise ValueError(f"`perturbation_column={column!r}` is not in the data; obs has {list(cells.obs.columns)}.")
    labels = cells.obs[column].astype(object)
    names = np.array([_canonical(name, control) for name in ids_as_text(labels, where="obs")], dtype=object)
    is_control = names == control
    unassigned = int((names == "").sum())
    if unassigned:
        logger.warning("%d cells have no perturbation and are left out.", unassigned)
    if is_control.sum() < 2 * min_cells:
        known = ", ".join(map(repr, pd.Series(names).value_counts().index[:5]))
        raise ValueError(
            f"`control={control!r}`: {int(is_control.sum())} control cells, and {2 * min_cells} are needed. The most "
            f"frequent values of {column!r} are {known}."
        )
    expression = sparse.csr_matrix(cells.X, dtype=np.float64)
    _check_expression(expression.data, counts=counts)
    if counts:
        expression = _log_normalised(expression, is_control)
    sizes = pd.Series(names[~is_control & (names != "")]).value_counts()
    few = sizes[sizes < min_cells]
    if len(few):
        shown = ", ".join(f"{name} ({size})" for name, size in few.head(5).items())
        logger.warning("%d perturbations have fewer than %d cells and are left out: %s", len(few), min_cells, shown)
    kept = sorted(sizes.index[sizes >= min_cells])
    if len(kept) < 3:
        raise ValueError(f"`min_cells={min_cells}` leaves {len(kept)} perturbations; at least 3 are needed.")
    halves = np.array_split(rng.permutation(np.flatnonzero(is_control)), 2)
    moments = [_moments(expression[rows]) for rows in halves]
    perturbed = [_moments(expression[names == name]) for name in kept]
    means = np.array([moment.mean for moment in perturbed])
    report = {
        "cells": {name: moment.size for name, moment in zip(kept, perturbed, strict=True)},
        "control_cells": [len(rows) for rows in halves],
        "left_out": {str(name): int(size) for name, size in few.items()},
        "normalised": counts,
    }
    return Changes(
        perturbations=kept,
        genes=[str(gene) for gene in cells.var_names],
        train=means - moments[0].mean,
        test=means - moments[1].mean,
        significant=np.array([_significant(moment, moments[1]) for moment in perturbed]),
        report=report,
    )


def changes_of_table(path: Path, *, control: str | None = None) -> Changes:
    """Expression changes from a table with perturbation, gene and delta, and, where it has one, fdr.

    Raises ValueError for missing or repeated entries, numbers that are not finite, and fewer than 3 perturbations.
    """
    table = read_table(path, ["perturbation", "gene", "delta"])
    for column in ("delta", "fdr"):
        if column in table:
            try:
                table[column] = pd.to_numeric(table[column])
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {column!r} must be numbers ({error}).") from error
    genes = ids_as_text(table["gene"], where=path)
    given = ids_as_text(table["perturbation"], where=path)
    names = pd.Series([_canonical(name, control) for name in given], index=table.index)
    missing = (names == "") | genes.isna() | (genes == "")
    if missing.any():
        raise ValueError(
            f"{path}: {int(missing.sum())} rows lack a perturbation or a gene, the first is row "
            f"{table.index[missing][0]} (from 0)."
        )
    table = table.assign(perturbation=names, gene=genes)
    if control is not None:
        table = table[names != control]
    repeated = table.duplicated(["perturbation", "gene"])
    if repeated.any():
        row = table[repeated].iloc[0]
        raise ValueError(f"{path}: {row['perturbation']!r} and {row['gene']!r} stand together more than once.")
    wide = table.pivot(index="perturbation", columns="gene", values="delta").sort_index()
    deltas = wide.to_numpy(dtype=np.float64)
    if not np.isfinite(deltas).all():
        at, gene = (int(i) for i in np.argwhere(~np.isfinite(deltas))[0])
        raise ValueError(
            f"{path}: no finite delta of {wide.columns[gene]!r} under {wide.index[at]!r} "
            f"({int((~np.isfinite(deltas)).sum())} such): each perturbation needs each gene."
        )
    if len(wide) < 3:
        raise ValueError(f"{path}: {len(wide)} perturbations; at least 3 are needed.")
    significant = None
    if "fdr" in table:
        significant = (
            table.pivot(index="perturbation", columns="gene", values="fdr").loc[wide.index] < FDR
        ).to_numpy()
    else:
        logger.warning("%s has no column 'fdr': no sign accuracy.", path)
    return Changes(
        list(wide.index), [str(gene) for gene in wide.columns], deltas, deltas, significant, {"left_out": {}}
    )


class _Moments(NamedTuple):
    mean: np.ndarray  # (G,)
    deviation: np.ndarray  # (G,), ddof 1
    size: int


def _moments(rows: Any) -> _Moments:
    mean = np.asarray(rows.mean(0)).ravel()
    square = np.asarray(rows.multiply(rows).mean(0)).ravel()
    size = rows.shape[0]
    variance = np.maximum(square - mean**2, 0) * size / max(size - 1, 1)
    return _Moments(mean, np.sqrt(variance), size)


def _significant(perturbed: _Moments, control: _Moments) -> np.ndarray:
    """Genes with an adjusted p of Welch's test under [`FDR`], (G,) bool; genes that never vary are none."""
    from scipy.stats import false_discovery_control, ttest_ind_from_stats

    vary = (perturbed.deviation > 0) | (control.deviation > 0)
    found = np.zeros(len(vary), dtype=bool)
    if vary.any():
        one, other = ([moment.mean[vary], moment.deviation[vary], moment.size] for moment in (perturbed, control))
        found[vary] = false_discovery_control(ttest_ind_from_stats(*one, *other, equal_var=False).pvalue) < FDR
    return found


def _check_expression(values: np.ndarray, *, counts: bool) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"X holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite.")
    if len(values) and values.min() < 0:
        raise ValueError(
            f"X holds negative values (down to {values.min():.3g}): log expression is wanted, not scaled."
        )
    whole = bool(len(values)) and bool((values == np.rint(values)).all())
    if whole and not counts:
        raise ValueError(
            f"X holds whole numbers only (up to {values.max():.0f}): raw counts, where log expression is expected. "
            "Add --counts to normalise them (counts=True)."
        )
    if len(values) and values.max() > MOST and not counts:
        raise ValueError(
            f"X goes up to {values.max():.4g}, far above log expression: take log1p of normalised values first, or "
            "give counts with --counts."
        )
    if counts and not whole:
        raise ValueError("`counts=True`, but X holds numbers that are no counts; it may be log expression already.")


def _log_normalised(counts: Any, is_control: np.ndarray) -> Any:
    """log1p of counts scaled to the median total of the control cells; cells without a count stay 0."""
    from scipy import sparse

    totals = np.asarray(counts.sum(1)).ravel()
    target = float(np.median(totals[is_control]))
    scale = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)
    return (sparse.diags_array(scale) @ counts).tocsr().log1p()


def _canonical(name: str | None, control: str | None) -> str:
    """ "B+A" and "A+ctrl" as "A+B" and "A"; a control, or several, as the control; "" where there is no name."""
    parts = {part.strip() for part in (name or "").split("+")} - {""}
    return "+".join(sorted(parts - {control})) or (control if control in parts and control else "")


# Every attribute and number of an HDF5 file. A damaged one can keep HDF5 busy for ever: a second of the processor for
# each megabyte is ten times what a slow machine takes to unpack it.
_READ_ALL = """
import resource, sys
import h5py

seconds = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

def read(name, item):
    for attribute in item.attrs:
        item.attrs[attribute]
    if isinstance(item, h5py.Dataset) and item.shape:
        rows = max(1, 2**24 * item.shape[0] // max(1, item.size))
        for first in range(0, item.shape[0], rows):
            item[first : first + rows]
    elif isinstance(item, h5py.Dataset):
        item[()]

with h5py.File(sys.argv[1]) as file:
    read("/", file)
    file.visititems(read)
"""


def _check_hdf5(path: Path) -> None:
    seconds = 2 + path.stat().st_size // 2**20
    command = [sys.executable, "-c", _READ_ALL, str(path.absolute()), str(seconds)]
    found = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if found.returncode > 0:  # an exception
        raise ValueError(
            f"{path}: cannot be read as h5ad, was it cut short? ({found.stderr.strip().splitlines()[-1]})"
        )
    if found.returncode < 0:
        raise ValueError(f"{path}: cannot be read as h5ad: it is damaged, HDF5 did not survive (or end) reading it.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
