"""Does memory grow? Resident memory of the process over 2,000 training steps and over 2,000 evaluated documents.

    python benchmarks/memory.py            # some minutes on one core; writes memory.csv and the plot
    python benchmarks/memory.py --plot     # the plot and the table from memory.csv

A tiny Llama, so that growth per step is visible. `training`: BFTTrainer with its defaults, a log every 10 steps, an
evaluation every 100, a checkpoint every 200. `evaluation`: what `bft-trl eval` calls, on one task, answers of 8
tokens, in batches of 4. Each part in a process of its own. Resident memory is sampled after freed memory was returned
to the system. The slope is over the samples after the first quarter, with a 95 % interval that allows for samples
that are near each other in time (Newey and West).
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import statsmodels.api as sm
from datasets import Dataset
from isolated import resident
from transformers import TrainerCallback

from bft_trl import BFTConfig, BFTTrainer
from bft_trl.evaluation.runner import evaluate
from bft_trl.models import read_run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import build_model, build_tokenizer, sample_rows

STEPS = 2000
EVERY = 10
WARM_UP = 0.25
UNITS = {"training": "optimizer step", "evaluation": "document"}
OUT = Path(__file__).with_suffix(".csv")
PLOT = Path(__file__).parents[1] / "docs" / "performance_memory.png"


def training(steps: int, sample: Callable[[int], None]) -> None:
    """`steps` optimizer steps; `sample` is called with the number of steps done."""

    class Sampler(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % EVERY == 0:
                sample(state.global_step)

    with TemporaryDirectory() as folder:
        args = BFTConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=100,
            save_strategy="steps",
            save_steps=200,
            save_total_limit=2,
            group_size=8,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        )
        train, held_out = (Dataset.from_list(sample_rows(64, seed=seed)) for seed in (0, 1))
        trainer = BFTTrainer(build_model(), args, None, train, held_out, processing_class=build_tokenizer())
        trainer.add_callback(Sampler())
        trainer.train()


def evaluation(documents: int, sample: Callable[[int], None]) -> None:
    """One evaluation of so many gene sets; `sample` is called with the number of documents answered."""
    from lm_eval.models.huggingface import HFLM

    answered = 0
    generate = HFLM._model_generate

    def counted(self: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal answered
        result = generate(self, context, *args, **kwargs)
        answered += len(context)
        if answered % EVERY < len(context):
            sample(answered)
        return result

    HFLM._model_generate = counted
    with TemporaryDirectory() as folder:
        data, base = Path(folder, "data"), Path(folder, "base")
        data.mkdir()
        sets = [
            {"id": f"s{i}", "name": f"process {i}", "genes": ["TP53", "ATM"], "source": "go"} for i in range(documents)
        ]
        pd.DataFrame(sets).to_parquet(data / "gene_sets_go.parquet")
        build_model(max_position_embeddings=2048).save_pretrained(base)
        build_tokenizer().save_pretrained(base)
        settings = {"data_dir": str(data), "encoder": "none"}
        out, kwargs = Path(folder, "out"), "max_gen_toks=8"
        evaluate(read_run(str(base)), ["bft_gene_sets_go"], out, metadata=settings, batch_size=4, gen_kwargs=kwargs)


def measure(part: str, count: int) -> None:
    """Prints (step, KiB) of every sample as the last line."""
    samples: list[tuple[int, float]] = []
    {"training": training, "evaluation": evaluation}[part](count, lambda step: samples.append((step, held() / 1024)))
    print("\n" + json.dumps(samples))


def held() -> int:
    """Bytes in RAM that are in use."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    return resident()


def growth(samples: pd.DataFrame) -> dict[str, float]:
    """KiB a step after the warm-up with its 95 % interval, and the memory at its beginning and end in MiB."""
    kept = samples[samples["step"] > WARM_UP * samples["step"].max()]
    # As many neighbours as Newey and West's rule says: errors of samples near in time are alike.
    lags = int(4 * (len(kept) / 100) ** (2 / 9)) + 1
    fit = sm.OLS(kept["kib"], sm.add_constant(kept["step"])).fit(cov_type="HAC", cov_kwds={"maxlags": lags})
    low, high = fit.conf_int().loc["step"]
    return {"n": len(kept), "slope": fit.params["step"], "low": low, "high": high} | {
        "first": kept["kib"].iloc[0] / 1024,
        "last": kept["kib"].iloc[-1] / 1024,
    }


def show() -> None:
    table = pd.read_csv(OUT)
    print("| part | samples after the warm-up | MiB at its end | MiB at the end | KiB per step | 95 % interval |")
    print("|---|---|---|---|---|---|")
    figure, axes = plt.subplots(1, len(UNITS), figsize=(9, 3.6), layout="constrained")
    for axis, (part, unit) in zip(axes, UNITS.items(), strict=True):
        samples = table[table["part"] == part]
        found = growth(samples)
        print(
            f"| {part} | {found['n']} | {found['first']:.1f} | {found['last']:.1f} | {found['slope']:+.3f} "
            f"| {found['low']:+.3f} to {found['high']:+.3f} |"
        )
        axis.plot(samples["step"], samples["kib"] / 1024)
        axis.axvline(WARM_UP * samples["step"].max(), color="#8a8a8a", linewidth=0.8, linestyle="--")
        axis.set(
            title=f"{part}: {found['slope']:+.2f} KiB per {unit}",
            xlabel=f"{unit}s",
            ylim=(0, 1.1 * samples["kib"].max() / 1024),
        )
    axes[0].set_ylabel("resident memory, MiB")
    figure.savefig(PLOT, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=UNITS, help="one measurement; used by the script itself")
    parser.add_argument("--count", type=int, default=STEPS, help="steps and documents")
    parser.add_argument("--plot", action="store_true", help="only read memory.csv: the table and the plot")
    options = parser.parse_args()
    if options.part:
        measure(options.part, options.count)
        return
    if not options.plot:
        rows = []
        for part in UNITS:
            command = [sys.executable, __file__, "--part", part, "--count", str(options.count)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{part} failed:\n{done.stderr[-2000:]}")
            samples = json.loads(done.stdout.splitlines()[-1])
            rows += [{"part": part, "step": step, "kib": round(kib)} for step, kib in samples]
        pd.DataFrame(rows).to_csv(OUT, index=False, lineterminator="\n")
    show()


if __name__ == "__main__":
    main()
