"""Writes training data with its data card, a README with sources, licenses and the command."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl import markdown
from bft_trl.data.tables import parquet_bytes
from bft_trl.io import write_files


@dataclass(frozen=True)
class Source:
    """Gene sets and their provenance.

    Attributes:
        sets: id, name, definition (may be missing), genes (a list) and, for some sources, gene_names.
        label: column `source` of the training rows.
        attribution: entries of the data card on authors and licenses.
        files: input files.
    """

    sets: pd.DataFrame
    label: str
    attribution: Sequence[str]
    files: Sequence[Path]


def write_data(output_dir: Path, tables: Mapping[str, pd.DataFrame], **card: Any) -> None:
    """Writes each table as `<name>.parquet`, and README.md; `card` are the arguments of [`data_card`]."""
    files = {output_dir / f"{name}.parquet": table for name, table in tables.items()}
    text = data_card(files, **card)
    write_files({output_dir / "README.md": text.encode()} | {path: parquet_bytes(files[path]) for path in files})


def data_card(
    files: Mapping[Path, pd.DataFrame],
    *,
    title: str,
    description: str,
    excluded: Iterable[tuple[str, int]],
    attribution: Sequence[str],
    inputs: Sequence[Path],
    command: str | None,
) -> str:
    """Returns the Markdown text of a data card. It contains names of files, not their folders.

    Args:
        files: written files and their tables.
        title, description: heading, and paragraph on what a row is.
        excluded: name and number of rows of each evaluation file that was kept out.
        attribution: list entries on sources and licenses.
        inputs: files from which the data were built, listed with their SHA-256.
        command: command line; None leaves the section out.
    """
    read = [(markdown.code(path.name), hashlib.sha256(path.read_bytes()).hexdigest()) for path in inputs]
    sections = [
        f"# {title}",
        description,
        _table("file", "rows", [(markdown.code(path.name), len(table)) for path, table in files.items()]),
        "Rows that leak into these evaluation data (see `bft-trl data check`) are left out:",
        _table("evaluation data", "rows", [(markdown.text(name), rows) for name, rows in excluded] or [("none", "")]),
        "## Attribution",
        "\n".join(f"- {line}" for line in attribution),
        *(["## Command", markdown.code_block(command)] if command else []),
        *([_table("built from", "sha256", read)] if read else []),
    ]
    return "\n\n".join(sections) + "\n"


def _table(left: str, right: str, rows: Iterable[tuple[str, object]]) -> str:
    # markdown.text escapes "|", markdown.code does not.
    cells = [(re.sub(r"(?<!\\)\|", r"\\|", first), second) for first, second in rows]
    return "\n".join(f"| {a} | {b} |" for a, b in [(left, right), ("---", "---"), *cells])
