"""Time and memory of preparing 1,000,000 tokenized rows, BFTTrainer beside SFTTrainer.

python benchmarks/prepare.py   # about two minutes on a CPU core; writes prepare.csv
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, load_from_disk
from isolated import answer, measure_all, peak, reset_peak, timed
from trl import SFTConfig, SFTTrainer

from bft_trl import BFTConfig, BFTTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import build_model, build_tokenizer

TRAINERS: dict[str, tuple[Any, Any]] = {"SFTTrainer": (SFTTrainer, SFTConfig), "BFTTrainer": (BFTTrainer, BFTConfig)}


def write_rows(folder: Path, *, rows: int, length: int = 16) -> None:
    """Writes rows of random ids, which are also their labels."""
    ids = np.random.default_rng(0).integers(3, 200, rows * length)
    column = pa.ListArray.from_arrays(pa.array(np.arange(0, rows * length + 1, length, dtype=np.int32)), pa.array(ids))
    Dataset(pa.table({"input_ids": column, "labels": column})).save_to_disk(folder)


def measure(trainer: str, folder: str) -> dict[str, Any]:
    """Returns seconds and peak MB of the construction, and the MB before it."""
    datasets.disable_caching()
    trainer_class, config_class = TRAINERS[trainer]
    rows, model, tokenizer = load_from_disk(folder), build_model(), build_tokenizer()
    with TemporaryDirectory() as output_dir:
        args = config_class(output_dir, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True)
        before = reset_peak()
        seconds = timed(lambda: trainer_class(model, args=args, train_dataset=rows, processing_class=tokenizer))
    return {"seconds": round(seconds, 2), "before_mb": before // 10**6, "peak_mb": peak() // 10**6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=json.loads)
    parser.add_argument("--memory-gib", type=float, default=64)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.case:
        answer(lambda: measure(options.case["trainer"], options.case["folder"]), options.memory_gib)
        return
    with TemporaryDirectory() as folder:
        write_rows(Path(folder), rows=options.rows)
        cases = [{"part": "prepare", "rows": options.rows, "trainer": name, "folder": folder} for name in TRAINERS]
        out = Path(__file__).with_suffix(".csv")
        measure_all(Path(__file__), cases, repeats=3, memory_gib=options.memory_gib, out=out)
    pd.read_csv(out).drop(columns="folder").to_csv(out, index=False)


if __name__ == "__main__":
    main()
