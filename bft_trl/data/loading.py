"""Rows to train on or to inspect, from the Hub, a folder or a file, in one of TRL's formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from bft_trl.data.gene_sets import load_gene_sets
from bft_trl.prompts import conversation

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def load_splits(name: str, *, config: str | None = None, streaming: bool = False) -> Any:
    """Loads the splits of a data set; a file has the split "train" alone.

    `name` is a Hub id, a folder, or a JSON, JSON lines, parquet or CSV file; `config` a configuration on the Hub.
    Returns a DatasetDict, or with `streaming` an IterableDatasetDict. Raises ValueError or OSError for data that
    cannot be read.
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
    """Converts a data set or a stream to TRL's conversational prompt-completion form. Other columns are kept.

    `prompt_column` is the user turn; the `completion_columns`, separated by blank lines, are the assistant turn.
    Raises ValueError for missing columns and for cells without text.
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
        name, config, streaming: as in [`load_splits`]; without a name the package's gene sets of up to 9
            genes are loaded, with the genes' full names.
        train_split, test_split: names of the splits. Without a test split the evaluation rows are drawn from the
            training rows by `seed`, and left out there.
        eval_samples, seed: number of rows to evaluate on, and seed of the draw.
        prompt_column, completion_columns: as in [`as_conversations`], for data in no format of TRL.

    Raises ValueError or FileNotFoundError that names the argument.
    """
    if eval_samples < 1:
        raise ValueError(
            f"`eval_samples={eval_samples}` must be 1 or more. Leave it out and set `eval_strategy='no'` for none."
        )
    if name is None:
        train, test = (load_gene_sets(split, described=True, max_genes=9) for split in ("train", "eval"))
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
