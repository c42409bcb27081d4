"""Which genes: lists of human symbols from any table, and what looks wrong in them."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bft_trl.data.tables import ids_as_text, numbered_lines, read_table

logger = logging.getLogger(__name__)

# Columns that hold gene symbols, in the tables of this part.
COLUMNS = ("gene", "gene_a", "gene_b", "perturbation")
# Capitals, digits, - and . as HGNC writes them; open reading frames have "orf" in lower case.
_ID = re.compile(r"ENS[A-Z]*G[0-9]{6,}(\.[0-9]+)?|[0-9]+")
_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9.@_-]*|C[0-9XY]+orf[0-9]+(-[A-Z0-9]+)?")


def read_genes(paths: Sequence[Path]) -> list[str]:
    """Gene symbols of text files (one a line) and of the gene columns of tables, each once, sorted.

    Of a pair table these are both genes; of a table with a `perturbation` column, the perturbed ones ("A+B" is two).

    Raises ValueError or FileNotFoundError that names the file.
    """
    found: list[str] = []
    for path in paths:
        found += _read(path)
    genes = [gene.strip() for gene in found if gene.strip()]
    if not genes:
        raise ValueError(f"`genes`: {', '.join(map(str, paths))} name no gene.")
    unique = sorted(set(genes))
    warn_of_symbols(unique)
    return unique


def warn_of_symbols(genes: Sequence[str]) -> list[str]:
    """Those of `genes` that are no human gene symbols as HGNC writes them, after a warning."""
    odd = [gene for gene in genes if _ID.fullmatch(gene) or not _SYMBOL.fullmatch(gene)]
    if odd:
        logger.warning(
            "%d of %d genes are not written as human symbols are (mouse, lower case, an id?): %s. They stay as they "
            "are; the same gene in another spelling counts as another gene.",
            *(len(odd), len(genes), ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "")),
        )
    return odd


def warn_of_outdated(genes: Sequence[str], hgnc: Path) -> dict[str, str]:
    """Those of `genes` that HGNC has replaced, with the symbol of today, after a warning; unknown ones are named too.

    Args:
        hgnc: HGNC's complete set (hgnc_complete_set.txt): tab-separated, with symbol, prev_symbol and alias_symbol, in
            which several symbols have "|" between them.
    """
    wanted = ["symbol", "prev_symbol", "alias_symbol"]
    table = None
    if hgnc.is_file():
        try:  # all of it as text: "MARCH1" is no date
            table = pd.read_csv(hgnc, sep="\t", dtype=str, keep_default_na=False)
        except ValueError as error:
            raise ValueError(f"`hgnc={str(hgnc)!r}` cannot be read: {error}") from error
    if table is None or not set(wanted) <= set(table.columns):
        raise ValueError(f"`hgnc={str(hgnc)!r}` is not HGNC's complete set, a tab-separated file with {wanted}.")
    current = set(table["symbol"])
    today: dict[str, str] = {}
    for column in ("alias_symbol", "prev_symbol"):  # the second is the stronger claim
        for symbol, others in zip(table["symbol"], table[column], strict=True):
            today |= {other.strip(): symbol for other in others.strip('"').split("|") if other.strip()}
    outdated = {gene: today[gene] for gene in genes if gene not in current and gene in today}
    unknown = [gene for gene in genes if gene not in current and gene not in today]
    if outdated:
        shown = ", ".join(f"{old} (now {new})" for old, new in list(outdated.items())[:5])
        logger.warning("%d of %d symbols are outdated; they stay as they are: %s", len(outdated), len(genes), shown)
    if unknown:
        logger.warning("%d of %d symbols are unknown to HGNC: %s", len(unknown), len(genes), ", ".join(unknown[:5]))
    return outdated


def _read(path: Path) -> list[str]:
    if path.suffix == ".txt":
        found = [line for _, line in numbered_lines(path)]
        repeated = len(found) - len(set(found))
        if repeated:
            logger.warning("%s names %d genes more than once; each gets one profile.", path, repeated)
        return found
    table = read_table(path, [])
    columns = [name for name in COLUMNS if name in table.columns]
    if not columns:
        raise ValueError(
            f"`genes={str(path)!r}` has none of the columns {list(COLUMNS)}; it has {list(table.columns)}."
        )
    chosen = ["perturbation"] if "perturbation" in columns else columns
    symbols = pd.concat([table[name] for name in chosen])
    missing = int(symbols.isna().sum())
    if missing:
        logger.warning("%s: %d rows without a gene are left out.", path, missing)
    unique = ids_as_text(symbols.dropna(), where=path).unique()
    return [part for symbol in unique for part in symbol.split("+")]
