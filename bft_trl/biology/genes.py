"""Gene symbols from text files and tables."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from bft_trl.data.tables import ids_as_text, numbered_lines, read_table

logger = logging.getLogger(__name__)

COLUMNS = ("gene", "gene_a", "gene_b")
# HGNC writes capitals, digits, "-" and "."; open reading frames have "orf" in lower case.
_SYMBOL = re.compile(r"(?!ENS[A-Z]*G[0-9])[A-Z0-9]*[A-Z][A-Z0-9.@_-]*|C[0-9XY]+orf[0-9]+(-[A-Z0-9]+)?")


def read_genes(paths: Sequence[Path]) -> list[str]:
    """Returns the gene symbols of text files (.txt, one per line) and tables (gene, gene_a, gene_b), sorted.

    Logs a warning about genes that are not written as human gene symbols. Raises ValueError or FileNotFoundError with
    the name of the file.
    """
    genes = sorted({gene.strip() for path in paths for gene in _read(path)} - {""})
    if not genes:
        raise ValueError(f"`genes`: {', '.join(map(str, paths))} contain no gene.")
    odd = [gene for gene in genes if not _SYMBOL.fullmatch(gene)]
    if odd:
        logger.warning(
            "%d of %d genes do not look like human gene symbols: %s", len(odd), len(genes), ", ".join(odd[:5])
        )
    return genes


def _read(path: Path) -> list[str]:
    if path.suffix == ".txt":
        return [line for _, line in numbered_lines(path)]
    table = read_table(path)
    columns = [name for name in COLUMNS if name in table]
    if not columns:
        raise ValueError(
            f"`genes={str(path)!r}` has none of the columns {list(COLUMNS)}; it has {list(table.columns)}."
        )
    return [gene for name in columns for gene in ids_as_text(table[name].dropna(), where=path)]
