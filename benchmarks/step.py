"""Whole training steps of SmolLM2-135M with LoRA: BFT beside TRL and the formula on full logits.

    python benchmarks/step.py            # about half an hour on two cores; writes step.csv and the plot
    python benchmarks/step.py --plot     # the plot and the tables from step.csv

float32, LoRA r 16 on all linear layers, no checkpointing of activations. `body` is the same step without any LM head:
no exact head can go below. The last part trains padded (8 rows) and packed (2 x 512) on the shipped gene sets, whose
lengths are much alike, and on samples whose lengths differ (log-normal, median 60, sigma 0.8). On a GPU the model is
bfloat16.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import torch
import trl.trainer.utils
from datasets import Dataset
from isolated import answer, measure_all, medians, peak, reset_peak, timed
from peft import LoraConfig
from transformers import AutoModelForCausalLM
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
OUT = Path(__file__).with_suffix(".csv")
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


def cases() -> list[dict[str, Any]]:
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


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds a step, peak bytes of the process (on a GPU: of the card), and trained tokens a second."""
    gpu = torch.cuda.is_available()
    arm, packing = case["arm"], case.get("packing")
    steps = 5 if packing is not None else 3
    data = random_rows(case) if packing is None else short_rows(case["data"])
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": case.get("batch", 8),
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
        if packing:
            options["per_device_train_batch_size"] = 2
        trainer = arm_trainer(arm, options, data, torch.bfloat16 if gpu else torch.float32)
        times: list[float] = []
        tokens = [0]
        step = trainer.training_step

        def timed_step(*args: Any, **kwargs: Any) -> Any:
            result: list[Any] = []
            if len(times) == 1:  # the first step starts threads and allocates
                reset_peak()
            times.append(timed(lambda: result.append(step(*args, **kwargs))))
            tokens.append(getattr(trainer, "_total_train_tokens", 0))
            return result[0]

        trainer.training_step = timed_step
        trainer.train()
    seconds = sum(times[1:])
    return {
        "seconds": round(seconds / (steps - 1), 4),
        "peak_bytes": peak(),
        "tokens_per_second": round((tokens[-1] - tokens[1]) / seconds, 1),
    }


def arm_trainer(arm: str, options: dict[str, Any], data: Dataset, dtype: torch.dtype) -> SFTTrainer:
    shared = {
        "model": AutoModelForCausalLM.from_pretrained(demo_model().path, dtype=dtype),
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
    ids = torch.randint(1000, 40_000, (8, case["length"]), generator=rng)
    labels = torch.where(torch.arange(case["length"]) >= case["length"] * (1 - case["fraction"]), ids, -100)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def short_rows(kind: str) -> Dataset:
    if kind == "gene sets":
        return load_gene_sets("train").select(range(200))
    rng = torch.Generator().manual_seed(0)
    lengths = (60 * (0.8 * torch.randn(400, generator=rng)).exp()).long().clamp(8, 512)
    ids = [torch.randint(1000, 40_000, (int(length),), generator=rng) for length in lengths]
    labels = [torch.where(torch.arange(len(row)) >= len(row) // 2, row, -100) for row in ids]
    return Dataset.from_dict({"input_ids": [r.tolist() for r in ids], "labels": [r.tolist() for r in labels]})


def show() -> None:
    by = ["part", "length", "fraction", "data", "packing", "arm"]
    table = medians(OUT, by, ["seconds", "peak_bytes", "tokens_per_second"])
    print("| supervised | arm | s a step | of TRL's SFT | of full logits | peak GB | of TRL's SFT | of full logits |")
    print("|---|---|---|---|---|---|---|---|")
    for fraction in (1.0, 0.25):
        part = table[(table["part"] == "table") & (table["fraction"] == fraction)].set_index("arm")
        sft, full = part.loc["trl_sft"], part.loc["reference"]
        for arm, row in part.iterrows():
            print(
                f"| {fraction:.0%} | {ARMS[str(arm)]} | {row['seconds']:.2f} | {row['seconds'] / sft['seconds']:.2f} "
                f"| {row['seconds'] / full['seconds']:.2f} | {row['peak_bytes'] / 1e9:.2f} "
                f"| {row['peak_bytes'] / sft['peak_bytes']:.2f} | {row['peak_bytes'] / full['peak_bytes']:.2f} |"
            )
    for data, rows in table[table["part"] == "packing"].groupby("data"):
        speed = rows.set_index("packing")["tokens_per_second"]
        padded, packed = speed[False], speed[True]
        print(
            f"\n{data}: {padded:.0f} tokens a second padded, {packed:.0f} packed, {packed / padded:.2f} times as many"
        )

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
    parser.add_argument("--plot", action="store_true", help="only read step.csv: the tables and the plot")
    options = parser.parse_args()
    if options.case:
        answer(lambda: measure(options.case), options.memory_gib)
        return
    if not options.plot:
        measure_all(Path(__file__), cases(), repeats=options.repeats, memory_gib=options.memory_gib, out=OUT)
    show()


if __name__ == "__main__":
    main()
