"""What an anchor and eaft cost, beside the same step and head without them.

    python benchmarks/anchor.py            # about ten minutes on two cores; writes anchor.csv

Interleaved repeats in one process: training steps of SmolLM2-135M (LoRA r 16 on all linear layers, 2 x 512 tokens,
a quarter of them supervised), and the head alone beside its bare matrix products in the chunks of the head.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from isolated import timed
from peft import LoraConfig
from step import random_rows
from transformers import AutoModelForCausalLM

from bft_trl import BFTConfig, BFTTrainer, demo_model
from bft_trl.lm_head import CHUNK_BYTES, frozen_log_probs

STEPS: dict[str, dict[str, Any]] = {
    "bft": {},
    "bft, anchor": {"anchor_coef": 0.1},
    "dft": {"loss_type": "dft"},
    "eaft": {"loss_type": "eaft"},
}
# Buffers of (rows, V) in a chunk of the head, and its products.
HEADS = {"head": (1, 2), "head, anchor": (3, 4)}


def steps(folder: str) -> dict[str, Callable[[], object]]:
    arms: dict[str, Callable[[], object]] = {}
    for name, options in STEPS.items():
        trainer = BFTTrainer(
            AutoModelForCausalLM.from_pretrained(demo_model().path, dtype=torch.float32),
            args=BFTConfig(
                folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", **options
            ),
            train_dataset=random_rows({"length": 512, "fraction": 0.25}),
            peft_config=LoraConfig(r=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(2)])
        arms[name] = partial(train, trainer, batch)
    return arms


def train(trainer: BFTTrainer, batch: dict[str, torch.Tensor]) -> None:
    trainer.training_step(trainer.model, dict(batch))


def heads(vocabulary: int, width: int, tokens: int) -> dict[str, Callable[[], object]]:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, width, generator=rng) * 0.05
    hidden, base = (torch.randn(tokens, width, generator=rng) for _ in range(2))
    targets = torch.randint(vocabulary, (tokens,), generator=rng)

    def head(reference: torch.Tensor | None) -> None:
        scores = frozen_log_probs(hidden.requires_grad_(), weight, targets, reference=reference)
        (scores.log_probs.sum() if scores.kl is None else scores.log_probs.sum() + scores.kl.sum()).backward()

    def products(buffers: int, number: int) -> None:
        rows = CHUNK_BYTES["cpu"] // (4 * vocabulary * buffers)
        logits = hidden.new_empty(rows, vocabulary)
        with torch.no_grad():
            for chunk in hidden.split(rows):
                for _ in range(number // 2):
                    torch.mm(torch.mm(chunk, weight.t(), out=logits[: len(chunk)]), weight)

    arms: dict[str, Callable[[], object]] = {"head": lambda: head(None), "head, anchor": lambda: head(base)}
    return arms | {f"{name}, products": partial(products, *size) for name, size in HEADS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats of each arm")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "step": steps(folder),
            "V 49,152, H 576": heads(49_152, 576, 1024),
            "V 128,256, H 1,024": heads(128_256, 1024, 512),
        }
        for part, arms in parts.items():
            for repeat in range(options.repeats + 1):
                for arm, run in arms.items():
                    seconds = timed(run)
                    if repeat:  # the first one starts threads and allocates
                        rows.append({"part": part, "arm": arm, "repeat": repeat, "seconds": round(seconds, 4)})
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False)
    median = table.groupby(["part", "arm"])["seconds"].median()
    print(median.to_string())
    print(f"anchor, of the step without: {median['step', 'bft, anchor'] / median['step', 'bft']:.2f}")
    print(f"eaft, of dft: {median['step', 'eaft'] / median['step', 'dft']:.2f}")
    for part in list(parts)[1:]:
        for name in HEADS:
            print(f"{part}, {name}, of its products: {median[part, name] / median[part, f'{name}, products']:.2f}")


if __name__ == "__main__":
    main()
