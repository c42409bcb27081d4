"""The loss head alone, hidden states to BFT loss and gradient, over tokens, vocabulary and supervised fraction.

    python benchmarks/head.py            # about half an hour on two cores; writes head.csv and the plot
    python benchmarks/head.py --plot     # the plot and the tables from head.csv

Arms: TRL's fused head as it is on this device; TRL's head on supervised positions only, which is what it does on a
GPU; the frozen head; the plain formula on full logits; and two bare matrix products in chunks of logits of the same
size, which no exact head can do without. All but the last two also give TRL's entropy and top-1. On a GPU: bfloat16,
heads of three models, and Liger's fused head with its token scaling where it is installed.
"""

import argparse
import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from isolated import add_options, answer, measure_all, medians, parse, peak, reset_peak, timed
from shapes import head_size
from trl.kernels import ChunkedLogProbFunction

from bft_trl.lm_head import CHUNK_BYTES, frozen_log_probs
from bft_trl.weighting import supervised_tokens, token_and_sample_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import bft_loss_full_logits

ARMS = {
    "trl": "TRL",
    "trl_supervised": "TRL, supervised positions only",
    "reference": "full logits",
    "frozen": "frozen head",
    "two_products": "two products",
    "liger": "Liger, token scaling",
}
GROUP_SIZE = 64
GPU_MODELS = ("SmolLM2-135M", "Qwen2.5-0.5B", "Llama-3.1-8B")
PLOT = Path(__file__).parents[1] / "docs" / "performance_head.png"


def cases(*, gpu: bool, smoke: bool) -> list[dict[str, Any]]:
    """The table, 2 x 1,024 positions; then tokens up to where full logits do not fit; then the vocabulary.

    The table alone on a GPU, with 8 x 1,024 positions, and in a smoke run.
    """
    models = [{"vocabulary": 49_152, "width": 576}, {"vocabulary": 128_256, "width": 1024}]
    if gpu or smoke:
        models = [head_size("smoke")] if smoke else [head_size(name) for name in GPU_MODELS]
    without = {"trl_supervised"} if gpu else {"liger"}
    without |= set() if find_spec("liger_kernel") else {"liger"}
    found: list[dict[str, Any]] = [
        {"part": "table", "arm": arm, **model, "batch": 8 if gpu else 2, "length": 64 if smoke else 1024}
        | {"fraction": fraction}
        for model in models
        for fraction in (0.25, 1.0)
        for arm in ARMS
        if arm not in without
    ]
    if gpu or smoke:
        return found
    one_row = {"batch": 1, "fraction": 1.0, "width": 576}
    sweep = ("trl_supervised", "reference", "frozen", "two_products")
    for length in (512, 1024, 2048, 4096, 8192, 16_384, 32_768):
        point = {"part": "tokens", "vocabulary": 49_152, "length": length, "repeats": 1}
        found += [one_row | point | {"arm": arm} for arm in sweep]
    for vocabulary in (16_384, 32_768, 65_536, 131_072, 262_144):
        point = {"part": "vocabulary", "vocabulary": vocabulary, "length": 512, "repeats": 1}
        found += [one_row | point | {"arm": arm} for arm in sweep]
    return found


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of forward and backward, and the bytes at their peak beyond the inputs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    drawn: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    batch, length, width, vocabulary = (case[name] for name in ("batch", "length", "width", "vocabulary"))
    weight = (torch.randn(vocabulary, width, **drawn) * 0.05).to(dtype)
    hidden = torch.randn(batch, length, width, **drawn).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (batch, length), **drawn)
    labels[:, : math.ceil(length * (1 - case["fraction"]))] = -100

    chunk_bytes = CHUNK_BYTES["cpu" if device == "cpu" else "default"]

    def run(tokens: int) -> None:
        hidden.grad = None
        score(case["arm"], hidden[:, :tokens], weight, labels[:, :tokens], chunk_bytes=chunk_bytes)

    run(1 + int(length * (1 - case["fraction"])))  # starts threads and loads kernels, on next to no tokens
    before = reset_peak()
    seconds = [timed(lambda: run(length)) for _ in range(10 if device == "cuda" else 2)]
    return {"seconds": round(min(seconds), 5), "extra_bytes": peak() - before}


def score(arm: str, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *, chunk_bytes: int) -> None:
    """Forward and backward of one arm."""
    if arm == "reference":
        bft_loss_full_logits(hidden @ weight.t(), labels, group_size=GROUP_SIZE).backward()
        return
    states, targets = hidden[:, :-1], labels[:, 1:]
    if arm == "liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", use_token_scaling=True)
        loss(weight, states.flatten(0, 1), targets.flatten()).backward()
        return
    mask = targets != -100
    if arm == "two_products":
        chosen = states[mask].detach()
        rows = min(len(chosen), max(1, chunk_bytes // (len(weight) * chosen.element_size())))
        logits = chosen.new_empty(rows, len(weight))
        for chunk in chosen.split(rows):
            torch.mm(torch.mm(chunk, weight.t(), out=logits[: len(chunk)]), weight)
        return
    if arm == "frozen":
        found = frozen_log_probs(states[mask], weight, targets[mask], chunk_bytes=chunk_bytes).log_probs
    else:
        chosen = states[mask] if arm == "trl_supervised" or hidden.is_cuda else states.flatten(0, 1)
        ids = targets[mask] if len(chosen) == mask.sum() else targets.clamp(min=0).flatten()
        # as SFTTrainer calls it: temperature 1, tiles of 32,768 words, no cap, no scale
        outputs = ("log_probs", "entropy", "is_top1")
        found = ChunkedLogProbFunction.apply(chosen, weight, None, ids, 1.0, 32_768, None, 1.0, outputs)[0]
    log_probs = found.new_zeros(mask.shape)
    log_probs = log_probs.masked_scatter(mask, found) if len(found) == mask.sum() else found.view(mask.shape)
    tokens = supervised_tokens(log_probs, mask)
    weights = token_and_sample_weights(tokens.log_probs, tokens.lengths, group_size=GROUP_SIZE)
    scale = (weights.sample / tokens.lengths).repeat_interleave(tokens.lengths) * weights.token
    (-(scale * tokens.log_probs).sum() / len(tokens.lengths)).backward()


def show(out: Path, *, plot: bool) -> None:
    by = ["part", "vocabulary", "length", "fraction", "arm"]
    table = medians(out, by, ["seconds", "extra_bytes"])
    print("| vocabulary | supervised | head | seconds | of TRL | of full logits | extra MB | of full logits |")
    print("|---|---|---|---|---|---|---|---|")
    for (vocabulary, fraction), part in table[table["part"] == "table"].groupby(["vocabulary", "fraction"]):
        part = part.set_index("arm")
        for arm, row in part.iterrows():
            trl, full = (part.reindex([name]).iloc[0] for name in ("trl", "reference"))  # one may not fit
            print(
                f"| {vocabulary:,} | {fraction:.0%} | {ARMS[str(arm)]} | {row['seconds']:.3g} "
                f"| {row['seconds'] / trl['seconds']:.2f} | {row['seconds'] / full['seconds']:.2f} "
                f"| {row['extra_bytes'] / 1e6:,.0f} | {row['extra_bytes'] / full['extra_bytes']:.2f} |"
            )
    if not plot:
        return
    frozen = table[(table["part"] == "tokens") & (table["arm"] == "frozen")]
    slope, constant = np.polyfit(frozen["length"], frozen["seconds"], 1)
    fit = slope * frozen["length"] + constant
    spread = 1 - ((frozen["seconds"] - fit) ** 2).sum() / ((frozen["seconds"] - frozen["seconds"].mean()) ** 2).sum()
    print(f"\nfrozen head: {constant:.3f} s + {1e3 * slope:.3f} ms a token, R^2 = {spread:.5f}")

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharex="col", layout="constrained")
    for column, (part, axis, label) in enumerate(
        (("tokens", "length", "supervised tokens"), ("vocabulary", "vocabulary", "words in the vocabulary"))
    ):
        for arm in ARMS:
            rows = table[(table["part"] == part) & (table["arm"] == arm)]
            if len(rows):
                style = {"linestyle": ":", "color": "gray"} if arm == "two_products" else {"marker": "o"}
                axes[0, column].loglog(rows[axis], rows["seconds"], label=ARMS[arm], **style)
                if arm != "two_products":
                    axes[1, column].loglog(rows[axis], rows["extra_bytes"] / 2**20, label=ARMS[arm], marker="o")
        ticks = sorted(table.loc[table["part"] == part, axis].unique())
        axes[1, column].set_xticks(ticks, [f"{tick / 1024:.3g}k" for tick in ticks])
        axes[1, column].minorticks_off()
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("extra peak memory, MiB")
    axes[0, 0].legend(frameon=False)
    figure.suptitle("Loss head, forward and backward; a line ends where memory does")
    figure.savefig(PLOT, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=json.loads, help="one measurement; used by the script itself")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats of each arm")
    parser.add_argument("--memory-gib", type=float, default=16, help="address space that an arm may use on a CPU")
    parser.add_argument("--only", help="measure this part alone (table, tokens, vocabulary), keep the others' rows")
    parser.add_argument("--plot", action="store_true", help="only read head.csv: the tables and the plot")
    add_options(parser)
    options = parse(parser)
    if options.case:
        answer(lambda: measure(options.case), options.memory_gib)
        return
    complete, gpu, out = True, options.device == "cuda", options.output_dir / "head.csv"
    if not options.plot:
        chosen = [case for case in cases(gpu=gpu, smoke=options.smoke) if options.only in (None, case["part"])]
        limits = {"repeats": 1 if options.smoke else options.repeats, "memory_gib": options.memory_gib}
        here = measure if gpu or options.smoke else None
        complete = measure_all(Path(__file__), chosen, **limits, out=out, measure=here)
    show(out, plot=not (gpu or options.smoke))
    sys.exit(not complete)


if __name__ == "__main__":
    main()
