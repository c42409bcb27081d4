"""Whole training steps of SmolLM2-135M with LoRA: BFT beside TRL and the formula on full logits.

    python benchmarks/step.py            # about half an hour on two cores; writes step.csv and the plot
    python benchmarks/step.py --plot     # the plot and the tables from step.csv

float32, LoRA r 16 on all linear layers, no checkpointing of activations. `body` is the same step without any LM head:
no exact head can go below. The last part trains padded (8 rows) and packed (2 x 512) on the shipped gene sets, whose
lengths are much alike, and on samples whose lengths differ (log-normal, median 60, sigma 0.8). On a GPU: bfloat16,
two models with random weights, 8 x 1,024 tokens; padded 32 rows, packed 16 x 512 by each attention that is there.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import torch
import trl.trainer.utils
from datasets import Dataset
from isolated import add_options, answer, measure_all, medians, now, parse, peak, reset_peak
from peft import LoraConfig
from shapes import random_model, tokenizer
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from bft_trl import BFTConfig, BFTTrainer, load_gene_sets
from bft_trl.models import demo_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import bft_loss_full_logits

ARMS = {
    "trl_sft": "SFT, TRL",
    "trl_dft": "DFT, TRL",
    "bft_trl": "BFT, TRL's head",
    "bft_supervised": "BFT, TRL's head on supervised positions only",
    "reference": "BFT, full logits",
    "bft_frozen": "BFT, frozen head",
    "sft_frozen": "SFT, frozen head",
    "body": "no head",
}
COMPARED = ("trl_sft", "reference", "bft_frozen")
GROUP_SIZE = 64
GPU_MODELS = ("SmolLM2-135M", "Qwen2.5-0.5B")
GPU_ARMS = ("trl_sft", "bft_trl", "reference", "bft_frozen", "body")
PLOT = Path(__file__).parents[1] / "docs" / "performance_step.png"


class FullLogitsTrainer(SFTTrainer):
    """The plain formula, as the authors' code computes it."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        labels = inputs.pop("labels")
        return bft_loss_full_logits(model(**inputs, use_cache=False).logits, labels, group_size=GROUP_SIZE)


class BodyTrainer(SFTTrainer):
    """Everything but the LM head and the loss."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        inputs.pop("labels")
        body = self.accelerator.unwrap_model(model).get_base_model().model
        return body(**inputs, use_cache=False).last_hidden_state.mean()


class Window(TrainerCallback):
    """Times the steps after the first ones, which start threads and allocate, with all that a step does."""

    def __init__(self, skipped: int) -> None:
        self.skipped = skipped

    def attach(self, trainer: SFTTrainer) -> None:
        self.trainer = trainer
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.skipped:
            reset_peak()
            self.start, self.tokens = now(), self.trained_tokens()
        if state.global_step == state.max_steps:
            self.seconds, self.tokens = now() - self.start, self.trained_tokens() - self.tokens

    def trained_tokens(self) -> int:
        return getattr(self.trainer, "_total_train_tokens", 0)


def cases(*, gpu: bool, smoke: bool) -> list[dict[str, Any]]:
    if gpu or smoke:
        return small_or_gpu_cases(smoke=smoke)
    found = [
        {"part": "table", "arm": arm, "batch": 2, "length": 512, "fraction": fraction}
        | ({} if arm in COMPARED else {"repeats": 2})
        for fraction in (1.0, 0.25)
        for arm in ARMS
    ]
    found += [
        {"part": "context", "arm": arm, "batch": 1, "length": length, "fraction": 1.0, "repeats": 1}
        for length in (512, 1024, 2048)
        for arm in COMPARED
    ]
    return found + [
        {"part": "packing", "arm": "bft_frozen", "data": data, "packing": packing, "repeats": 2}
        for data in ("gene sets", "log-normal")
        for packing in (False, True)
    ]


def small_or_gpu_cases(*, smoke: bool) -> list[dict[str, Any]]:
    size = {"batch": 2, "length": 32} if smoke else {"batch": 8, "length": 1024}
    found: list[dict[str, Any]] = [
        {"part": "table", "model": model, "arm": arm, **size, "fraction": fraction}
        for model in (["smoke"] if smoke else GPU_MODELS)
        for fraction in ((0.25,) if smoke else (1.0, 0.25))
        for arm in GPU_ARMS
    ]
    attentions = ["sdpa"] if smoke else ["sdpa", "flex_attention"]
    attentions += ["flash_attention_2"] if find_spec("flash_attn") else []
    return found + [
        {"part": "packing", "arm": "bft_frozen", "data": data, "packing": packing, "attention": attention}
        | ({"model": "smoke", "batch": 2} if smoke else {"batch": 16 if packing else 32})
        for data in (["log-normal"] if smoke else ["gene sets", "log-normal"])
        for packing, attention in [(False, "sdpa"), *((True, attention) for attention in attentions)]
    ]


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds a step, peak bytes of the process (on a GPU: of the card), and trained tokens a second."""
    gpu = torch.cuda.is_available()
    arm, packing = case["arm"], case.get("packing")
    steps, skipped = 5 if packing is not None else 3, 1
    if gpu:
        steps, skipped = (8, 3) if packing is not None else (15, 3)
    data = random_rows(case) if packing is None else short_rows(case["data"])
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": case.get("batch", 2 if packing else 8),
            "max_steps": steps,
            "max_length": 512 if packing is not None else None,
            "packing": bool(packing),
            "use_cpu": not gpu,
            "bf16": gpu,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        model = case_model(case, torch.bfloat16 if gpu else torch.float32)
        trainer = arm_trainer(arm, options, data, model, tokenizer() if case.get("model") else None)
        window = Window(skipped)
        window.attach(trainer)
        trainer.train()
    return {
        "seconds": round(window.seconds / (steps - skipped), 5),
        "peak_bytes": peak(),
        "tokens_per_second": round(window.tokens / window.seconds, 1),
    }


def case_model(case: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model with random weights, or the demo's."""
    attention = case.get("attention", "sdpa")
    if case.get("model"):
        return random_model(case["model"], dtype, attn_implementation=attention)
    return AutoModelForCausalLM.from_pretrained(demo_model().path, dtype=dtype, attn_implementation=attention)


def arm_trainer(arm: str, options: dict[str, Any], data: Dataset, model: Any, processor: Any) -> SFTTrainer:
    shared = {
        "model": model,
        "processing_class": processor,
        "train_dataset": data,
        "peft_config": LoraConfig(r=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    }
    if arm in ("trl_sft", "trl_dft", "reference", "body"):
        kind = {"reference": FullLogitsTrainer, "body": BodyTrainer}.get(arm, SFTTrainer)
        return kind(args=SFTConfig(**options, loss_type="dft" if arm == "trl_dft" else "nll"), **shared)
    if arm == "bft_supervised":
        # TRL decides by this function whether it scores supervised positions only, as it does on a GPU.
        trl.trainer.utils._use_triton = lambda device: True
    loss, backend = arm.split("_")
    config = BFTConfig(
        **options,
        loss_type="nll" if loss == "sft" else "bft",
        group_size=GROUP_SIZE,
        lm_head_backend="frozen" if backend == "frozen" else "trl",
    )
    return BFTTrainer(args=config, **shared)


def random_rows(case: dict[str, Any]) -> Dataset:
    """Time does not depend on what the tokens are."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 300, (8, case["length"]), generator=rng)
    labels = torch.where(torch.arange(case["length"]) >= case["length"] * (1 - case["fraction"]), ids, -100)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def short_rows(kind: str) -> Dataset:
    if kind == "gene sets":
        return load_gene_sets("train").select(range(500))
    rng = torch.Generator().manual_seed(0)
    lengths = (60 * (0.8 * torch.randn(400, generator=rng)).exp()).long().clamp(8, 512)
    ids = [torch.randint(2, 300, (int(length),), generator=rng) for length in lengths]
    labels = [torch.where(torch.arange(len(row)) >= len(row) // 2, row, -100) for row in ids]
    return Dataset.from_dict({"input_ids": [r.tolist() for r in ids], "labels": [r.tolist() for r in labels]})


def show(out: Path, *, plot: bool) -> None:
    by = ["part", "model", "length", "fraction", "data", "packing", "attention", "arm"]
    table = medians(out, by, ["seconds", "peak_bytes", "tokens_per_second"])
    table = table.fillna({"model": "SmolLM2-135M", "attention": "sdpa"})
    print("| supervised | arm | s a step | of TRL's SFT | of full logits | peak GB | of TRL's SFT | of full logits |")
    print("|---|---|---|---|---|---|---|---|")
    steps = table[table["part"] == "table"]
    for (model, fraction), part in steps.groupby(["model", "fraction"], sort=False):
        part = part.set_index("arm")
        sft, full = (part.reindex([name]).iloc[0] for name in ("trl_sft", "reference"))  # one may not fit
        for arm, row in part.iterrows():
            print(
                f"| {model} {fraction:.0%} | {ARMS[str(arm)]} | {row['seconds']:.3g} "
                f"| {row['seconds'] / sft['seconds']:.2f} "
                f"| {row['seconds'] / full['seconds']:.2f} | {row['peak_bytes'] / 1e9:.2f} "
                f"| {row['peak_bytes'] / sft['peak_bytes']:.2f} | {row['peak_bytes'] / full['peak_bytes']:.2f} |"
            )
    for data, rows in table[table["part"] == "packing"].groupby("data"):
        padded = rows.loc[rows["packing"] == False, "tokens_per_second"].iloc[0]  # noqa: E712 - a column of objects
        for _, row in rows[rows["packing"] == True].iterrows():  # noqa: E712
            packed, attention = row["tokens_per_second"], row["attention"]
            print(
                f"\n{data}, {attention}: {padded:.0f} tokens a second padded, {packed:.0f} packed, "
                f"{packed / padded:.2f} times as many"
            )
    if not plot:
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    context = table[table["part"] == "context"]
    for arm in context["arm"].unique():
        rows = context[context["arm"] == arm]
        axes[0].plot(rows["length"], rows["seconds"], marker="o", label=ARMS[arm])
        axes[1].plot(rows["length"], rows["peak_bytes"] / 1e9, marker="o", label=ARMS[arm])
    for axis, label in zip(axes, ("seconds a step", "peak memory, GB"), strict=True):
        axis.set(xlabel="tokens in a row, all supervised", ylabel=label, ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.suptitle("A training step of SmolLM2-135M with LoRA, one row")
    figure.savefig(PLOT, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=json.loads, help="one measurement; used by the script itself")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats of each arm")
    parser.add_argument("--memory-gib", type=float, default=20, help="address space that an arm may use on a CPU")
    parser.add_argument("--only", help="measure this part alone (table, context, packing), keep the others' rows")
    parser.add_argument("--plot", action="store_true", help="only read step.csv: the tables and the plot")
    add_options(parser)
    options = parse(parser)
    if options.case:
        answer(lambda: measure(options.case), options.memory_gib)
        return
    complete, gpu, out = True, options.device == "cuda", options.output_dir / "step.csv"
    if not options.plot:
        chosen = [case for case in cases(gpu=gpu, smoke=options.smoke) if options.only in (None, case["part"])]
        limits = {"repeats": 1 if options.smoke else options.repeats, "memory_gib": options.memory_gib}
        here = measure if gpu or options.smoke else None
        complete = measure_all(Path(__file__), chosen, **limits, out=out, measure=here)
    show(out, plot=not (gpu or options.smoke))
    sys.exit(not complete)


if __name__ == "__main__":
    main()
