"""Tables in and out: one reader for the formats that gene sets are published in, and whole files or none."""

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowException
from pyarrow.parquet import read_metadata

from bft_trl.data.lines import numbered_lines
from bft_trl.io import write_files

READERS = {
    ".parquet": lambda path: _read_parquet(path, None),
    ".csv": lambda path: _read_csv(path, ","),
    ".tsv": lambda path: _read_csv(path, "\t"),
    ".json": lambda path: pd.read_json(path, orient="records", **_JSON),
    ".jsonl": lambda path: pd.read_json(path, orient="records", lines=True, **_JSON),
}
# Texts as they are: "None" is an answer, "0012" an id, and no date is meant.
_CSV: dict[str, Any] = {
    "keep_default_na": False,
    "na_values": [""],
    "dtype": dict.fromkeys(("id", "name", "model", "predicted_name"), str),
}
_JSON: dict[str, Any] = {"dtype": False, "convert_dates": False, "convert_axes": False, "precise_float": True}
# What the parsers of pandas, json, gzip and arrow raise for files that are damaged, or no table. Arrow's footer has no
# checksum: behind a changed byte anything may follow.
_DAMAGED = (
    *(ValueError, OSError, EOFError, zlib.error, csv.Error, ArrowException),
    *(AttributeError, TypeError, LookupError, MemoryError, OverflowError, RecursionError, NotImplementedError),
)

# Headers that published gene sets have (GeneAgent, NeST, Hu et al.), in lower case.
ALIASES = {
    "id": ("id", "go", "go_id", "term_id", "nest id", "nest_id"),
    "name": ("name", "term_description", "term", "term_name", "name_new", "description", "label"),
    "genes": ("genes", "gene_list", "symbols", "gene_symbols"),
    "definition": ("definition",),
}

_GO_ID_AT_END = re.compile(r"\((GO:\d{7})\)$")


def read_table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A table from parquet, CSV, TSV, JSON or JSON lines (the texts also as .gz) with at least `columns` and one row.

    Raises:
        FileNotFoundError, ValueError: with the file, what is wrong and what would be right.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in READERS or path.name.endswith(".parquet.gz"):
        raise ValueError(f"{path}: unknown kind of table '{path.suffix}'. Known are {', '.join(READERS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        table = READERS[kind](path)
    except _DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as {kind[1:]}: {' '.join(str(error).split())}") from error
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{path}: cannot be read as {kind[1:]}: it holds no table.")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: has no column {missing}; its columns are {list(table.columns)}.")
    if table.empty:
        raise ValueError(f"{path}: has no rows.")
    return table


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A parquet file; what it holds is compared with its checksums where it has them, as ours have.

    Raises ValueError that names the file, FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        return _read_parquet(path, columns)
    except _DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as parquet: {' '.join(str(error).split())}") from error


def read_gene_sets(path: Path) -> pd.DataFrame:
    """Gene sets from a GMT file ([`read_gmt`]) or a table with the columns id, name and genes (see [`split_genes`]).

    Columns may have the headers of [`ALIASES`], in any case, and are renamed; others stay. Ids and names are text.

    Raises ValueError for a missing id or name, a duplicate id and a set without genes, naming the rows, and where two
    columns could be meant.
    """
    if path.name.removesuffix(".gz").endswith(".gmt"):
        return read_gmt(path)
    table = _canonical(path, read_table(path, []))
    for column in ("id", "name"):
        rows = [str(row) for row in table.index[table[column].isna()]]
        if rows:
            raise ValueError(f"{path}: no {column} in row {_some(rows)} (counted from 0).")
    genes = [split_genes(genes) for genes in table["genes"]]
    table = table.assign(id=ids_as_text(table["id"], where=path), name=table["name"].astype(str), genes=genes)
    empty = [str(name) for name, genes in zip(table["id"], table["genes"], strict=True) if not genes]
    if empty:
        raise ValueError(f"{path}: empty gene list in {_some(empty)}.")
    repeated = table["id"][table["id"].duplicated()].tolist()
    if repeated:
        raise ValueError(f"{path}: repeated id {_some(repeated)}.")
    return table


def ids_as_text(ids: pd.Series, *, where: object) -> pd.Series:
    """Ids as text: 1 and 1.0 are "1", as a column of numbers with a gap has it; missing ones are None.

    Raises ValueError, which names `where`, for lists and other things that are no id.
    """

    def as_text(value: Any) -> str | None:
        if pd.api.types.is_list_like(value):
            raise ValueError(f"{where}: {ids.name!r} must be texts or numbers; found {str(value)[:40]!r}.")
        if pd.isna(value):
            return None
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)

    return pd.Series([as_text(value) for value in ids], index=ids.index, dtype=object)


def read_gmt(path: Path) -> pd.DataFrame:
    """Gene sets from a GMT file, plain or gzipped: a term, a description and genes on each line, tab-separated.

    Returns:
        id (the GO id where the term ends in one, else the term), name ([`readable_term`]), definition (None) and genes
        (in the file's order, each once, without the weights that Enrichr writes after a comma).

    Raises ValueError with file and line for fewer than 3 columns, no gene and a repeated term.
    """
    rows: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        term, *rest = line.split("\t")
        if len(rest) < 2:
            raise ValueError(
                f"{path}, line {number}: has {len(rest) + 1} columns; a GMT line is a term, a description and genes, "
                "tab-separated."
            )
        genes = [gene for gene in dict.fromkeys(gene.split(",")[0].strip() for gene in rest[1:]) if gene]
        name = readable_term(term)
        if not genes or not name:
            raise ValueError(f"{path}, line {number}: has no {'genes' if name else 'term'}.")
        go_id = _GO_ID_AT_END.search(term.strip())
        key = go_id[1] if go_id else term.strip()
        if key in first:
            raise ValueError(f"{path}, line {number}: repeats the term of line {first[key]}, {key!r}.")
        first[key] = number
        rows.append({"id": key, "name": name, "definition": None, "genes": genes})
    if not rows:
        raise ValueError(f"{path}: holds no gene set. A GMT line is a term, a description and genes, tab-separated.")
    return pd.DataFrame(rows)


def readable_term(term: str) -> str:
    """A GMT term as a name: 'GOBP_DNA_REPAIR' and 'DNA repair (GO:0006281)' give 'DNA REPAIR' and 'DNA repair'."""
    name = term.split(" (GO:")[0].removeprefix("GOBP_")
    return name.replace("_", " ").strip()


def split_genes(genes: Any) -> list[str]:
    """Gene symbols from a list or a text; an empty or missing value gives an empty list.

    Text may be separated by space, comma, semicolon, slash or bar, or be a list as pandas writes it into a CSV file.
    """
    if isinstance(genes, str):
        return [gene for gene in re.split(r"[\s,;/|]+", re.sub(r"[\[\]'\"]", " ", genes)) if gene]
    if genes is None or isinstance(genes, float):  # how pandas reads an empty field
        return []
    if not isinstance(genes, Iterable):  # a lone number
        return [str(genes)]
    symbols = ["" if gene is None or gene != gene else str(gene).strip() for gene in genes]
    return [symbol for symbol in symbols if symbol]


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError that names the file where it does not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of the encoding too
        raise ValueError(f"{path}: not JSON ({error}); was the run that wrote it killed?") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object.")
    return found


def check_sizes(min_genes: int, max_genes: int) -> None:
    """Raises ValueError unless 1 <= min_genes <= max_genes."""
    if not 1 <= min_genes <= max_genes:
        raise ValueError(f"`min_genes={min_genes}` and `max_genes={max_genes}`: need 1 <= min_genes <= max_genes.")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Writes a table atomically."""
    write_files({path: small_parquet(table)})


def write_together(files: Mapping[Path, pd.DataFrame | str]) -> None:
    """Writes tables (parquet) and texts that belong together, in this order."""
    write_files({path: c.encode() if isinstance(c, str) else small_parquet(c) for path, c in files.items()})


def small_parquet(table: pd.DataFrame) -> bytes:
    """A table as a small parquet file."""
    return parquet_bytes(table, compression="zstd", compression_level=19)


def parquet_bytes(table: pd.DataFrame, **options: Any) -> bytes:
    """A table as a parquet file with checksums: a byte of the data that changes is noticed when it is read."""
    return table.to_parquet(index=False, write_page_checksum=True, **options)


def _read_parquet(path: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    # Files without checksums, as most are, are read as they are.
    table = pd.read_parquet(path, columns=columns, page_checksum_verification=True)
    stated = read_metadata(path).num_rows
    if len(table) != stated:  # arrow skips a page whose header is of a kind that it does not know
        raise ValueError(f"it has {len(table)} rows and should have {stated}.")
    return table


def _read_csv(path: Path, separator: str) -> pd.DataFrame:
    """A table of delimited text. Raises ValueError with the line where a row is shorter or longer than the header.

    pandas fills what a row lacks, ends a text at a NUL byte, and takes the first column for an index where rows are
    one longer than the header; of a file that was cut short, none of it could be told.
    """
    known = csv.field_size_limit(sys.maxsize)  # a text may be long
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines, delimiter=separator)
            width = len(next(rows, []))
            for row in rows:
                if row and len(row) != width:
                    raise ValueError(
                        f"line {rows.line_num} has {len(row)} columns, the header {width}. Is the file whole?"
                    )
                if any("\0" in cell for cell in row):
                    raise ValueError(f"line {rows.line_num} holds a NUL byte: the file is damaged.")
    finally:
        csv.field_size_limit(known)
    return pd.read_csv(path, sep=separator, **_CSV)


def _canonical(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """`table` with its columns id, name, genes and, where there is one, definition under these names."""
    renamed, missing = {}, []
    for role, aliases in ALIASES.items():
        if role in table.columns:
            continue
        found = [column for column in table.columns if str(column).strip().lower() in aliases]
        if len(found) > 1:
            raise ValueError(f"{path}: the columns {found} could all be {role!r}; rename the right one to {role!r}.")
        if found:
            renamed[found[0]] = role
        elif role != "definition":
            missing.append(role)
    if missing:
        known = "; ".join(f"{role!r} may also be {', '.join(ALIASES[role][1:])}" for role in missing)
        raise ValueError(f"{path}: has no column {missing}; its columns are {list(table.columns)}. {known}.")
    return table.rename(columns=renamed)


def _some(names: Sequence[str]) -> str:
    return json.dumps(list(names[:5]))[1:-1] + (f" and {len(names) - 5} more" if len(names) > 5 else "")
