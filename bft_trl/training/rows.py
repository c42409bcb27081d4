"""Which row of the data each sample came from, through TRL's preparation, packing and batching."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from trl import pack_dataset

from bft_trl.config import BFTConfig

logger = get_logger(__name__)

# The column that carries a row's number: one integer a row, and under packing one a token, as TRL packs lists alone.
ROW = "_bft_row"
# Each group is three curves; more are no picture.
MAX_GROUPS = 50


@dataclass(kw_only=True)
class DataRows:
    """What is known of the rows of all data sets of a run; a row's number is its place in these lists."""

    group_column: str | None = None
    weight_column: str | None = None
    ids: list[str] = field(default_factory=list)
    sources: list[str | None] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)  # the names that occur, in order of appearance
    group: list[int] = field(default_factory=list)  # place in `groups`, -1 for none
    weight: list[float] = field(default_factory=list)
    weighted: bool = False  # whether any counts: without, none has to be looked up in a step

    def mark(self, dataset: Dataset, name: str, *, training: bool) -> Dataset:
        """The data with its row numbers in column `ROW`, without the rows of weight 0.

        Args:
            dataset: as the user gave it.
            name: what the messages call it, such as "train".
            training: whether it is trained on: there the weight column counts, and a group column must be.

        Raises ValueError for a missing group column, too many groups, and weights that are no weights.
        """
        columns, first = dataset.column_names, len(self.ids)
        formatted, dataset = dataset, dataset.with_format(None)  # plain values, whatever the user asked for
        self.ids += [str(value) for value in (dataset["id"] if "id" in columns else range(len(dataset)))]
        groups = self._groups(dataset, name, training=training)
        source = self.group_column if self.group_column in columns else "source"
        self.sources += [
            None if value is None else str(value)
            for value in (dataset[source] if source in columns else [None] * len(dataset))
        ]
        self.group += groups
        weights = [1.0] * len(dataset)
        if training and self.weight_column in columns:
            weights = self._weights(dataset, name)
            self.weighted = True
            logger.warning(
                "Column %r of the %s dataset multiplies into the sample weights; `weight_column=None` ignores it.",
                *(self.weight_column, name),
            )
        self.weight += weights
        dataset = formatted.add_column(ROW, list(range(first, len(self.ids))))
        kept = [place for place, weight in enumerate(weights) if weight > 0]
        if len(kept) < len(weights):
            logger.warning(
                "Dropped %d of %d rows of the %s dataset: `weight_column=%r` is 0 there.",
                *(len(weights) - len(kept), len(weights), name, self.weight_column),
            )
            dataset = dataset.select(kept)
        return dataset

    def weights_of(self, rows: torch.Tensor) -> torch.Tensor:
        """(B,) row numbers -> (B,) float32 weights on the same device."""
        return torch.tensor([self.weight[row] for row in rows.tolist()], device=rows.device)

    def groups_of(self, rows: torch.Tensor) -> torch.Tensor:
        """(B,) row numbers -> (B,) places in `groups`, -1 for none, on the CPU."""
        return torch.tensor([self.group[row] for row in rows.tolist()], dtype=torch.long)

    def named(self, rows: Sequence[int], *, most: int = 10) -> str:
        """The ids of some rows, for a message."""
        return ", ".join(self.ids[row] for row in rows[:most]) + (", ..." if len(rows) > most else "")

    def _groups(self, dataset: Dataset, name: str, *, training: bool) -> list[int]:
        known = self.group_column in dataset.column_names
        if self.group_column is None or not (known or training):
            return [-1] * len(dataset)
        if not known:
            raise ValueError(
                f"`group_column={self.group_column!r}` is not in the {name} dataset, which has "
                f"{sorted(dataset.column_names)}. Name one of them, or None."
            )
        values = [str(value) if value is not None else "none" for value in dataset[self.group_column]]
        self.groups += [value for value in dict.fromkeys(values) if value not in self.groups]
        if len(self.groups) > MAX_GROUPS:
            raise ValueError(
                f"`group_column={self.group_column!r}` has {len(self.groups)} different values, such as "
                f"{self.groups[0]!r:.40}: at most {MAX_GROUPS} groups are logged. Name a column of few values."
            )
        place = {value: position for position, value in enumerate(self.groups)}
        return [place[value] for value in values]

    def _weights(self, dataset: Dataset, name: str) -> list[float]:
        values = dataset[self.weight_column]
        for row, value in enumerate(values):
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise ValueError(
                    f"`weight_column={self.weight_column!r}`: row {row} of the {name} dataset has {value!r:.40}, "
                    "which is no weight: a number of 0 (drops the row) or more. Mend it, or set `weight_column=None`."
                )
        if not any(values):
            raise ValueError(f"`weight_column={self.weight_column!r}` is 0 in every row of the {name} dataset.")
        return [float(value) for value in values]


@dataclass
class RowCollator:
    """TRL's collator, with the row number of each token beside the batch's input_ids, (B, S), -1 for padding."""

    collator: Any

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if all(ROW in example for example in examples):
            rows = [_by_token(example) for example in examples]
            if self.collator.padding_free:
                rows = [torch.cat(rows)]
            batch[ROW] = torch.full_like(batch["input_ids"], -1)
            for place, numbers in enumerate(rows):
                batch[ROW][place, : len(numbers)] = numbers
        return batch


def known_rows(args: BFTConfig, train_dataset: Any, data_collator: Any) -> DataRows | None:
    """Where samples can be told apart, a place for what is known of the rows of the data; else None.

    Raises ValueError where a column is asked for that needs it.
    """
    obstacle = None
    if data_collator is not None:
        obstacle = "a `data_collator` of your own does not carry row numbers"
    elif train_dataset is not None and not isinstance(train_dataset, Dataset):
        obstacle = "the rows of a streamed dataset have no numbers"
    if obstacle is None:
        return DataRows(group_column=args.group_column, weight_column=args.weight_column)
    columns = getattr(train_dataset, "column_names", None) or []
    for option in ("group_column", "weight_column"):
        column = getattr(args, option)
        if column is not None and (column in columns or option == "group_column"):
            raise ValueError(f"`{option}={column!r}` cannot be honoured: {obstacle}. Set `{option}=None`.")
    if args.record_samples and train_dataset is not None:
        logger.warning("Samples are not recorded (`record_samples=True`): %s.", obstacle)
    return None


def packed(dataset: Dataset, args: BFTConfig, name: str) -> Dataset:
    """As the end of TRL's preparation, which would leave the row numbers behind."""
    columns = ["input_ids", "labels"]
    if ROW in dataset.column_names:
        # As lists, packing cuts and joins the numbers like the tokens.
        dataset = dataset.map(lambda row: {ROW: [row[ROW]] * len(row["input_ids"])}, desc="Marking rows for packing")
        columns.append(ROW)
    dataset = dataset.select_columns(columns)
    shuffle = (lambda rows: rows.shuffle(seed=args.seed)) if args.shuffle_dataset else lambda rows: rows
    description = {"desc": f"Packing {name} dataset"}
    return shuffle(pack_dataset(shuffle(dataset), args.max_length, args.packing_strategy, description))


def _by_token(example: dict[str, Any]) -> torch.Tensor:
    row = torch.as_tensor(example[ROW])
    return row.expand(len(example["input_ids"])) if row.dim() == 0 else row
