"""Checks of arguments, model and data. Each raises one error that names the argument, its value and a remedy."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import TrainingArguments
from trl import SFTConfig

from bft_trl.config import BFTConfig
from bft_trl.io import check_folder
from bft_trl.training.rows import COLUMNS, pack_with_columns

logger = get_logger(__name__)


def as_bft_config(args: Any, model: Any) -> BFTConfig:
    """Returns `args` as `SFTTrainer` would: defaults for None, a `BFTConfig` of plain `TrainingArguments`."""
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        return BFTConfig(f"{name.rstrip('/').split('/')[-1]}-BFT")
    if isinstance(args, TrainingArguments) and not isinstance(args, SFTConfig):
        return BFTConfig(**args.to_dict() | {"hub_token": args.hub_token})  # to_dict hides the token
    if not isinstance(args, BFTConfig):
        raise TypeError(f"`args` must be a `BFTConfig`, got `{type(args).__name__}`: replace the class name.")
    return args


def check_arguments(args: BFTConfig, model: Any, compute_loss_func: Any, peft_config: Any, eval_dataset: Any) -> None:
    """Raises ValueError for arguments of the trainer that exclude each other, or an `output_dir` that is a file."""
    check_folder(Path(args.output_dir))
    if compute_loss_func is not None:
        raise ValueError(
            "`compute_loss_func` replaces the loss of `BFTTrainer`. Remove it, or choose the objective with "
            "`BFTConfig(loss_type=...)`."
        )
    if args.anchor_coef:
        check_anchor(args, model, peft_config)
    peft_config = peft_config or getattr(model, "active_peft_config", None)
    if getattr(peft_config, "is_prompt_learning", False) and (args.packing or args.padding_free):
        raise ValueError(
            f"`{type(peft_config).__name__}` puts virtual tokens before each row, which breaks the documents of "
            "packed and padding-free batches. Set `packing=False` and `padding_free=False`, or use LoRA."
        )
    if isinstance(eval_dataset, dict) and args.load_best_model_at_end and args.metric_for_best_model == "eval_nll":
        raise ValueError(
            "`metric_for_best_model='eval_nll'` does not exist with several evaluation sets: choose one of "
            f"{[f'eval_{name}_nll' for name in eval_dataset]}."
        )


def check_anchor(args: BFTConfig, model: Any, peft_config: Any) -> None:
    """Raises ValueError if the model without its adapter is no base model for the anchor."""
    option = f"`anchor_coef={args.anchor_coef}`"
    adapters = getattr(model, "active_adapters", None) if hasattr(model, "disable_adapter") else None
    if peft_config is None and adapters is None:
        raise ValueError(
            f"{option} compares with the base model, which is the model without its adapter. Pass a `peft_config` (a "
            "run with `use_peft=True`), or set it to 0."
        )
    if adapters is not None and len(adapters) > 1:
        raise ValueError(f"{option} needs one active adapter, the model has {list(adapters)}. Activate one.")
    trained = [name for name in getattr(peft_config, "modules_to_save", None) or [] if "head" in name]
    if trained:
        raise ValueError(f"{option} needs a frozen LM head: remove {trained} from `modules_to_save`.")


def check_frozen_base(args: BFTConfig, model: Any) -> None:
    """Raises ValueError if parameters are trained that the model keeps without its adapter."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    own = [name for name in names if model.peft_config.keys().isdisjoint(name.split("."))]
    if own:
        raise ValueError(
            f"`anchor_coef={args.anchor_coef}` compares with the model without its adapter, but {own[0]} of that "
            f"model is trained ({len(own)} of its parameters). Freeze it: `bias='none'`, or `modules_to_save`, which "
            "trains a copy."
        )


def check_trainer(trainer: Any) -> None:
    """Checks what only the constructed trainer knows: its model, and how it is distributed.

    Raises ValueError for parallelism over the sequence, for 4-bit weights that pass no gradient, and for an anchor to
    a base model that is trained.
    """
    keep_gradients(trainer.model)
    if trainer.args.anchor_coef:
        check_frozen_base(trainer.args, trainer.model)
    check_parallelism(trainer.accelerator.parallelism_config)
    streamed = isinstance(trainer.eval_dataset, IterableDataset)
    if trainer.accelerator.num_processes > 1 and trainer.eval_dataset and (trainer.padding_free or streamed):
        logger.warning(
            "On several ranks an evaluation set that is packed, padding-free or streamed may count the rows twice "
            "that fill up the last batch. For exact metrics evaluate on one rank, or unpacked, not streamed."
        )


def check_trainable(model: torch.nn.Module) -> None:
    """Raises ValueError if the model has no trainable parameter."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "The model has no trainable parameter, so nothing would be learned. Pass a `peft_config`, load the "
            "adapter with `PeftModel.from_pretrained(..., is_trainable=True)`, or unfreeze some parameters."
        )


def check_parallelism(config: Any) -> None:
    """Raises ValueError for parallelism over the sequence or inside a layer."""
    if config is not None and (config.sp_enabled or config.cp_enabled or config.tp_enabled):
        raise ValueError(
            "Sequence, context and tensor parallelism are not supported: a sample's confidence window needs all its "
            "tokens on one rank. Use data parallelism (DDP, FSDP or ZeRO) instead of `parallelism_config`."
        )


def keep_gradients(model: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights during evaluation on a CPU with AVX512-BF16.

    The kernel for repacked weights (0.50) passes no gradient to its input: after the first evaluation all layers below
    would stop learning silently.
    """
    for name, module in model.named_modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                f"`model`: the 4-bit weights of {name} have been used for inference on this CPU, and bitsandbytes has "
                "repacked them so that no gradient passes. Load the model anew before training."
            )


def check_dataset(dataset: Any, args: BFTConfig, formatting_func: Callable | None, name: str) -> None:
    """Raises ValueError for an empty data set, for columns in no format of TRL, and for labels without a target.

    It reads at most the rows up to the first one with a supervised token, and nothing of a stream.
    """
    if not isinstance(dataset, Dataset):
        return  # TRL refuses other types
    if not len(dataset):
        raise ValueError(f"The {name} dataset is empty. Check the file, the split and any filter before it.")
    check_supervised(dataset, args, name)
    columns = {*(dataset.column_names or [])}
    prepared = {"input_ids", "image", "images"} & columns or (args.dataset_kwargs or {}).get("skip_prepare_dataset")
    if prepared or formatting_func is not None:
        return
    formats = [{"prompt", "completion"}, {"messages"}, {"conversations"}, {args.dataset_text_field}]
    if not any(form <= columns for form in formats):
        raise ValueError(
            f"The {name} dataset has the columns {sorted(columns)}, but needs 'prompt' and 'completion', 'messages', "
            f"'{args.dataset_text_field}' or 'input_ids'. Rename them, set `dataset_text_field`, or name them with "
            "`--prompt_column` and `--completion_columns` of `bft-trl train`."
        )


def prepare_dataset(
    prepare: Callable, dataset: Any, args: BFTConfig, packing: bool, formatting_func: Callable | None, name: str
) -> Any:
    """Returns `prepare(dataset, args, packing)`, TRL's preparation, with the columns of `RowColumns`.

    Raises ValueError that names the row if the preparation fails on a cell without text, and if no row has a
    supervised token.
    """
    columns = dataset.column_names if isinstance(dataset, Dataset) else []
    first_args, pack_here = args, packing and not COLUMNS.keys().isdisjoint(columns)
    if packing and (pack_here or "seq_lengths" in columns):
        # TRL packs without our columns, and packs packed rows again, each as one document.
        packing, first_args = False, copy.copy(args)
        first_args.max_length, first_args.shuffle_dataset = None, False
    try:
        prepared = prepare(dataset, first_args, packing)
    # What a missing text raises inside TRL, or inside a chat template.
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, TemplateError) as error:
        message = find_missing_text(dataset, args, name) if columns and formatting_func is None else None
        if message is None:
            raise
        raise ValueError(message) from error
    check_supervised(prepared, args, name)
    if columns and not packing and len(prepared) < len(dataset):
        logger.warning(
            "TRL dropped %d of %d rows of the %s dataset: they have no supervised token, as happens when "
            "`max_length=%s` cuts the whole answer off.",
            *(len(dataset) - len(prepared), len(dataset), name, args.max_length),
        )
    return pack_with_columns(prepared, args, name) if pack_here else prepared


def check_supervised(dataset: Any, args: BFTConfig, name: str) -> None:
    """Raises ValueError if no row has a supervised token. It stops at the first row that has one."""
    if isinstance(dataset, Dataset):
        if "labels" not in dataset.column_names or dataset.format["type"] == "custom":
            return
        dataset = dataset.with_format(None).select_columns("labels")
    if not any(has_target(row["labels"]) if "labels" in row else True for row in dataset):
        raise ValueError(
            f"The {name} dataset has no supervised token in any row. Check `completion_only_loss`, "
            f"`assistant_only_loss`, and whether `max_length={args.max_length}` cuts the answers off."
        )


def has_target(labels: Iterable[int]) -> bool:
    """Returns whether a row has a supervised token. Position 0 has no prediction."""
    return any(label != -100 for label in list(labels)[1:])


def find_missing_text(dataset: Dataset, args: BFTConfig, name: str) -> str | None:
    """Returns a message that names the first cell without text in the columns that TRL reads, or None."""
    known = {*dataset.column_names}
    columns = ["prompt", "completion"] if "prompt" in known else ["messages"]
    for column in columns if known.issuperset(columns) else [args.dataset_text_field]:
        for row, value in enumerate(dataset.with_format(None)[column] if column in known else []):
            if not _is_text(value):
                return (
                    f"The {name} dataset has no text in column '{column}' of row {row}: {value!r:.80}. Fill in or "
                    "drop such rows."
                )
    return None


def _is_text(value: Any) -> bool:
    """Returns whether a value is a text or a conversation. A message may have a tool call or reasoning instead."""
    if isinstance(value, list) and value:
        keys = ("content", "tool_calls", "reasoning_content")
        return all(isinstance(turn, dict) and any(turn.get(key) is not None for key in keys) for turn in value)
    return isinstance(value, str)
