"""The files of a training data set and their data card, a README with sources, licenses and the command."""

import hashlib
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl import markdown
from bft_trl.data.tables import parquet_bytes
from bft_trl.io import write_files


def write_data(files: Mapping[Path, pd.DataFrame], **card: Any) -> None:
    """Writes tables of one folder and their README.md, with `card` as the arguments of [`data_card`].

    All are complete on disk before the first one replaces an older file.
    """
    readme = next(iter(files)).with_name("README.md")
    contents = {path: parquet_bytes(table) for path, table in files.items()}
    write_files({readme: data_card(files, **card).encode(), **contents})


def data_card(
    files: Mapping[Path, pd.DataFrame],
    *,
    title: str,
    description: str,
    excluded: Iterable[tuple[str, object]],
    attribution: Sequence[str],
    inputs: Sequence[Path],
    command: str | None,
) -> str:
    """Returns the Markdown text of a data card. It contains names of files, not their folders.

    Args:
        files: written files and their tables.
        title: heading, without "#".
        description: paragraph on what a row is.
        excluded: name and number of rows of each evaluation file that was kept out.
        attribution: list entries on sources and licenses.
        inputs: files from which the data were built, listed with their SHA-256.
        command: command line; None leaves the section out.
    """
    written = [(markdown.code(path.name), len(table)) for path, table in files.items()]
    read = [(markdown.code(path.name), hashlib.sha256(path.read_bytes()).hexdigest()) for path in inputs]
    named: list[tuple[str, object]] = [(markdown.text(name), rows) for name, rows in excluded] or [("none", "")]
    sections = [
        f"# {title}",
        _wrap(description),
        _table(["file", "rows"], written),
        "Rows that leak into these evaluation data (see `bft-trl data check`) are left out:",
        _table(["evaluation data", "rows"], named),
        "## Attribution",
        "\n".join(_wrap(f"- {line}", subsequent_indent="  ") for line in attribution),
        *(["## Command", markdown.code_block(command)] if command else []),
        *([_table(["built from", "sha256"], read)] if read else []),
    ]
    return "\n\n".join(sections) + "\n"


def _wrap(text: str, *, subsequent_indent: str = "") -> str:
    return textwrap.fill(
        text, 119, subsequent_indent=subsequent_indent, break_long_words=False, break_on_hyphens=False
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    # markdown.text escapes "|" already, markdown.code does not.
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", str(value)) for value in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])
