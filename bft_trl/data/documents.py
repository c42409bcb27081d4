"""What any table of training or evaluation data asks: the form in which the leakage check compares them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.data.medical import SOURCES, Source
from bft_trl.data.tables import ALIASES, ids_as_text, read_gene_sets, read_table

# How to recognise the published tables: by the columns that no other kind has.
_MEDICAL = {name: set(source.columns) for name, source in SOURCES.items()}
# Where TRL's formats have the question.
_COLUMNS = ("prompt", "messages", "question", "text")


def read_documents(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table as it is, and what its rows ask.

    Knows gene sets, the published columns of the medical data sets, and TRL's formats: prompt-completion and
    messages, as conversations or as texts, and plain `text`. A column `question` says what a TRL row asks; without
    one it is the last user turn.

    Returns:
        The table, and per row: id (None where there is no such column), text (the question, or a gene set's name),
        body (all that the model reads of the question) and, for gene sets, genes.

    Raises FileNotFoundError or ValueError that names the file.
    """
    table = read_gene_sets(path) if ".gmt" in path.suffixes else read_table(path, [])
    columns = {str(name).lower() for name in table.columns}
    medical = [name for name, wanted in _MEDICAL.items() if wanted <= set(table.columns)]
    if not medical and not columns & set(_COLUMNS) and columns & set(ALIASES["genes"]):
        table = read_gene_sets(path)
    ids = ids_as_text(table["id"], where=path) if "id" in table else None
    documents = pd.DataFrame({"id": ids}, index=table.index, dtype=object)
    if medical:
        documents[["text", "body"]] = _rows(path, table, _published(SOURCES[medical[0]]))
        return table, documents
    if {"genes", "name"} <= set(table.columns):
        documents["text"] = documents["body"] = table["name"].astype(str)
        documents["genes"] = table["genes"]
        return table, documents
    column = next((name for name in _COLUMNS if name in table.columns), None)
    if column is None:
        raise ValueError(
            f"{path}: holds neither gene sets nor questions that are known; its columns are {list(table.columns)}. "
            "Known are id, name and genes, the published columns of the medical data sets, and TRL's prompt, messages "
            "or text."
        )
    documents[["text", "body"]] = _rows(path, table, lambda row: (row.get("question"), asked(row[column])))
    documents["text"] = documents["text"].where(documents["text"].notna(), documents["body"])
    return table, documents


def asked(value: Any) -> str:
    """The last user turn of a conversation, or a text as it is. Raises ValueError for what is neither."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:40]!r} is neither a text nor a list of turns")
    turns = [turn.get("content") for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
    last = turns[-1] if turns else ""
    if isinstance(last, Iterable) and not isinstance(last, str):  # texts and images
        last = " ".join(str(part["text"]) for part in last if isinstance(part, Mapping) and part.get("text"))
    if not isinstance(last, str):
        raise ValueError(f"the last user turn has no text but {last!r}")
    return last


def _published(source: Source) -> Callable[[Mapping[str, Any]], tuple[str, str]]:
    def texts(row: Mapping[str, Any]) -> tuple[str, str]:
        question, context = source.stem(row)
        return question, f"{context} {question}".strip()

    return texts


def _rows(path: Path, table: pd.DataFrame, texts: Callable[[Mapping[str, Any]], tuple[Any, str]]) -> list[Any]:
    """What `texts` says of each row; its ValueErrors get the file and the row."""
    found = []
    for i, row in enumerate(table.to_dict("records")):
        try:
            found.append(texts(row))
        except ValueError as error:
            raise ValueError(f"{path}: row {i} (counted from 0): {error}.") from error
    return found
