"""Fine-tune a causal language model with BFT by QLoRA, on one GPU or on a laptop's CPU.

With no argument: SmolLM2-135M on the gene sets that ship with bft_trl, about ten minutes on two cores.

    accelerate launch examples/train.py

Your own model and data (Hub id, folder, or a JSON, JSON lines, parquet or CSV file in one of TRL's formats):

    accelerate launch examples/train.py --model_name_or_path Qwen/Qwen3-1.7B --dataset_name data.jsonl

A recipe for a card, a baseline, and going on where a run stopped:

    accelerate launch examples/train.py --config examples/configs/qlora_16gb.yaml
    accelerate launch examples/train.py --loss_type nll
    accelerate launch examples/train.py --resume_from_checkpoint True

More than one GPU (DDP; beside it are FSDP2, which needs --bnb_4bit_quant_storage bfloat16, and DeepSpeed):

    accelerate launch --config_file examples/accelerate_configs/multi_gpu.yaml examples/train.py

Every option of BFTConfig, SFTConfig and TRL's ModelConfig is a flag and a key of the YAML file (--help lists them).
"""

import importlib.util
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from bft_trl import BFTConfig, BFTTrainer, load_gene_sets, markdown
from bft_trl.data.loading import as_conversations, load_split, load_splits
from bft_trl.io import write_text
from bft_trl.models import INSTALL, demo_model
from bft_trl.prompts import parse_process
from bft_trl.training.checkpoints import check_checkpoint, last_complete_checkpoint
from bft_trl.training.curves import history_table, plot_history

# QLoRA as in TRL's examples. Without --config these are the defaults; a flag overrides any of them.
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
# The shipped gene sets: answers of about 90 tokens, so that a window of 256 would never act.
GENE_SETS = {"group_size": 32, "max_length": 512}
# The demo on top of that: a fixed amount of work that fits a quarter of an hour on two cores.
DEMO = {
    "bft_version": "v1",
    # With more than this, v1 and v3 soon sharpen what the model knows at the cost of the rest, and the nll rises.
    "learning_rate": 1e-4,
    "max_steps": 24,
    "logging_steps": 4,
    "eval_steps": 8,
    "save_steps": 8,
    "load_best_model_at_end": True,
    "gradient_checkpointing": False,
    # Small batches pad less, and on a CPU dropout costs as much as a matrix product.
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "per_device_eval_batch_size": 2,
    "lora_dropout": 0.0,
}


@dataclass
class ExampleArguments(ScriptArguments):
    """What this script adds to TRL's own arguments."""

    prompt_column: str | None = field(
        default=None,
        metadata={"help": "Column to use as the user turn, for data that is not in one of TRL's formats."},
    )
    completion_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns to join, a blank line between, as the assistant turn."}
    )
    eval_samples: int = field(
        default=48, metadata={"help": "Rows to evaluate on; held out of the training data where it has no test split."}
    )
    show_samples: int = field(
        default=4, metadata={"help": "Held-out prompts that the model answers before and after training."}
    )


class StopAtInterrupt(TrainerCallback):
    """Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint; a second one ends it at once."""

    def __init__(self) -> None:
        self.interrupted = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.previous = {name: signal.signal(name, self._handle) for name in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: Any) -> None:
        self.interrupted = True
        print("\nStopping after this step and writing a checkpoint; interrupt again to stop at once.", flush=True)
        self._restore()

    def _restore(self) -> None:
        for name, handler in self.previous.items():
            signal.signal(name, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._restore()


def parse(argv: list[str] | None = None) -> tuple[ExampleArguments, BFTConfig, ModelConfig]:
    """Flags over the YAML file, or over the demo's settings where they apply."""
    argv = sys.argv[1:] if argv is None else argv
    parser = TrlParser((ExampleArguments, BFTConfig, ModelConfig))
    given = {name.split("=")[0].removeprefix("--").replace("-", "_") for name in argv if name.startswith("--")}
    defaults: dict[str, Any] = device_settings()
    if "config" in given and not Path(_value(argv, "config")).is_file():
        raise FileNotFoundError(f"`config={_value(argv, 'config')!r}`: no such file.")
    if "config" not in given:
        defaults |= RECIPE
        if "dataset_name" not in given:
            defaults |= GENE_SETS
            if "model_name_or_path" not in given:
                defaults |= DEMO
    if "output_dir" not in given and "config" not in given:
        # A run of its own for each objective, data and model: none writes over another.
        parts = [_value(argv, "loss_type") or "bft"]
        parts += [Path(_value(argv, name)).stem for name in ("dataset_name", "model_name_or_path") if name in given]
        defaults["output_dir"] = f"outputs/{'-'.join(parts)}"
    parser.set_defaults_with_config(**defaults)
    return parser.parse_args_and_config(argv)


def device_settings() -> dict[str, Any]:
    """Number formats of the device at hand; SFTConfig wants them settled before it is built."""
    if not torch.cuda.is_available():
        return {"use_cpu": True, "bf16": False, "dtype": "float32", "dataloader_pin_memory": False}
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return {"bf16": True, "dtype": "bfloat16"}
    return {"bf16": False, "fp16": True, "dtype": "float16"}  # T4 and older


def load_data(script: ExampleArguments, seed: int) -> tuple[Any, Any]:
    """Training and evaluation rows in one of TRL's formats."""
    name = script.dataset_name
    if script.eval_samples < 1:
        raise ValueError(f"`eval_samples={script.eval_samples}` must be 1 or more; --eval_strategy no does without.")
    if name is None:
        train, test = load_gene_sets("train"), load_gene_sets("eval")
    else:
        splits = load_splits(name, config=script.dataset_config, streaming=script.dataset_streaming)
        train = load_split(splits, script.dataset_train_split, name, argument="dataset_train_split")
        test = splits.get(script.dataset_test_split)
        if test is None and isinstance(train, Dataset) and len(train) > script.eval_samples:
            held_out = train.train_test_split(test_size=script.eval_samples, seed=seed)
            train, test = held_out["train"], held_out["test"]
    if isinstance(test, Dataset):
        test = test.select(range(min(script.eval_samples, len(test))))
    if script.prompt_column or script.completion_columns:
        train, test = (
            as_conversations(rows, prompt_column=script.prompt_column, completion_columns=script.completion_columns)
            if rows is not None
            else None
            for rows in (train, test)
        )
    return train, test


@torch.no_grad()
def answers(trainer: BFTTrainer, prompts: list[Any], *, max_new_tokens: int = 40) -> list[str]:
    """Greedy answers to conversational or plain prompts, in one batch."""
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
    texts = [
        prompt
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        for prompt in prompts
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    was_training, cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True  # off since SFTTrainer switched gradient checkpointing on
    with torch.autocast(model.device.type, enabled=False):
        output = model.generate(**batch.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
    model.config.use_cache = cache
    model.train(was_training)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def use_cpu_well(trainer: BFTTrainer) -> None:
    """Undoes two defaults that are meant for GPUs and cost a CPU run more than half its speed."""
    if trainer.args.world_size == 1:
        torch.set_num_threads(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    # `accelerate launch` allows one thread, and SFTTrainer casts QLoRA adapters to bfloat16.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def short(answer: str) -> str:
    """The process that an answer names, or its first line in brackets."""
    lines = answer.strip().splitlines()
    return parse_process(answer) or f"(no name: {lines[0][:60] if lines else 'empty answer'})"


def peak_memory() -> dict[str, float]:
    """Peak memory of this process so far, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    peak = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available():
        peak["cuda_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peak


def main(argv: list[str] | None = None) -> None:
    script, args, model_args = parse(argv)
    if model_args.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("`load_in_4bit=True` needs bitsandbytes: pip install bitsandbytes, or --load_in_4bit False.")
    resume: str | bool | None = args.resume_from_checkpoint or ""
    resume = {"true": True, "false": None, "": None}.get(str(resume).lower(), resume)
    if resume:  # the trainer looks again, but this is before anything is loaded
        if resume is True:
            folder = last_complete_checkpoint(Path(args.output_dir))[0]
        else:
            folder = str(resume)
            check_checkpoint(Path(folder))
        step = json.loads(Path(folder, "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        if (
            0 < args.max_steps <= step and Path(args.output_dir, "summary.json").is_file()
        ):  # it is written last but one
            print(f"Nothing to resume: {folder} has all {args.max_steps} steps. For more, raise --max_steps.")
            return
    train, test = load_data(script, args.seed)
    source = model_args.model_name_or_path
    if source is None:
        model_args.model_name_or_path, source = demo_model()
    if test is None:
        args.eval_strategy, args.eval_on_start = "no", False
    if args.model_init_kwargs is None:
        args.model_init_kwargs = {
            "revision": model_args.model_revision,
            "attn_implementation": model_args.attn_implementation,
            "dtype": model_args.dtype,
        }
    target = model_args.lora_target_modules
    if isinstance(target, str) and target.isidentifier():
        # Of a list of one name ModelConfig makes a pattern, which would have to match the module's full name.
        model_args.lora_target_modules = [target]
    interrupt = StopAtInterrupt()
    try:
        trainer = BFTTrainer(
            model_args.model_name_or_path,
            args=args,
            train_dataset=train,
            eval_dataset=test,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
            callbacks=[interrupt],
        )
    except OSError as error:
        hint = f"; the demo's model comes without a network by: {INSTALL}" if script.dataset_name is None else ""
        raise OSError(
            f"`model_name_or_path={model_args.model_name_or_path!r}` cannot be loaded{hint}.\n{error}"
        ) from error

    if args.use_cpu:
        use_cpu_well(trainer)
    if args.max_steps > 0 and isinstance(train, Dataset):
        rows = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        share = f"{rows / len(train):.0%}" if rows <= len(train) else f"{rows / len(train):.1f} times all"
        print(f"{args.max_steps} steps see {rows} rows, {share} of the {len(train)} training rows.")
    print("Watch nll and eval_nll: lower is better. `loss` is weighted, its level says nothing across objectives.")
    # A sharded model generates on all ranks or not at all: there the samples are left out.
    whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
    shown = (
        list(test.select(range(min(script.show_samples, len(test))))) if isinstance(test, Dataset) and whole else []
    )
    shown = [row for row in shown if "prompt" in row and parse_process(_text(row["completion"]))]  # gene sets
    prompts = [row["prompt"] for row in shown]
    before = answers(trainer, prompts) if prompts else []

    start = time.monotonic()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.monotonic() - start

    trainer.save_model()
    trainer.create_model_card(model_name=Path(args.output_dir).name, dataset_name=script.dataset_name)
    if trainer.is_world_process_zero():
        after = answers(trainer, prompts) if prompts else []
        report(
            trainer,
            script,
            source,
            seconds,
            [
                {"reference": short(_text(row["completion"])), "before": short(old), "after": short(new)}
                for row, old, new in zip(shown, before, after, strict=True)
            ]
            if prompts
            else [],
        )
        if interrupt.interrupted:
            print(f"Interrupted. Go on with --resume_from_checkpoint True --output_dir {args.output_dir}")


def report(
    trainer: BFTTrainer, script: ExampleArguments, source: str, seconds: float, names: list[dict[str, str]]
) -> None:
    """Writes metrics.csv, training.png, summary.json and the results into the model card; shows them."""
    out = Path(trainer.args.output_dir)
    table = history_table(trainer.state.log_history)
    write_text(out / "metrics.csv", table.to_csv(index=False))
    plot_history(
        table, out / "training.png", title=f"{trainer._name} on {script.dataset_name or 'the shipped gene sets'}"
    )
    held_out = table[["step", "eval_nll"]].dropna() if "eval_nll" in table else table.iloc[:0].assign(eval_nll=[])
    # With load_best_model_at_end the adapter that is saved is the one of the lowest nll, not the last.
    best = trainer.args.load_best_model_at_end and trainer.args.metric_for_best_model in ("nll", "eval_nll")
    trained = held_out[held_out["step"] > 0]
    kept = trained.sort_values("eval_nll").head(1) if best else trained.tail(1)
    before, after = (rows["eval_nll"].iloc[0] if len(rows) else None for rows in (held_out, kept))
    peak = peak_memory()
    summary = {
        "model": source,
        "dataset": script.dataset_name or "bft_trl gene sets",
        "objective": trainer.args.objective(),
        "steps": trainer.state.global_step,
        "kept_step": int(kept["step"].iloc[0]) if len(kept) else trainer.state.global_step,
        "eval_nll_before": before,
        "eval_nll_after": after,
        "seconds": round(seconds, 1),
        "peak_memory": {name: round(value, 2) for name, value in peak.items()},
        "names": names,
    }
    write_text(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    lines = [f"Base model: {markdown.text(source)}."]
    if after is not None:
        lines.append(
            f"Held-out nll: {before:.3f} before, {after:.3f} with the adapter that is kept, of step "
            f"{summary['kept_step']} of {summary['steps']}."
        )
    memory = " and ".join(f"{value:.1f} GiB ({name.removesuffix('_gib')})" for name, value in peak.items())
    lines.append(f"Training and its evaluations took {seconds / 60:.1f} minutes; peak memory {memory}.")
    if names:
        lines += ["", "Names for held-out gene sets:", "", "| reference | before | after |", "|---|---|---|"]
        lines += [f"| {' | '.join(markdown.text(value) for value in row.values())} |" for row in names]
    card = out / "README.md"
    write_text(
        card,
        card.read_text(encoding="utf-8") + "\n## This run\n\n" + "\n".join(lines) + "\n\n![curves](training.png)\n",
    )
    print(
        "\n" + "\n".join(lines) + f"\n\nAdapter, model card, metrics.csv, training.png and summary.json are in {out}"
    )


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def _value(argv: list[str], name: str) -> str:
    for position, item in enumerate(argv):
        if item.startswith(f"--{name}="):
            return item.split("=", 1)[1]
        if item == f"--{name}":
            return argv[position + 1] if position + 1 < len(argv) else ""
    return ""


if __name__ == "__main__":
    main()
