"""One training run: checks before the model is loaded, training, answers before and after it, and the report."""

import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoConfig, TrainerCallback
from trl import ModelConfig, get_peft_config, get_quantization_config

from bft_trl.comparison.curves import history_table, plot_history
from bft_trl.config import BFTConfig
from bft_trl.data.gene_sets import load_gene_sets
from bft_trl.demo import answer_prompts, name_gene_sets, report_names, write_names
from bft_trl.io import checkpoints, lock, read_json_object, write_text
from bft_trl.models import HUB_ID, INSTALL, demo_model
from bft_trl.prompts import parse_process
from bft_trl.trainer import BFTTrainer
from bft_trl.training.checkpoints import resolve_checkpoint
from bft_trl.training.model_card import CARD_NAMES, add_results
from bft_trl.training.validation import check_dataset

logger = logging.getLogger(__name__)


class StopAtInterrupt(TrainerCallback):
    """Ends the run after the current step, with a checkpoint, at SIGINT or SIGTERM; at once at a second signal."""

    def __init__(self) -> None:
        self.interrupted = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.previous = {name: signal.signal(name, self._stop) for name in (signal.SIGINT, signal.SIGTERM)}

    def _stop(self, number: int, frame: Any) -> None:
        self.interrupted = True
        logger.info("Stopping after this step with a checkpoint. Interrupt again to stop at once.")
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


def check_run(args: BFTConfig, model_args: ModelConfig, *, overwrite_output_dir: bool = False) -> str | None:
    """Checks options and `output_dir` before data and model are loaded.

    Returns the checkpoint to resume from, or None. Raises ValueError for a checkpoint that is incomplete or of another
    objective, and for a run that would start in the folder of an earlier one without `overwrite_output_dir`;
    ModuleNotFoundError without bitsandbytes for 4-bit weights.
    """
    if model_args.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        remedy = "pip install bitsandbytes, or --load_in_4bit False."
        raise ModuleNotFoundError(f"`load_in_4bit=True` needs bitsandbytes: {remedy}")
    resume = args.resume_from_checkpoint
    if resume := {"true": True, "false": None}.get(str(resume).lower(), resume):
        return resolve_checkpoint(resume, Path(args.output_dir), args.objective())
    earlier = [*checkpoints(Path(args.output_dir)), *Path(args.output_dir).glob("adapter_config.json")]
    if earlier and not overwrite_output_dir:
        raise ValueError(
            f"`output_dir={args.output_dir!r}` has an earlier run ({earlier[0].name}). Continue it with "
            "`--resume_from_checkpoint True`, choose another folder, or replace it with `--overwrite_output_dir`."
        )
    return None


def remove_checkpoints(args: BFTConfig) -> None:
    """Deletes the checkpoints of an earlier run: a later resume would take the one of the highest step."""
    for folder in checkpoints(Path(args.output_dir)) if args.should_save else []:
        shutil.rmtree(folder)


def is_finished(args: BFTConfig, checkpoint: str) -> bool:
    """Returns whether `checkpoint` has all `max_steps` and the report of the run is written."""
    state = read_json_object(Path(checkpoint, "trainer_state.json"))
    return 0 < args.max_steps <= state["global_step"] and Path(args.output_dir, "summary.json").is_file()


def train(
    args: BFTConfig,
    model_args: ModelConfig,
    train_dataset: Any,
    eval_dataset: Any = None,
    *,
    dataset_name: str | None = None,
    show_samples: int = 4,
    checkpoint: str | None = None,
    overwrite_output_dir: bool = False,
) -> bool:
    """Trains a model and writes adapter, model card, metrics.csv, training.png and summary.json to `output_dir`.

    Args:
        args: output folder and training.
        model_args: model, quantization and LoRA; without a model that of [`demo_model`].
        train_dataset, eval_dataset: rows in one of TRL's formats.
        dataset_name: name in the report; None means the gene sets of the package.
        show_samples: number of held-out gene sets that the model names before and after training.
        checkpoint: result of [`check_run`].
        overwrite_output_dir: delete the checkpoints of an earlier run.

    Returns whether a signal ended the run. Raises ValueError or OSError, before the model is loaded, for a model that
    is not there and for data in no format of TRL.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("training.png needs matplotlib: pip install matplotlib")
    check_dataset(train_dataset, args, None, "train")
    source = model_args.model_name_or_path
    if source is None:
        with args.main_process_first():  # the first call converts the model
            model_args.model_name_or_path, source = demo_model()
    check_model(model_args, args)
    interrupt = StopAtInterrupt()
    main_process = PartialState().is_main_process
    with lock(Path(args.output_dir)) if main_process else nullcontext():
        trainer = build_trainer(args, model_args, train_dataset, eval_dataset, interrupt)
        if main_process:
            _log_plan(args, train_dataset)
        prompts, references = _gene_sets(eval_dataset, show_samples)
        before = answer_prompts(trainer, prompts)
        test = load_gene_sets("test", described=True) if dataset_name is None else None
        named = [name_gene_sets(trainer, test)]
        if overwrite_output_dir and not checkpoint:
            remove_checkpoints(args)
        seconds = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
        trainer.save_model()
        trainer.create_model_card(model_name=Path(args.output_dir).name, dataset_name=dataset_name)
        try:
            named.append(name_gene_sets(trainer, None if interrupt.interrupted else test))
            if main_process:
                answers = {"reference": references, "before": before, "after": answer_prompts(trainer, prompts)}
                summary = summarize(trainer, source, dataset_name, seconds, answers)
                write_report(trainer, summary | {"interrupted": interrupt.interrupted})
                if named[-1].answers:
                    report, folder = report_names(test, *named), Path(args.output_dir)
                    logger.info("\n%s", write_names(report, trainer.state.log_history, folder))
        except KeyboardInterrupt:
            logger.info("Stopped after the training, without a report. The adapter is in %s.", args.output_dir)
            return True
    return interrupt.interrupted


def check_model(model_args: ModelConfig, args: BFTConfig) -> None:
    """Raises OSError if there is no configuration of the model."""
    name = model_args.model_name_or_path
    try:
        AutoConfig.from_pretrained(name, revision=model_args.model_revision, trust_remote_code=args.trust_remote_code)
    except OSError as error:
        reason, *_ = str(error).splitlines()
        hint = f" The demo's model needs no network after: {INSTALL}" if name == HUB_ID else ""
        raise OSError(f"`model_name_or_path={name!r}` cannot be loaded. {reason}{hint}") from error


def build_trainer(
    args: BFTConfig, model_args: ModelConfig, train_dataset: Any, eval_dataset: Any, callback: TrainerCallback
) -> BFTTrainer:
    """Returns the trainer of a model that is loaded with the quantization and the LoRA of `model_args`."""
    if eval_dataset is None:
        args.eval_strategy, args.eval_on_start = "no", False
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "trust_remote_code": args.trust_remote_code,
    } | (args.model_init_kwargs or {})
    target = model_args.lora_target_modules
    if isinstance(target, str) and target.isidentifier():
        # ModelConfig turns a list of one name into a pattern that would have to match the module's full name.
        model_args.lora_target_modules = [target]
    trainer = BFTTrainer(
        model_args.model_name_or_path,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[callback],
    )
    if args.use_cpu:
        use_cpu_well(trainer)
    return trainer


def use_cpu_well(trainer: BFTTrainer) -> None:
    """Sets all CPU threads and float32 adapters: `accelerate launch` sets one thread, TRL casts to bfloat16."""
    if trainer.args.world_size == 1:
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
        torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count() or 1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _log_plan(args: BFTConfig, train_dataset: Any) -> None:
    if args.max_steps > 0 and isinstance(train_dataset, Dataset):
        rows = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        message = "%d steps of %d rows: %.2f epochs of %d training rows."
        logger.info(message, args.max_steps, rows // args.max_steps, rows / len(train_dataset), len(train_dataset))
    note = "" if args.loss_type == "nll" else " `loss` is weighted and cannot be compared between objectives."
    logger.info("nll and eval_nll: lower is better.%s", note)


def _gene_sets(eval_dataset: Any, count: int) -> tuple[list[Any], list[str]]:
    """Returns prompts and answers of the first rows, of those whose answer names a process."""
    if not isinstance(eval_dataset, Dataset) or "completion" not in eval_dataset.column_names:
        return [], []
    rows = eval_dataset.select(range(min(count, len(eval_dataset))))
    texts = [text if isinstance(text, str) else text[0]["content"] for text in rows["completion"]]
    named = [index for index, text in enumerate(texts) if parse_process(text)]
    return [rows[index]["prompt"] for index in named], [texts[index] for index in named]


def summarize(
    trainer: BFTTrainer, model: str, dataset_name: str | None, seconds: float, answers: dict[str, list[str]]
) -> dict[str, Any]:
    """Returns the content of summary.json.

    `model` says where the base model comes from, `seconds` is the time of training with its evaluations, and `answers`
    are the "reference", "before" and "after" of the held-out gene sets.
    """
    history = [entry for entry in trainer.state.log_history if "eval_nll" in entry]
    trained = [entry for entry in history if entry["step"] > 0]
    # With `load_best_model_at_end` the saved adapter is the one of the lowest nll, not the last.
    best = trainer.args.load_best_model_at_end and trainer.args.metric_for_best_model in ("nll", "eval_nll")
    kept = min(trained, key=lambda entry: entry["eval_nll"]) if best and trained else (trained or [{}])[-1]
    return {
        "model": model,
        "dataset": dataset_name or "bft_trl gene sets",
        "objective": trainer.args.objective(),
        "steps": trainer.state.global_step,
        "kept_step": kept.get("step", trainer.state.global_step),
        "eval_nll_before": history[0]["eval_nll"] if history else None,
        "eval_nll_after": kept.get("eval_nll"),
        "seconds": round(seconds, 1),
        "peak_memory": {name: round(value, 2) for name, value in peak_memory().items()},
        "names": [
            dict(zip(answers, map(_process_name, row), strict=True)) for row in zip(*answers.values(), strict=False)
        ],
    }


def _process_name(answer: str) -> str:
    lines = answer.strip().splitlines()
    return parse_process(answer) or f"(no name: {lines[0][:60] if lines else 'empty answer'})"


def peak_memory() -> dict[str, float]:
    """Returns the peak memory of this process so far, in GiB; "host_gib" is missing on Windows."""
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes on macOS, in KiB elsewhere
        peak["host_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak["cuda_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peak


def write_report(trainer: BFTTrainer, summary: dict[str, Any]) -> None:
    """Writes metrics.csv, training.png and summary.json, and adds the results to the model card; logs them."""
    folder = Path(trainer.args.output_dir)
    table = history_table(trainer.state.log_history)
    write_text(folder / "metrics.csv", table.to_csv(index=False))
    plot_history(table, folder / "training.png", title=f"{CARD_NAMES[trainer.args.loss_type]} on {summary['dataset']}")
    write_text(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    results = add_results(folder, summary)
    logger.info("\n%s\n\nAdapter, model card, metrics.csv, training.png, summary.json: %s", results, folder)
