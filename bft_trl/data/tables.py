"""Tables in and out: one reader for the formats that gene sets are published in, and whole files or none."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.atomic import replacing

READERS = {
    ".parquet": pd.read_parquet,
    ".csv": pd.read_csv,
    ".tsv": lambda path: pd.read_csv(path, sep="\t"),
    ".json": lambda path: pd.read_json(path, orient="records"),
    ".jsonl": lambda path: pd.read_json(path, orient="records", lines=True),
}


def read_table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A table from parquet, CSV, TSV, JSON or JSON lines that has at least `columns` and one row.

    Raises:
        FileNotFoundError, ValueError: with the file, what is wrong and what would be right.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: unknown kind of table '{path.suffix}'. Known are {', '.join(READERS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        table = READERS[path.suffix](path)
    except (ValueError, OSError) as error:  # parser errors of pandas, json and arrow are ValueErrors
        raise ValueError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: has no column {missing}; its columns are {list(table.columns)}.")
    if table.empty:
        raise ValueError(f"{path}: has no rows.")
    return table


def read_gene_sets(path: Path) -> pd.DataFrame:
    """Gene sets from a table with the columns id, name and genes (see [`split_genes`]); ids and names are text.

    Raises ValueError for a missing id or name, a duplicate id and a set without genes, naming the rows.
    """
    table = read_table(path, ["id", "name", "genes"])
    for column in ("id", "name"):
        rows = [str(row) for row in table.index[table[column].isna()]]
        if rows:
            raise ValueError(f"{path}: no {column} in row {_some(rows)} (counted from 0).")
    genes = [split_genes(genes) for genes in table["genes"]]
    table = table.assign(id=table["id"].astype(str), name=table["name"].astype(str), genes=genes)
    empty = [str(name) for name, genes in zip(table["id"], table["genes"], strict=True) if not genes]
    if empty:
        raise ValueError(f"{path}: empty gene list in {_some(empty)}.")
    repeated = table["id"][table["id"].duplicated()].tolist()
    if repeated:
        raise ValueError(f"{path}: repeated id {_some(repeated)}.")
    return table


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
    return [str(gene) for gene in genes]


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Writes a table atomically."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd", compression_level=19)


def _some(names: Sequence[str]) -> str:
    return json.dumps(list(names[:5]))[1:-1] + (f" and {len(names) - 5} more" if len(names) > 5 else "")
