"""Questions and gene sets of any supported table in one form, and `bft-trl data check`, which compares them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.data.evaluation_sets import PUBLISHED, load_evaluation_sets
from bft_trl.data.leakage import REASONS, find_leaks
from bft_trl.data.medical import SOURCES, load_questions
from bft_trl.data.tables import ALIASES, ids_as_text, map_rows, parquet_bytes, read_gene_sets, read_table
from bft_trl.io import check_folder, write_files

logger = logging.getLogger(__name__)

# Columns with the question in TRL's formats.
_COLUMNS = ("prompt", "messages", "question", "text")


def read_documents(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads a table of training or evaluation data and the question of each row.

    Supported are gene sets, the published columns of the medical data sets and TRL's formats (prompt-completion and
    messages, conversational or not, and text). The question of a TRL row is its column `question`, else the last user
    turn.

    Returns the table, and documents with one row per row of it: id (None without an id), text (the question, or the
    name of a gene set), body (the question with its context) and, for gene sets, genes. Raises FileNotFoundError or
    ValueError.
    """
    table = read_gene_sets(path) if ".gmt" in path.suffixes else read_table(path)
    columns = {str(name).lower() for name in table.columns}
    medical = next((source for source in SOURCES.values() if set(source.columns) <= set(table.columns)), None)
    if not medical and not columns & set(_COLUMNS) and columns & set(ALIASES["genes"]):
        table = read_gene_sets(path)
    ids = ids_as_text(table["id"], where=path) if "id" in table else None
    documents = pd.DataFrame({"id": ids}, index=table.index, dtype=object)
    if medical:
        texts = map_rows(medical.texts, table, where=path)
        questions = pd.DataFrame(texts, columns=["question", "context"], index=table.index)
        return table, documents.assign(text=questions["question"], body=_with_context(questions))
    if {"genes", "name"} <= set(table.columns):
        names = table["name"].astype(str)
        return table, documents.assign(text=names, body=names, genes=table["genes"])
    column = next((name for name in _COLUMNS if name in table.columns), None)
    if column is None:
        raise ValueError(
            f"{path}: has neither gene sets nor questions; its columns are {list(table.columns)}. Expected id, name "
            "and genes, the published columns of the medical data sets, or TRL's prompt, messages or text."
        )
    documents["body"] = map_rows(lambda row: last_user_turn(row[column]), table, where=path)
    documents["text"] = table["question"] if "question" in table else documents["body"]
    documents["text"] = documents["text"].where(documents["text"].notna(), documents["body"])
    return table, documents


def last_user_turn(value: Any) -> str:
    """Returns the last user turn of a conversation, or a text unchanged. Raises ValueError for anything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ValueError(f"{str(value)[:40]!r} is neither a text nor a list of turns")
    turns = [turn.get("content") for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
    last = turns[-1] if turns else ""
    if isinstance(last, Iterable) and not isinstance(last, str):  # text and images
        last = " ".join(str(part["text"]) for part in last if isinstance(part, Mapping) and part.get("text"))
    if not isinstance(last, str):
        raise ValueError(f"the last user turn has no text but {last!r}")
    return last


def check_leakage(train: Sequence[Path], against: Sequence[Path], *, output_dir: Path | None = None) -> pd.DataFrame:
    """Finds the training rows that leak evaluation rows.

    Args:
        train: files of training data, in any form that [`read_documents`] supports.
        against: files of evaluation data, or names of downloaded data: gene_sets_go, gene_sets_nest,
            gene_sets_msigdb and the keys of [`bft_trl.data.medical.SOURCES`].
        output_dir: folder for each training file without the leaking rows, as `<name>.parquet`, and `leaks.csv`.

    Returns the columns train and against (file names) and those of [`find_leaks`]. Raises FileNotFoundError or
    ValueError before anything is written.
    """
    if output_dir is not None:
        check_folder(output_dir)
        if len({path.stem for path in train}) < len(train):
            raise ValueError(f"`train`: two files with the same name cannot both be written to {output_dir}.")
        if output_dir.resolve() in {path.parent.resolve() for path in train}:
            raise ValueError(f"`output_dir={str(output_dir)!r}` contains a training file. Name another folder.")
    tests = [(path.name, _evaluation_documents(path)) for path in against]
    found = []
    kept = {}
    for path in train:
        table, documents = read_documents(path)
        leaked: set[int] = set()
        for name, test in tests:
            leaks = find_leaks(documents, test).assign(train=path.name, against=name)
            _log_counts(path, name, leaks, len(documents), len(test))
            leaked |= set(leaks["train_row"])
            found.append(leaks)
        kept[path.stem] = table.drop(index=table.index[sorted(leaked)]).reset_index(drop=True)
        if output_dir is not None and kept[path.stem].empty:
            raise ValueError(f"{path}: every row leaks; no training data would be left.")
    report = pd.concat(found, ignore_index=True)
    if output_dir is not None:
        files = {output_dir / f"{name}.parquet": parquet_bytes(table) for name, table in kept.items()}
        write_files({output_dir / "leaks.csv": report.to_csv(index=False).encode()} | files)
        for name, table in kept.items():
            logger.info("%s: %d rows kept", output_dir / f"{name}.parquet", len(table))
    return report


def _log_counts(path: Path, name: str, leaks: pd.DataFrame, n_train: int, n_test: int) -> None:
    counts = leaks.groupby("reason")["test_row"].nunique().reindex(REASONS, fill_value=0)
    logger.info(
        "%s against %s: %d of %d training rows leak %d of %d (%s)",
        *(path, name, leaks["train_row"].nunique(), n_train, leaks["test_row"].nunique(), n_test),
        ", ".join(f"{count} by {reason}" for reason, count in counts.items()),
    )


def _evaluation_documents(path: Path) -> pd.DataFrame:
    if path.exists():
        return read_documents(path)[1]
    if path.name in SOURCES:
        questions = load_questions(path.name, drop_unanswered=True)
        return questions[["id"]].assign(text=questions["question"], body=_with_context(questions))
    if path.name in {f"gene_sets_{name}" for name in PUBLISHED}:
        return load_evaluation_sets(path.name.removeprefix("gene_sets_"))
    return read_documents(path)[1]  # raises FileNotFoundError


def _with_context(questions: pd.DataFrame) -> pd.Series:
    return (questions["context"] + " " + questions["question"]).str.strip()
