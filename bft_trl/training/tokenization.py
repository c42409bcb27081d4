"""Tokenization as `trl.SFTTrainer` does it, without a trainer."""

import copy

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer, get_training_chat_template


def tokenize_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> Dataset:
    """Returns `dataset` with the columns `input_ids` and `labels` that training makes of it.

    Rows are neither cut nor dropped nor shuffled: row i of the result is row i of `dataset`.

    Args:
        dataset: at least one row in one of TRL's formats, or tokenized.
        tokenizer: with the chat template and the EOS token of the training.
        args: `completion_only_loss`, `assistant_only_loss` and `dataset_text_field` decide what is supervised.

    Raises ValueError if `assistant_only_loss=True` and the chat template does not mark the assistant's turns.
    """
    args = copy.copy(args)
    args.max_length, args.shuffle_dataset = None, False
    trainer = SFTTrainer.__new__(SFTTrainer)  # `_prepare_dataset` reads these three attributes only
    trainer._tokenizer = tokenizer
    trainer.chat_template = get_training_chat_template(tokenizer) if args.assistant_only_loss else None
    trainer.completion_only_loss = args.completion_only_loss
    if args.completion_only_loss is None:
        trainer.completion_only_loss = {"prompt", "completion"} <= {*dataset.column_names}
    try:
        return trainer._prepare_dataset(dataset, tokenizer, args, False, None, "given")
    except RuntimeError as error:  # of TRL, for a template without marks of the assistant's turns
        raise ValueError(str(error)) from error
