"""Numbers that a row carries through TRL's preparation, packing and batching: its index, weight and column value.

They exist only for `log_samples`, `weight_column` and `metrics_by_column`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bft_trl.config import BFTConfig
from bft_trl.weighting import SupervisedTokens

logger = get_logger(__name__)

ROW, WEIGHT, VALUE = "_bft_row", "_bft_weight", "_bft_value"
COLUMNS = {ROW: torch.int64, WEIGHT: torch.float32, VALUE: torch.int64}
_OPTIONS = {ROW: "log_samples", WEIGHT: "weight_column", VALUE: "metrics_by_column"}
# Each value adds three curves to a run.
MAX_VALUES = 50


@dataclass(kw_only=True)
class RowColumns:
    """Adds the columns that the trainer needs to a data set. `values` are the values of `metrics_by_column`."""

    loss_type: str
    log_samples: bool = False
    weight_column: str | None = None
    metrics_by_column: str | None = None
    values: list[str] = field(default_factory=list)

    def add(self, dataset: Dataset, name: str, *, training: bool) -> Dataset:
        """Returns the data set with its columns, without the rows of weight 0.

        Args:
            dataset: raw or tokenized rows.
            name: name of the data set in messages, such as "train".
            training: row numbers and weights are for training only, and only there a missing column is an error.

        Raises ValueError for a missing column, for too many values, and for weights that are not numbers >= 0.
        """
        dataset = dataset.remove_columns([column for column in COLUMNS if column in dataset.column_names])
        found: dict[str, np.ndarray] = {}
        if training and self.log_samples:
            found[ROW] = np.arange(len(dataset))
        if training and self.weight_column is not None:
            found[WEIGHT] = self._weights(dataset, name)
        if self.metrics_by_column is not None and (training or self.metrics_by_column in dataset.column_names):
            found[VALUE] = self._value_indices(dataset, name)
        for column, numbers in found.items():
            dataset = dataset.add_column(column, numbers)
        kept = np.flatnonzero(found[WEIGHT]) if WEIGHT in found else np.arange(len(dataset))
        if len(kept) == len(dataset):
            return dataset
        logger.warning(
            "Dropped %d of %d rows of the %s dataset: `weight_column=%r` is 0 there.",
            *(len(dataset) - len(kept), len(dataset), name, self.weight_column),
        )
        return dataset.select(kept)

    def check(self, columns: Iterable[str]) -> None:
        """Raises ValueError if a training batch lacks a column, as after replacing the trainer's data or collator."""
        needed = {ROW: self.log_samples, WEIGHT: self.weight_column, VALUE: self.metrics_by_column}
        for column in [column for column, option in needed.items() if option and column not in columns]:
            raise ValueError(
                f"A training batch has no column {column!r}, which `{_OPTIONS[column]}` needs. Pass the data to the "
                "constructor of the trainer instead of assigning them, and keep its `data_collator`."
            )

    def _weights(self, dataset: Dataset, name: str) -> np.ndarray:
        values = _column(dataset, "weight_column", self.weight_column, name)
        numbers = values.dtype.kind in "iuf"
        wrong = ~(np.isfinite(values) & (values >= 0)) if numbers else np.ones(len(values), bool)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"`weight_column={self.weight_column!r}`: row {row} of the {name} dataset has "
                f"{values.tolist()[row]!r:.40}, which is not a weight: a number of 0 (drops the row) or more. "
                "Correct it, or set `weight_column=None`."
            )
        if not values.any():
            raise ValueError(f"`weight_column={self.weight_column!r}` is 0 in every row of the {name} dataset.")
        if self.loss_type != "bft" and not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"`weight_column={self.weight_column!r}` multiplies into the sample weights of `loss_type='bft'`; the "
                f"mean over tokens of `loss_type={self.loss_type!r}` has none. Set `weight_column=None`, or weights "
                "of 0 and 1."
            )
        return values.astype(np.float32)

    def _value_indices(self, dataset: Dataset, name: str) -> np.ndarray:
        column = _column(dataset, "metrics_by_column", self.metrics_by_column, name)
        texts = ["none" if pd.isna(value) else str(value) for value in column]
        self.values += [text for text in dict.fromkeys(texts) if text not in self.values]
        if len(self.values) > MAX_VALUES:
            raise ValueError(
                f"`metrics_by_column={self.metrics_by_column!r}` has {len(self.values)} different values, such as "
                f"{self.values[0]!r:.40}: at most {MAX_VALUES} are logged. Name a column of few values."
            )
        index = {value: position for position, value in enumerate(self.values)}
        return np.array([index[text] for text in texts])


def row_columns(args: BFTConfig, train_dataset: Any, data_collator: Any) -> RowColumns | None:
    """Returns None unless an option of `args` needs row numbers, weights or column values.

    Raises ValueError if an option needs them and the data cannot carry them.
    """
    options = {name: getattr(args, name) for name in ("log_samples", "weight_column", "metrics_by_column")}
    wanted = [name for name, value in options.items() if value]
    if not wanted:
        return None
    obstacle = None
    if data_collator is not None:
        obstacle = "a custom `data_collator` does not carry row numbers"
    elif not isinstance(train_dataset, Dataset):
        obstacle = "it needs a `Dataset`, not an `IterableDataset`"
    elif train_dataset.format["type"] == "custom":
        obstacle = "a dataset with `with_transform` shows only the columns of its transform"
    elif "seq_lengths" in train_dataset.column_names:
        obstacle = "the rows of a packed dataset contain several documents; pass it before packing"
    elif {"image", "images"} & {*train_dataset.column_names}:
        obstacle = "TRL's collator for image datasets does not carry row numbers"
    if obstacle is not None:
        option = wanted[0]
        default = BFTConfig.__dataclass_fields__[option].default
        raise ValueError(f"`{option}={options[option]!r}` cannot be used: {obstacle}. Set `{option}={default!r}`.")
    return RowColumns(loss_type=args.loss_type, **options)


def pack_with_columns(dataset: Dataset, args: BFTConfig, name: str) -> Dataset:
    """Packs a tokenized data set as TRL does, together with the columns of [`RowColumns`] (one number per token)."""
    columns = [column for column in COLUMNS if column in dataset.column_names]
    dataset = dataset.map(
        lambda row: {column: [row[column]] * len(row["input_ids"]) for column in columns},
        desc=f"Adding row numbers to the tokens of the {name} dataset",
    ).select_columns(["input_ids", "labels", *columns])
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, {"desc": f"Packing {name} dataset"})
    return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


class RowCollator(DataCollatorForLanguageModeling):
    """TRL's collator that also batches the columns of [`RowColumns`], each (B, S), 0 where there is padding."""

    @classmethod
    def of(cls, collator: DataCollatorForLanguageModeling) -> "RowCollator":
        return cls(**{option.name: getattr(collator, option.name) for option in fields(collator)})

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        for column, dtype in COLUMNS.items():
            if not all(column in example for example in examples):
                continue
            numbers = [
                torch.as_tensor(example[column], dtype=dtype).expand(len(example["input_ids"])) for example in examples
            ]
            if self.padding_free:
                numbers = [torch.cat(numbers)]
            batch[column] = torch.zeros(batch["input_ids"].shape, dtype=dtype)
            for row, values in enumerate(numbers):
                batch[column][row, : len(values)] = values
        return batch


def sample_numbers(values: torch.Tensor, tokens: SupervisedTokens, width: int) -> torch.Tensor:
    """(B, S) numbers of the tokens, width S-1 of the label mask -> (samples,) the number of each sample."""
    # Prompt learning adds virtual tokens before each row of the mask; a negative padding drops the first token, which
    # is no target.
    padded = torch.nn.functional.pad(values, (width - values.shape[1], 0))
    return padded.flatten()[tokens.position[tokens.lengths.cumsum(0) - tokens.lengths]]


def _column(dataset: Dataset, option: str, column: str | None, name: str) -> np.ndarray:
    if column not in dataset.column_names:
        raise ValueError(
            f"`{option}={column!r}` is not in the {name} dataset, which has {sorted(dataset.column_names)}. Name one "
            "of them, or None."
        )
    return dataset.with_format(None).select_columns([column]).to_pandas()[column].to_numpy()
