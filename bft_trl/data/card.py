"""Data files and their card: a README beside them that says what they hold, from what and by which command."""

import hashlib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl import markdown
from bft_trl.data.tables import small_parquet
from bft_trl.io import write_files


def write_data(files: Mapping[Path, pd.DataFrame], **described: Any) -> None:
    """Writes tables of one folder and their README, as [`data_card`] gives it, all together or not at all.

    Half of an older split beside half of a new one would be training data in the evaluation set.
    """
    contents = {path: small_parquet(table) for path, table in files.items()}
    checksums = {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    card = data_card(files, checksums, **described)
    write_files({next(iter(files)).with_name("README.md"): card.encode()} | contents)


def data_card(
    files: Mapping[Path, pd.DataFrame],
    checksums: Mapping[Path, str],
    *,
    title: str,
    description: str,
    extra_column: tuple[str, Callable[[pd.DataFrame], object]],
    exclusion: str,
    excluded: Iterable[tuple[str, int, int]],
    attribution: Sequence[str],
    inputs: Sequence[Path],
    command: Sequence[str],
    unit: str = "rows",
) -> str:
    """Markdown text of a data card. It holds names of files and never their folders.

    Args:
        files: written files and the tables in them.
        checksums: of the files.
        title: heading, without "#".
        description: paragraph on what a row is.
        extra_column: heading of one more column of the files' table, and what it says of each table.
        exclusion: sentence on how evaluation sets were kept out.
        excluded: (name, rows, leaks found in the written tables) of each evaluation set.
        attribution: list entries on sources and licences.
        inputs: files that the data were made from, listed with their checksums.
        command: the parts of the command, one on each line.
        unit: what a row is called in headings.
    """
    heading, figure = extra_column
    written = [(markdown.code(path.name), len(table), figure(table), checksums[path]) for path, table in files.items()]
    read = [(markdown.code(path.name), sha256(path)) for path in inputs]
    named = [(markdown.text(name), rows, leaks) for name, rows, leaks in excluded]
    entries = "\n".join(_wrapped(f"- {line}", subsequent_indent="  ") for line in attribution)
    typed = " \\\n    ".join(command)
    made_from = f"\n{_markdown(['from', 'sha256'], read)}\n" if read else ""
    return f"""# {title}

{_wrapped(description)}

{_markdown(["file", unit, heading, "sha256"], written)}

{_wrapped(exclusion)}

{_markdown(["evaluation sets", unit, "leaks"], named or [("none given", "", "")])}

## Attribution

{entries}

## Made by

{markdown.code_block(typed)}
{made_from}"""


def sha256(path: Path) -> str:
    """Checksum of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrapped(text: str, *, subsequent_indent: str = "") -> str:
    return textwrap.fill(
        text, 119, subsequent_indent=subsequent_indent, break_long_words=False, break_on_hyphens=False
    )


def _markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "|".join(_cell(value) for value in line) + "|" for line in lines)


def _cell(value: object) -> str:
    text = re.sub(r"(?<!\\)\|", r"\\|", str(value))
    return text if text == "---" else f" {text} " if text else " "
