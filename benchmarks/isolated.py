"""Arms side by side, each in a process of its own, in interleaved repeats: what head.py and step.py share.

A script calls `measure_all` with its cases; for each one it is started anew with `--case JSON` and answers with a line
of JSON. So no arm inherits another's memory, threads or caches, and what slows the machine down meets them all. On a
GPU, whose allocator knows the peak of each arm, they share a process.
"""

import argparse
import csv
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import trl
from tqdm import tqdm

STATUS = Path("/proc/self/status")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds where and how large a benchmark runs, see [`parse`]."""
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, once: shows that it runs")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent, help="folder of the CSV file")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Returns the options; `device` is set, and with "cpu" no library finds a GPU."""
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("`--device cuda`: torch finds no CUDA device.")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    return options


def measure_all(
    script: Path,
    cases: list[dict[str, Any]],
    *,
    repeats: int,
    memory_gib: float,
    out: Path,
    measure: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> bool:
    """Runs every case `repeats` times, writes a row for each run to `out`, and returns whether all succeeded.

    Until the last run they are in `out` with the ending .partial. Rows of other parts than those of `cases` stay. With
    `measure` the cases run in this process; one that fails has its error in its row, and the others run.
    """
    partial = out.with_suffix(out.suffix + ".partial")
    parts = {case["part"] for case in cases}
    rows: list[dict[str, Any]] = []
    if out.exists():
        with out.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["part"] not in parts]
    runs = [(repeat, case) for repeat in range(repeats) for case in cases if repeat < case.get("repeats", repeats)]
    for repeat, case in tqdm(runs, desc=script.name):
        found = attempt(measure, case) if measure else measure_alone(script, case, memory_gib)
        named = {name: value for name, value in case.items() if name != "repeats"}
        rows.append(machine() | named | {"repeat": repeat} | found)
        with partial.open("w", newline="") as file:
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    partial.replace(out)
    return not any(row.get("error") for row in rows)


def measure_alone(script: Path, case: dict[str, Any], memory_gib: float) -> dict[str, Any]:
    command = [sys.executable, str(script), "--case", json.dumps(case), "--memory-gib", str(memory_gib)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{case} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def attempt(measure: Callable[[dict[str, Any]], dict[str, Any]], case: dict[str, Any]) -> dict[str, Any]:
    """Returns what `measure` returns, or what went wrong."""
    try:
        return measure(case)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    except Exception as error:  # such as a kernel that this card does not have
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def machine() -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name()
        if gpu
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__.split("+")[0],
        "trl": trl.__version__,
    }


def answer(action: Callable[[], dict[str, Any]], memory_gib: float) -> None:
    """Prints what `action` returns, or that memory ran out: on a CPU at a limit, so that the machine survives."""
    if not torch.cuda.is_available():
        limit = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        result = action()
    except (RuntimeError, MemoryError) as error:  # torch's CPU allocator raises a plain RuntimeError
        if not isinstance(error, MemoryError) and "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        result = {"out_of_memory": True}
    print(json.dumps(result))


def now() -> float:
    """Seconds on a clock, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(action: Callable[[], Any]) -> float:
    start = now()
    action()
    return now() - start


def reset_peak() -> int:
    """Forgets the peak so far and returns the memory in use, in bytes: the card's where there is one."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
    return _status("VmRSS")


def resident() -> int:
    """Memory of the process that is in RAM now, in bytes (without /proc: its peak)."""
    return _status("VmRSS")


def peak() -> int:
    """Peak memory in bytes since `reset_peak` (without /proc: of the whole process)."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def medians(path: Path, by: list[str], values: list[str]) -> pd.DataFrame:
    """The median of each of `values` over the repeats, a row for each combination of `by`."""
    rows = pd.read_csv(path)
    if "out_of_memory" in rows:
        rows = rows[rows["out_of_memory"] != True]  # noqa: E712 - empty cells are not False
    if "error" in rows:
        rows = rows[rows["error"].isna()]
    known = [name for name in by if name in rows]
    found = rows.groupby(known, sort=False, dropna=False)[values].median().reset_index()
    return found.reindex(columns=[*by, *values])
