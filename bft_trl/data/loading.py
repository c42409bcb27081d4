"""Rows to train on or to look at, from the Hub, a folder or a file, in one of TRL's formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from bft_trl.data.gene_sets import load_gene_sets
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


def load_train_and_eval(
    name: str | None,
    *,
    config: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    eval_samples: int = 48,
    seed: int = 42,
    streaming: bool = False,
    prompt_column: str | None = None,
    completion_columns: Sequence[str] | None = None,
) -> tuple[Any, Any]:
    """Returns the rows to train on and up to `eval_samples` rows to evaluate on (None if there are none).

    Args:
        name: as in [`load_splits`]; None takes the gene sets of the package.
        config: configuration on the Hub.
        train_split, test_split: names of the splits. Without a test split the evaluation rows are drawn from the
            training rows by `seed`, and left out there.
        eval_samples: number of rows to evaluate on.
        seed: of the draw.
        streaming: read while training.
        prompt_column, completion_columns: as in [`as_conversations`], for data in no format of TRL.

    Raises ValueError or FileNotFoundError that names the argument.
    """
    if eval_samples < 1:
        raise ValueError(f"`eval_samples={eval_samples}` must be 1 or more. Set `eval_strategy='no'` for none.")
    if name is None:
        train, test = load_gene_sets("train"), load_gene_sets("eval")
    else:
        splits = load_splits(name, config=config, streaming=streaming)
        train = load_split(splits, train_split, name, argument="dataset_train_split")
        test = splits.get(test_split)
        if test is None and isinstance(train, Dataset) and len(train) > eval_samples:
            held_out = train.train_test_split(test_size=eval_samples, seed=seed)
            train, test = held_out["train"], held_out["test"]
    if isinstance(test, Dataset):
        test = test.select(range(min(eval_samples, len(test))))
    if prompt_column or completion_columns:
        columns: dict[str, Any] = {"prompt_column": prompt_column, "completion_columns": completion_columns}
        train = as_conversations(train, **columns)
        test = None if test is None else as_conversations(test, **columns)
    return train, test
