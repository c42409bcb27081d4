"""Rows to train on or to look at, from the Hub, a folder or a file, in one of TRL's formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

from bft_trl.prompts import conversation

_KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def load_splits(name: str, *, config: str | None = None, streaming: bool = False) -> Any:
    """The splits of a data set by name; a file has "train" alone.

    Args:
        name: Hub id, folder, or a JSON, JSON lines, parquet or CSV file.
        config: configuration on the Hub.
        streaming: read while training.

    Raises ValueError or FileNotFoundError that names the argument.
    """
    path = Path(name)
    kind = _KINDS.get(path.suffix)
    if kind and not path.is_file():
        raise FileNotFoundError(f"`dataset_name={name!r}`: no such file.")
    if kind and not path.stat().st_size:
        raise ValueError(f"`dataset_name={name!r}`: the file is empty.")
    if path.is_file() and not kind:
        raise ValueError(f"`dataset_name={name!r}`: use a .json, .jsonl, .parquet or .csv file.")
    options: dict[str, Any] = {"streaming": streaming} | ({"data_files": name} if kind else {})
    try:
        return load_dataset(*([kind] if kind else [name, config]), **options)
    except DatasetGenerationError as error:
        raise ValueError(f"`dataset_name={name!r}` cannot be read: {error.__cause__ or error}") from error


def load_split(splits: Any, split: str, name: str, *, argument: str) -> Any:
    """One of the splits. Raises ValueError that names `argument` and those that there are."""
    if split not in splits:
        raise ValueError(f"`{argument}={split!r}` is not in {name!r}; it has {list(splits)}.")
    return splits[split]


def as_conversations(rows: Any, *, prompt_column: str | None, completion_columns: Sequence[str] | None) -> Any:
    """Rows of any question-and-answer table in TRL's conversational form, beside their other columns.

    Args:
        rows: the data, or a stream.
        prompt_column: the user's turn.
        completion_columns: joined to the assistant's turn, a blank line between.

    Raises ValueError for columns that are not there, and for cells without text.
    """
    columns = [prompt_column or "", *(completion_columns or [])]
    missing = [name for name in columns if name not in (rows.column_names or columns)]
    if missing or len(columns) < 2 or not prompt_column:
        raise ValueError(
            f"`prompt_column={prompt_column!r}` and `completion_columns={completion_columns!r}` must both name "
            f"columns of the data, which has {rows.column_names}."
        )

    def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
        for name in columns:
            if not isinstance(row[name], str):
                raise ValueError(
                    f"Column '{name}' has no text in row {index}: {row[name]!r}. Fill in or drop such rows."
                )
        return conversation(row[columns[0]], "\n\n".join(row[name] for name in columns[1:]))

    # Other columns stay (id, source, weight, ...), but for those that TRL would take for a format of their own.
    dropped = [name for name in rows.column_names or [] if name in {*columns, "messages", "text"}]
    return rows.map(convert, with_indices=True, remove_columns=dropped)
