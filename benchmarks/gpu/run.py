"""Everything that a GPU changes, measured in one go: tests, loss head, step, packing, and the demo with QLoRA.

    make gpu                             # without a network: make gpu WHEELS=folder
    python benchmarks/gpu/run.py --device cpu --smoke    # shows that it runs, measures nothing

Each part has a time limit and a log; one that fails or runs out of time is in the summary and stops no other. Writes
summary.md (parts, targets, tables), head.csv, step.csv, weighting.csv and the demo's run to outputs/gpu.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from isolated import add_options, medians, parse  # noqa: E402
from shapes import random_model, tokenizer  # noqa: E402

PARTS = ["cuda", "head", "step", "weighting", "demo", "suite"]
PACKAGES = (
    "torch",
    "triton",
    "trl",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "liger_kernel",
    "flash_attn",
)


class Outcome(NamedTuple):
    part: str
    result: str
    seconds: float
    last_line: str


class Target(NamedTuple):
    name: str
    case: str
    at_most: bool
    limit: float
    value: float


def commands(options: argparse.Namespace) -> dict[str, tuple[int, list[str]]]:
    """Returns the time limit in seconds and the command of each part."""
    out = options.output_dir
    # Test files that need a package that is missing stop no others.
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    cuda = [str(file) for file in sorted((ROOT / "tests").glob("test_*.py")) if "DEVICES" in file.read_text()]
    shared = ["--device", options.device, "--output_dir", str(out), *(["--smoke"] if options.smoke else [])]
    train = ["examples/train.py", "--output_dir", str(out / "demo"), "--overwrite_output_dir"]
    found = {
        "cuda": (600, [*pytest, "-m", "cuda", *cuda, *(["--collect-only"] if options.smoke else [])]),
        "head": (300, ["benchmarks/head.py", "--only", "table", "--repeats", "1", *shared]),
        "step": (400, ["benchmarks/step.py", "--repeats", "1", *shared]),
        "weighting": (200, ["benchmarks/weighting.py", *shared]),
        "demo": (500, [*train, *(tiny_run(out) if options.smoke else [])]),
        "suite": (3600, [*pytest, "-m", "not long and not cuda"]),
    }
    return {name: found[name] for name in options.parts}


def tiny_run(out: Path) -> list[str]:
    """Options of examples/train.py for one step on a model and data that need no download."""
    model, data = out / "tiny", out / "data"
    random_model("smoke", torch.float32).save_pretrained(model)
    tokenizer().save_pretrained(model)
    data.mkdir(exist_ok=True)
    row = json.dumps({"prompt": "genes", "completion": "process"})
    (data / "train.jsonl").write_text(f"{row}\n" * 8)
    return ["--model_name_or_path", str(model), "--dataset_name", str(data), "--max_steps", "1", "--lora_r", "2"]


def run_part(name: str, command: list[str], limit: float, log: Path) -> Outcome:
    """Runs a part, its output in `log`, and ends it and all that it started at its limit."""
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
            result = "passed" if code == 0 else f"failed, exit code {code}"
        except subprocess.TimeoutExpired:
            result = f"out of time at {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or [""]
    return Outcome(name, result, time.monotonic() - start, lines[-1].replace("|", "/")[:120])


def rows_of(file: Path, by: list[str], values: list[str]) -> pd.DataFrame:
    """Returns medians of what was measured, also by a part that was stopped; empty without a row."""
    found = next((path for path in (file, file.with_suffix(".csv.partial")) if path.exists()), None)
    return medians(found, by, values) if found else pd.DataFrame(columns=[*by, *values])


def targets(out: Path) -> Iterator[Target]:
    """Yields each target with what was measured."""
    heads = rows_of(out / "head.csv", ["vocabulary", "width", "fraction", "arm"], ["seconds"])
    for (vocabulary, width, fraction), part in heads.groupby(["vocabulary", "width", "fraction"], sort=False):
        seconds = part.set_index("arm")["seconds"]
        case = f"V {vocabulary:,}, H {width:,}, {fraction:.0%} supervised"
        if {"frozen", "two_products"} <= {*seconds.index}:
            ratio = seconds["frozen"] / seconds["two_products"]
            yield Target("head, of two bare products", case, True, 1.25, ratio)
    values = ["seconds", "peak_bytes", "tokens_per_second"]
    steps = rows_of(out / "step.csv", ["part", "model", "fraction", "data", "packing", "attention", "arm"], values)
    for (model, fraction), part in steps[steps["part"] == "table"].groupby(["model", "fraction"], sort=False):
        part = part.set_index("arm")
        if {"bft_frozen", "trl_sft"} <= {*part.index}:
            seconds, memory = (part.loc["bft_frozen", v] / part.loc["trl_sft", v] for v in values[:2])
            case = f"{model}, {fraction:.0%} supervised"
            large = fraction == 1 and model.startswith("Qwen")
            yield Target("step, of TRL's SFT", case, True, 0.9 if large else 1.0, seconds)
            yield Target("peak memory, of TRL's SFT", case, True, 1.0, memory)
    packing = steps[(steps["part"] == "packing") & (steps["data"] == "gene sets")]
    speed = packing.groupby(packing["packing"].astype(bool))["tokens_per_second"].max()
    if len(speed) == 2:
        yield Target(
            "packed, of padded, tokens a second", "gene sets, best attention", False, 2.0, speed[True] / speed[False]
        )
    if (out / "weighting.csv").exists():
        for _, row in pd.read_csv(out / "weighting.csv").iterrows():
            case = f"{row['model']}, {row['version']}, {row['batch']} x {row['length']}"
            yield Target("BFT's own work, % of a step", case, True, 1.0, row["percent_of_step"])


def summary(outcomes: list[Outcome], options: argparse.Namespace) -> str:
    versions = [f"{name} {version}" for name in PACKAGES if (version := version_of(name))]
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    lines = [
        "# GPU run",
        "",
        f"{device}; CUDA {torch.version.cuda}; Python {platform.python_version()}; {', '.join(versions)}.",
    ]
    if options.smoke:
        lines += ["", "A smoke run: tiny shapes. Its numbers say nothing about a GPU."]
    lines += ["", "| part | result | seconds | last line of its log |", "|---|---|---|---|"]
    lines += [f"| {part} | {result} | {seconds:.0f} | {last} |" for part, result, seconds, last in outcomes]
    lines += ["", "| target | case | limit | measured | met |", "|---|---|---|---|---|"]
    for name, case, at_most, limit, value in targets(options.output_dir):
        met = round(value, 2) <= limit if at_most else round(value, 2) >= limit
        sign = "at most" if at_most else "at least"
        lines.append(f"| {name} | {case} | {sign} {limit:.2f} | {value:.2f} | {'yes' if met else 'no'} |")
    for part in ("head", "step"):
        log = options.output_dir / f"{part}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        lines += ["", *(line for line in text.splitlines() if line.startswith("| ") or "times as many" in line)]
    return "\n".join(lines) + "\n"


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(output_dir=ROOT / "outputs" / "gpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all, without the suite in a smoke run")
    parser.add_argument("--minutes", type=float, default=60, help="for all parts; the suite takes what is left")
    options = parse(parser)
    options.output_dir = options.output_dir.resolve()
    options.parts = options.parts or (PARTS[:-1] if options.smoke else PARTS)
    end, outcomes = time.monotonic() + 60 * options.minutes, list[Outcome]()
    for name, (limit, command) in commands(options).items():
        for file in options.output_dir.glob(f"{name}.csv*"):  # of an earlier run
            file.unlink()
        left = max(min(limit, end - time.monotonic()), 1)
        outcomes.append(run_part(name, command, left, options.output_dir / f"{name}.log"))
        print(*outcomes[-1], sep=", ", flush=True)
        (options.output_dir / "summary.md").write_text(summary(outcomes, options))  # after each: a kill loses nothing
    print((options.output_dir / "summary.md").read_text())
    sys.exit(any(outcome.result != "passed" for outcome in outcomes))


if __name__ == "__main__":
    main()
