"""What BFT adds to a training step: its fraction of the step's time, and the largest tensor that it makes.

    python benchmarks/weighting.py

Times a whole step of the demo's model (NF4, LoRA on all linear layers) and, on log-probabilities of the same shape,
all that BFT adds to TRL's code: gathering the supervised tokens, weights, reduction, its backward pass, and the
metrics. Medians; rows are written to weighting.csv. On a GPU: bfloat16 models with random weights.
"""

import argparse
import csv
import statistics
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from isolated import add_options, parse, timed
from peft import LoraConfig
from shapes import random_model, tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BitsAndBytesConfig

from bft_trl import BFTConfig, BFTTrainer
from bft_trl.models import demo_model
from bft_trl.training.metrics import device_of_sums, zero_sums
from bft_trl.weighting import supervised_tokens, token_and_sample_weights

# Model (the demo's, or with random weights), batch x tokens, a quarter of them supervised.
CASES: dict[str, list[tuple[str | None, int, int]]] = {
    "cpu": [(None, 4, 256), (None, 1, 1024)],
    "cuda": [("SmolLM2-135M", 8, 1024), ("Qwen2.5-0.5B", 8, 1024)],
    "smoke": [("smoke", 2, 64)],
}


class LargestTensor(TorchDispatchMode):
    """Remembers the greatest number of elements in any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def seconds(action: Callable[[], Any], repeats: int) -> float:
    """Median time of `action`, after one call to warm up."""
    return statistics.median([timed(action) for _ in range(repeats + 1)][1:])


def measure(folder: str, version: str, model: str | None, batch: int, length: int) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    args = BFTConfig(
        folder,
        bft_version=version,
        group_size=32,
        per_device_train_batch_size=batch,
        max_steps=1,
        use_cpu=not gpu,
        bf16=gpu,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    options = {"model": demo_model().path, "quantization_config": nf4} if model is None else {}
    if model is not None:
        dtype = torch.bfloat16 if gpu else torch.float32
        options = {"model": random_model(model, dtype), "processing_class": tokenizer()}
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 300, (batch, length), generator=rng)
    labels = torch.where(torch.arange(length) >= length * 3 // 4, ids, -100)
    trainer = BFTTrainer(
        **options,
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()}),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()  # prepares model and optimizer, and leaves a step's sums open for the metrics
    trainer.model.train()
    trainer._step_sums.append(zero_sums(1, 1, device=device_of_sums(args.device)))
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    step = seconds(lambda: trainer.training_step(trainer.model_wrapped, dict(inputs), batch), 20 if gpu else 3)

    mask = (labels[:, 1:] != -100).to(trainer.args.device)
    log_probs = (-3 * torch.rand(batch, length - 1, generator=rng)).to(mask.device).requires_grad_()

    def ours() -> None:
        tokens = supervised_tokens(log_probs, mask)
        weights = token_and_sample_weights(tokens.log_probs, tokens.lengths, **trainer.args.weighting())
        trainer._record(tokens, weights, {}, batch)
        trainer._reduce(tokens, weights, batch).backward()

    added = seconds(ours, 50)
    with LargestTensor() as largest:
        ours()
    return {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "model": model or "demo, NF4",
        "version": version,
        "batch": batch,
        "length": length,
        "step_seconds": round(step, 4),
        "bft_seconds": round(added, 5),
        "percent_of_step": round(100 * added / step, 3),
        "largest_tensor_elements": largest.elements,
        "batch_elements": batch * length,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parse(parser)
    rows: list[dict[str, Any]] = []
    for version in ("v1", "v3"):
        for model, batch, length in CASES["smoke" if options.smoke else options.device]:
            with TemporaryDirectory() as folder:
                rows.append(measure(folder, version, model, batch, length))
            print(rows[-1])
            with (options.output_dir / "weighting.csv").open("w", newline="") as file:  # a kill loses nothing
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
