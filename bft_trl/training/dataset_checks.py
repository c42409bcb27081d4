"""Data that cannot be trained on: said before TRL's preparation stumbles over it or trains on it in vain."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset

from bft_trl.config import BFTConfig


def has_target(labels: list[int]) -> bool:
    # Position 0 has no prediction.
    return any(label != -100 for label in labels[1:])


def no_supervised_token(name: str, args: BFTConfig) -> str:
    return (
        f"The {name} dataset has no supervised token in any row. Check `completion_only_loss`, `assistant_only_loss`, "
        f"and whether `max_length={args.max_length}` cuts the answers off."
    )


def check_dataset(dataset: Any, args: BFTConfig, formatting_func: Callable | None, name: str) -> None:
    """Raises ValueError for data that TRL's preparation would stumble over, or train on in vain."""
    if not isinstance(dataset, Dataset | IterableDataset):
        return  # TRL refuses other types
    if next(iter(dataset), None) is None:
        raise ValueError(f"The {name} dataset is empty. Check the file, the split and any filter before it.")
    if not isinstance(dataset, Dataset):
        return
    columns = set(dataset.column_names)
    if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        if "labels" in columns and not any(map(has_target, dataset["labels"])):
            raise ValueError(no_supervised_token(name, args))
        return
    formats = [{"prompt", "completion"}, {"messages"}, {"conversations"}, {args.dataset_text_field}, {"input_ids"}]
    if formatting_func is not None or {"input_ids"} <= columns:
        return
    if not any(form <= columns for form in formats):
        raise ValueError(
            f"The {name} dataset has the columns {sorted(columns)}, but needs 'prompt' and 'completion', 'messages', "
            f"'{args.dataset_text_field}' or 'input_ids'. Rename them, or set `dataset_text_field`."
        )
    for column in sorted(columns & {"prompt", "completion", "messages", args.dataset_text_field}):
        for row, value in enumerate(dataset[column]):
            if not _is_text(value):
                raise ValueError(
                    f"The {name} dataset has no text in column '{column}' of row {row}: {value!r:.80}. Fill in or "
                    "drop such rows."
                )


def _is_text(value: Any) -> bool:
    """Whether a value is text or a conversation; only a message that calls a tool may do without content."""
    if isinstance(value, list) and value:
        return all(
            isinstance(message, dict) and (message.get("content") is not None or message.get("tool_calls"))
            for message in value
        )
    return isinstance(value, str)
