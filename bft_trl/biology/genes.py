"""Gene symbols from text files and tables, with warnings about unusual and outdated ones."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bft_trl.data.tables import ids_as_text, numbered_lines, read_table

logger = logging.getLogger(__name__)

COLUMNS = ("gene", "gene_a", "gene_b", "perturbation")
# HGNC writes capitals, digits, "-" and "."; open reading frames have "orf" in lower case.
_ID = re.compile(r"(ENS[A-Z]*G[0-9]{6,}|[0-9]+)(\.[0-9]+)?")
_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9.@_-]*|C[0-9XY]+orf[0-9]+(-[A-Z0-9]+)?")


def read_genes(paths: Sequence[Path]) -> list[str]:
    """Returns the gene symbols of text files (.txt, one per line) and tables, each once, sorted.

    In a table, symbols are in the columns gene, gene_a and gene_b, or in perturbation ("A+B" is two genes).

    Raises ValueError or FileNotFoundError with the name of the file.
    """
    genes = sorted({gene.strip() for path in paths for gene in _read(path)} - {""})
    if not genes:
        raise ValueError(f"`genes`: {', '.join(map(str, paths))} contain no gene.")
    warn_of_symbols(genes)
    return genes


def warn_of_symbols(genes: Sequence[str]) -> None:
    """Logs a warning about `genes` that are not written as human gene symbols."""
    odd = [gene for gene in genes if _ID.fullmatch(gene) or not _SYMBOL.fullmatch(gene)]
    if odd:
        logger.warning(
            "%d of %d genes do not look like human gene symbols: %s. They are used unchanged.",
            *(len(odd), len(genes), ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "")),
        )


def warn_of_outdated(genes: Sequence[str], hgnc: Path) -> dict[str, str]:
    """Logs a warning about symbols that HGNC has replaced or does not know; returns the replaced ones.

    Args:
        genes: symbols.
        hgnc: HGNC's complete set (hgnc_complete_set.txt), tab-separated.

    Returns:
        Outdated symbol to current symbol.
    """
    try:  # all columns are text, because "MARCH1" is not a date
        table = pd.read_csv(hgnc, sep="\t", dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"`hgnc={str(hgnc)!r}` cannot be read: {error}") from error
    wanted = ["symbol", "prev_symbol", "alias_symbol"]
    if not set(wanted) <= set(table.columns):
        raise ValueError(f"`hgnc={str(hgnc)!r}` is not HGNC's complete set, a tab-separated file with {wanted}.")
    current: dict[str, str] = {}
    for column in ("alias_symbol", "prev_symbol"):  # a previous symbol takes precedence over an alias
        old = table[column].str.strip('"').str.split("|").explode().str.strip()
        current |= dict(zip(old, table["symbol"].loc[old.index], strict=True))
    current |= {symbol: symbol for symbol in table["symbol"]}
    outdated = {gene: current[gene] for gene in genes if current.get(gene, gene) != gene}
    unknown = [gene for gene in genes if gene not in current]
    if outdated:
        shown = ", ".join(f"{old} (now {new})" for old, new in list(outdated.items())[:5])
        logger.warning("%d of %d symbols are outdated and used unchanged: %s", len(outdated), len(genes), shown)
    if unknown:
        logger.warning("%d of %d symbols are unknown to HGNC: %s", len(unknown), len(genes), ", ".join(unknown[:5]))
    return outdated


def _read(path: Path) -> list[str]:
    if path.suffix == ".txt":
        return [line for _, line in numbered_lines(path)]
    table = read_table(path, [])
    columns = [name for name in COLUMNS if name in table.columns]
    if not columns:
        raise ValueError(
            f"`genes={str(path)!r}` has none of the columns {list(COLUMNS)}; it has {list(table.columns)}."
        )
    if "perturbation" in columns:
        columns = ["perturbation"]
    symbols = pd.concat([table[name] for name in columns]).dropna()
    return [part for symbol in ids_as_text(symbols, where=path).unique() for part in symbol.split("+")]
