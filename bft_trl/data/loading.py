"""Rows to train on or to inspect, from the Hub, a folder or a file, in one of TRL's formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

from bft_trl.prompts import conversation

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def load_splits(name: str, *, config: str | None = None, streaming: bool = False) -> Any:
    """Loads the splits of a data set; a file has the split "train" alone.

    Args:
        name: Hub id, folder, or a JSON, JSON lines, parquet or CSV file.
        config: configuration on the Hub.
        streaming: read while training.

    Returns a DatasetDict, or an IterableDatasetDict. Raises ValueError or OSError for data that cannot be read.
    """
    path = Path(name)
    builder = _FORMATS.get(path.suffix)
    if builder and not path.is_file():
        raise FileNotFoundError(f"`dataset_name={name!r}`: no such file.")
    if path.is_file() and not builder:
        raise ValueError(f"`dataset_name={name!r}`: use a .json, .jsonl, .parquet or .csv file.")
    try:
        if builder:
            return load_dataset(builder, data_files=name, streaming=streaming)
        return load_dataset(name, config, streaming=streaming)
    except DatasetGenerationError as error:
        raise ValueError(f"`dataset_name={name!r}` cannot be read: {error.__cause__ or error}") from error


def load_split(splits: Any, split: str, name: str, *, argument: str) -> Any:
    """Returns one of the splits of the data set `name`. Raises ValueError that names `argument` and the splits."""
    if split not in splits:
        raise ValueError(f"`{argument}={split!r}` is not in {name!r}; it has {list(splits)}.")
    return splits[split]


def as_conversations(rows: Any, *, prompt_column: str | None, completion_columns: Sequence[str] | None) -> Any:
    """Converts rows to TRL's conversational prompt-completion form. Other columns are kept.

    Args:
        rows: data set, or a stream.
        prompt_column: column of the user turn.
        completion_columns: columns that are joined to the assistant turn, separated by blank lines.

    Returns the data set or stream. Raises ValueError for missing columns and for cells without text.
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
                raise ValueError(f"Column '{name}' has no text in row {index}: {row[name]!r}. Fill it in or drop it.")
        return conversation(row[columns[0]], "\n\n".join(row[name] for name in columns[1:]))

    # "messages" and "text" would be taken for a format of their own.
    dropped = [name for name in rows.column_names or [] if name in {*columns, "messages", "text"}]
    return rows.map(convert, with_indices=True, remove_columns=dropped)
