"""`bft-trl train`: fine-tunes a causal language model with BFT, SFT or DFT."""

import argparse
import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

# QLoRA as in TRL's examples: the defaults. Keys of a YAML file and flags override them.
RECIPE = {
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    "load_in_4bit": True,
    "learning_rate": 2e-4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_on_start": True,
    "logging_steps": 5,
    "save_total_limit": 2,
    "report_to": "none",
}
# Without `dataset_name`: the gene sets of the package. A window of 256 never acts on answers of about 9 tokens.
GENE_SETS = {"group_size": 4, "max_length": 512}
# Without `model_name_or_path` as well: chosen by experiment, see docs/demo.md; about seven minutes on two cores.
DEMO = {
    "learning_rate": 1e-3,
    "token_weight_power": 0.5,
    "max_steps": 75,
    "eval_steps": 25,
    "save_steps": 25,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "train_sampling_strategy": "group_by_length",
    # On a CPU dropout takes as long as a matrix product.
    "lora_dropout": 0.0,
    # Layers 15 to 29 of 30: a step takes two thirds of the time of a step with all of them.
    "lora_target_modules": [r".*\.(1[5-9]|2\d)\..*_proj"],
}


@dataclass
class TrainArguments:
    """What `bft-trl train` adds to TRL's arguments."""

    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the user turn, for data in no format of TRL."}
    )
    completion_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns that are joined to the assistant turn, separated by blank lines."}
    )
    eval_samples: int = field(
        default=48, metadata={"help": "Rows to evaluate on. Drawn from the training rows if there is no test split."}
    )
    show_samples: int = field(
        default=4, metadata={"help": "Held-out gene sets that the model names before and after training."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the earlier run in `output_dir`."})


def add_train_command(commands: Any) -> None:
    """Adds `train` to the commands. Its arguments go to TRL's parser, which takes seconds to import."""
    # Without a prefix character every argument is positional here; TRL's parser has its own --help.
    train = commands.add_parser("train", help="fine-tune a model", add_help=False, prefix_chars="\0")
    train.add_argument("arguments", nargs="*")
    train.set_defaults(run=_train)


def parse(argv: Sequence[str]) -> tuple[Any, TrainArguments, Any, Any]:
    """Returns TRL's ScriptArguments, [`TrainArguments`], BFTConfig and TRL's ModelConfig.

    Raises ValueError or OSError for options that exclude each other and for a YAML file that cannot be read.
    """
    from trl import ModelConfig, ScriptArguments, TrlParser

    from bft_trl import BFTConfig

    parser = TrlParser(
        (ScriptArguments, TrainArguments, BFTConfig, ModelConfig),
        prog="bft-trl train",
        usage="bft-trl train [--config FILE] [--OPTION VALUE ...]",
        description="Fine-tunes a causal language model with BFT, SFT (--loss_type nll) or DFT (--loss_type dft). "
        "--config names a YAML file of options, which flags override.",
        epilog="Without --dataset_name the gene sets of the package are the data, and the defaults are "
        f"{_flags(GENE_SETS)}. Without --model_name_or_path as well, the command is a demo with "
        f"SmolLM2-135M-Instruct, and the defaults are {_flags(GENE_SETS | DEMO)}.",
        allow_abbrev=False,
    )
    file, argv = _config_file(argv)
    config = _read_config(file) if file else {}
    defaults = {"output_dir": "outputs/LOSS_TYPE[-DATASET][-MODEL]"} | _device_defaults() | RECIPE
    unknown = parser.set_defaults_with_config(**defaults | config)
    given, others = parser.parse_known_args(argv)
    if unknown or others:
        reject(parser, [*unknown, *others], vars(given))
    if given.dataset_name is None:
        defaults |= GENE_SETS if given.model_name_or_path else GENE_SETS | DEMO | {"load_in_4bit": not given.use_cpu}
    names = [given.loss_type, *filter(None, (given.dataset_name, given.model_name_or_path))]
    defaults["output_dir"] = f"outputs/{'-'.join(_stem(name) for name in names)}"
    parser.set_defaults_with_config(**defaults | config)
    return parser.parse_args_and_config(argv)


def reject(parser: argparse.ArgumentParser, unknown: Sequence[str], known: Iterable[str]) -> NoReturn:
    """Exits with an error for unknown arguments that names the closest flag."""
    flag = next((word for word in unknown if word.startswith("-")), "").split("=")[0]
    close = difflib.get_close_matches(flag, [f"--{name}" for name in known], 1)
    parser.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {close[0]}?" if close else ""))


def _config_file(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the value of `--config`, and the other arguments."""
    parser = argparse.ArgumentParser(prog="bft-trl train", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    given, others = parser.parse_known_args(argv)
    return given.config, others


def _read_config(file: str) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"`config={file!r}` cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"`config={file!r}` must contain lines `option: value`.")
    return {str(name).replace("-", "_"): value for name, value in config.items()}


def _flags(settings: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in settings.items())


def _stem(name: str) -> str:
    """Returns the last part of a Hub id or path, without the suffix of a file."""
    return Path(name).stem if Path(name).is_file() else Path(name).name


def _device_defaults() -> dict[str, Any]:
    """Returns number formats of the device; SFTConfig checks them when it is built."""
    import torch

    if not torch.cuda.is_available():
        return {"use_cpu": True, "bf16": False, "dtype": "float32", "dataloader_pin_memory": False}
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return {"bf16": True, "dtype": "bfloat16"}
    return {"bf16": False, "fp16": True, "dtype": "float16"}  # T4 and older


def _train(args: argparse.Namespace) -> int:
    # TRL's parser knows a negation only of options that are True by default.
    argv = [f"--{word[5:]}=False" if word.startswith("--no-") else word for word in args.arguments]
    script, options, training, model = parse(argv)
    from bft_trl.data.loading import load_train_and_eval
    from bft_trl.runs import check_run, is_finished, train

    checkpoint = check_run(training, model, overwrite_output_dir=options.overwrite_output_dir)
    if checkpoint and is_finished(training, checkpoint):
        logger.info("Nothing to resume: %s has all %d steps. Raise --max_steps.", checkpoint, training.max_steps)
        return 0
    train_dataset, eval_dataset = load_train_and_eval(
        script.dataset_name,
        config=script.dataset_config,
        train_split=script.dataset_train_split,
        test_split=script.dataset_test_split,
        eval_samples=options.eval_samples,
        seed=training.seed,
        streaming=script.dataset_streaming,
        prompt_column=options.prompt_column,
        completion_columns=options.completion_columns,
    )
    interrupted = train(
        training,
        model,
        train_dataset,
        eval_dataset,
        dataset_name=script.dataset_name,
        show_samples=options.show_samples,
        checkpoint=checkpoint,
        overwrite_output_dir=options.overwrite_output_dir,
    )
    if interrupted:
        logger.info("Interrupted. Repeat the command with `--resume_from_checkpoint True`.")
    return 130 if interrupted else 0
