"""What any table of training or evaluation data asks: the form in which the leakage check compares them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.data.medical import MMLU_SUBJECTS, SOURCES, as_questions
from bft_trl.data.tables import read_gene_sets, read_table

# How to recognise the published tables: by the columns that no other kind has.
_MEDICAL = {name: set(source.columns) for name, source in SOURCES.items()}


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
    lower = {str(name).lower() for name in table.columns}
    medical = [name for name, columns in _MEDICAL.items() if columns <= set(table.columns)]
    if medical:
        return _questions(table, medical[0], path)
    if "prompt" not in lower and any("gene" in name for name in lower):
        table = read_gene_sets(path)
    ids = table["id"].astype(str).where(table["id"].notna()) if "id" in table else None
    documents = pd.DataFrame({"id": ids}, index=table.index, dtype=object)
    if "genes" in table.columns and "name" in table.columns:
        documents["text"] = documents["body"] = table["name"].astype(str)
        documents["genes"] = table["genes"]
        return table, documents
    column = next((name for name in ("prompt", "messages", "question", "text") if name in table.columns), None)
    if column is None:
        raise ValueError(
            f"{path}: holds neither gene sets nor questions that are known; its columns are {list(table.columns)}. "
            "Known are id, name and genes, the published columns of the medical data sets, and TRL's prompt, messages "
            "or text."
        )
    documents["body"] = [asked(value) for value in table[column]]
    documents["text"] = table["question"].astype(str) if "question" in table.columns else documents["body"]
    return table, documents


def asked(value: Any) -> str:
    """The last user turn of a conversation, or a text as it is."""
    if isinstance(value, str):
        return value
    turns = [turn["content"] for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
    return turns[-1] if turns else ""


def _questions(table: pd.DataFrame, source: str, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    if source == "mmlu_medical":
        table = table[table["subject"].isin(MMLU_SUBJECTS)].reset_index(drop=True)
    if source == "medmcqa":
        table = table[table["cop"] >= 0].reset_index(drop=True)
    questions = as_questions(table, source, where=str(path))
    documents = pd.DataFrame(
        {"text": questions["question"], "body": questions["context"] + " " + questions["question"]}
    )
    documents.insert(0, "id", questions["id"] if "id" in table.columns else None)
    return table, documents
