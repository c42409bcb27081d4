"""Readers and writers of tables and GMT files. Errors name the file and what is wrong with it."""

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pandas as pd
import pyarrow.parquet as pq
from pyarrow import ArrowException

from bft_trl.io import write_files

READERS = {
    # Without the pandas metadata: errors in it have many types.
    ".parquet": lambda path: pq.read_table(path, partitioning=None).to_pandas(ignore_metadata=True),
    ".csv": lambda path: _read_csv(path, ","),
    ".tsv": lambda path: _read_csv(path, "\t"),
    ".json": lambda path: _read_json(path),
    ".jsonl": lambda path: _read_json(path),
}
# Columns of CSV files that are text, also if they look like numbers.
TEXT_COLUMNS = ("id", "name", "definition", "model", "predicted_name", "label", "text", "source")
# Raised by pandas, pyarrow and gzip for damaged files.
_DAMAGED = (ValueError, OSError, ArrowException, EOFError, zlib.error)

# Column names of published gene sets (GeneAgent, NeST, Hu et al.), in lower case.
ALIASES = {
    "id": ("id", "go", "go_id", "term_id", "nest id", "nest_id"),
    "name": ("name", "term_description", "term", "term_name", "name_new", "description", "label"),
    "genes": ("genes", "gene_list", "symbols", "gene_symbols"),
    "definition": ("definition",),
}

_GO_ID_AT_END = re.compile(r"\((GO:\d{7})\)$")


def read_table(path: Path, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Reads a parquet, CSV, TSV, JSON or JSON lines file; text formats may be gzipped (.gz).

    Returns a table with at least one row and at least `columns`. Raises FileNotFoundError, or ValueError for an
    unknown format, a damaged or empty file and a missing column.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in READERS:
        raise ValueError(f"{path}: unknown table format '{path.suffix}'. Use one of {', '.join(READERS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        table = READERS[suffix](path)
    except _DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as {suffix[1:]}: {' '.join(str(error).split())}") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: has no column {missing}; its columns are {list(table.columns)}.")
    if table.empty:
        raise ValueError(f"{path}: has no rows.")
    return table


def read_gene_sets(path: Path) -> pd.DataFrame:
    """Reads gene sets from a GMT file (see [`read_gmt`]) or from a table with the columns id, name and genes.

    Columns may have the names in `ALIASES`, in any case; they are renamed. Other columns are kept.

    Returns a table with id and name as text and genes as lists (see [`split_genes`]). Raises ValueError for missing
    or ambiguous columns, a missing id or name, a repeated id and a set without genes.
    """
    if path.name.removesuffix(".gz").endswith(".gmt"):
        return read_gmt(path)
    table = _rename_aliases(path, read_table(path))
    for column in ("id", "name"):
        rows = table.index[table[column].isna()].tolist()
        if rows:
            raise ValueError(f"{path}: no {column} in rows {rows[:5]} (counted from 0).")
    ids, genes = ids_as_text(table["id"], where=path), table["genes"].map(split_genes)
    for problem, wrong in (("empty gene list in", genes.str.len() == 0), ("repeated id", ids.duplicated())):
        if wrong.any():
            raise ValueError(f"{path}: {problem} {', '.join(ids[wrong].head())}.")
    return table.assign(id=ids, name=table["name"].astype(str), genes=genes)


def ids_as_text(ids: pd.Series, *, where: object) -> pd.Series:
    """Converts ids to text: 1 and 1.0 become "1", missing ids None.

    Raises ValueError, prefixed with `where`, for lists and dictionaries.
    """
    as_text = "{:.17g}".format if pd.api.types.is_float_dtype(ids) else str
    values = ids.astype(object)
    nested = values[values.map(pd.api.types.is_list_like).astype(bool)]
    if len(nested):
        raise ValueError(f"{where}: {ids.name!r} must be texts or numbers; found {str(nested.iloc[0])[:40]!r}.")
    return values.map(as_text, na_action="ignore").astype(object).where(ids.notna(), None)


def read_gmt(path: Path) -> pd.DataFrame:
    """Reads a GMT file, plain or gzipped: on each line a term, a description and genes, separated by tabs.

    Returns id (the GO id at the end of the term, else the term), name ('GOBP_DNA_REPAIR' gives 'DNA REPAIR', and
    'DNA repair (GO:0006281)' gives 'DNA repair'), definition (None) and genes
    (each once, without the weights that Enrichr appends after a comma). Raises ValueError with the line number for
    fewer than 3 columns, a line without term or genes, and a repeated term.
    """
    rows: dict[str, dict[str, Any]] = {}
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        term, *rest = line.split("\t")
        if len(rest) < 2:
            raise ValueError(
                f"{path}, line {number}: has {len(rest) + 1} columns; a GMT line is a term, a description and genes, "
                "separated by tabs."
            )
        genes = [gene for gene in dict.fromkeys(gene.split(",")[0].strip() for gene in rest[1:]) if gene]
        name = term.split(" (GO:")[0].removeprefix("GOBP_").replace("_", " ").strip()
        if not genes or not name:
            raise ValueError(f"{path}, line {number}: has no {'genes' if name else 'term'}.")
        go_id = _GO_ID_AT_END.search(term.strip())
        key = go_id[1] if go_id else term.strip()
        if key in rows:
            raise ValueError(f"{path}, line {number}: repeated term {key!r}.")
        rows[key] = {"id": key, "name": name, "definition": None, "genes": genes}
    if not rows:
        raise ValueError(f"{path}: has no gene sets.")
    return pd.DataFrame(list(rows.values()))


def split_genes(genes: Any) -> list[str]:
    """Returns gene symbols from a list, or from text in which space, comma, semicolon, slash or bar separate them.

    Text may also be a list as pandas writes it to CSV. Empty and missing values give an empty list.
    """
    if isinstance(genes, str):
        return [gene for gene in re.split(r"[\s,;/|]+", re.sub(r"[\[\]'\"]", " ", genes)) if gene]
    if not pd.api.types.is_list_like(genes):
        return [] if pd.isna(genes) else [str(genes)]
    return [symbol for gene in genes if gene is not None and gene == gene and (symbol := str(gene).strip())]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end) of a UTF-8 file, plain or gzipped.

    Raises FileNotFoundError, or ValueError for an empty file, a line that is not UTF-8 and a damaged gzip file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    number = 0
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    with cast(IO[bytes], gzip.open(path) if is_gzip else path.open("rb")) as lines:
        try:
            for number, line in enumerate(lines, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: is not UTF-8 text ({error.reason}).") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: is truncated or damaged after line {number} ({error}).") from error
    if number == 0:
        raise ValueError(f"{path}: is empty.")


def map_rows(function: Callable[[dict[str, Any]], Any], table: pd.DataFrame, *, where: object) -> list[Any]:
    """Applies `function` to each row. Its ValueErrors are prefixed with `where` and the row."""
    results = []
    for i, row in enumerate(table.to_dict("records")):
        try:
            results.append(function(row))
        except ValueError as error:
            raise ValueError(f"{where}: row {i} (counted from 0): {error}.") from error
    return results


def check_sizes(min_genes: int, max_genes: int) -> None:
    """Raises ValueError unless 1 <= min_genes <= max_genes."""
    if not 1 <= min_genes <= max_genes:
        raise ValueError(f"`min_genes={min_genes}` and `max_genes={max_genes}`: need 1 <= min_genes <= max_genes.")


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """Returns the content of a parquet file with `table`, without its index."""
    return table.to_parquet(index=False, compression="zstd")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Writes a table atomically."""
    write_files({path: parquet_bytes(table)})


def _read_csv(path: Path, separator: str) -> pd.DataFrame:
    # Text is kept as it is: "None" is an answer and "0012" an id. Rows that are longer than the header are errors.
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(
                path,
                sep=separator,
                index_col=False,
                keep_default_na=False,
                na_values=[""],
                dtype=dict.fromkeys(TEXT_COLUMNS, str),
            )
        except pd.errors.ParserWarning as warning:
            raise ValueError("the rows have more columns than the header.") from warning


def _read_json(path: Path) -> pd.DataFrame:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()] if ".jsonl" in path.suffixes else json.load(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects.")
    return pd.DataFrame(rows)


def _rename_aliases(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Renames the columns in `ALIASES` to id, name, genes and definition."""
    renamed: dict[str, str] = {}
    for role, aliases in ALIASES.items():
        candidates = [name for name in table.columns if str(name).strip().lower() in aliases]
        candidates = [role] if role in table.columns else candidates
        if len(candidates) > 1:
            raise ValueError(f"{path}: the columns {candidates} could all be {role!r}; rename one to {role!r}.")
        if not candidates and role != "definition":
            known = ", ".join(aliases)
            raise ValueError(f"{path}: has none of the columns {known}; its columns are {list(table.columns)}.")
        renamed |= dict.fromkeys(candidates, role)
    return table.rename(columns=renamed)
