"""The plan of a study with estimated time, and how far it is."""

import json
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pandas as pd

from bft_trl.io import lock
from bft_trl.study.execution import time_left
from bft_trl.study.inputs import Inputs
from bft_trl.study.plan import Study
from bft_trl.study.records import Records
from bft_trl.study.steps import Steps

logger = logging.getLogger(__name__)

_START = 15.0  # seconds to start a process and to load a small model


def log_plan(steps: Steps, records: Records, *, jobs: int) -> None:
    """Logs what a study trains and evaluates, and how long it takes."""
    for model, data, objectives in steps.study.grid():
        logger.info("%s, %s: %s", model, data, ", ".join(objectives))
    values = ", ".join(f"{name}: {values}" for name, values in steps.study.tune.items())
    logger.info("Chosen on validation documents: %s. Seeds: %s.", values or "nothing", steps.study.seeds)
    _log_counts(steps, records, jobs)


def log_status(study: Study, output_dir: Path, *, jobs: int) -> Steps:
    """Logs how many steps of the study in `output_dir` are done, running and failed, and the time left.

    Returns its steps. Raises ValueError if no study was started there.
    """
    if not (output_dir / "running.json").is_file():
        raise ValueError(f"`output_dir={str(output_dir)!r}` has no study; start it with `bft-trl study FILE`.")
    blank = {name: Inputs("", "", Path(), Path()) for name in study.data}
    steps, records = Steps(study, blank, dict.fromkeys(study.models, ""), output_dir), Records(output_dir)
    _log_counts(steps, records, jobs)
    try:
        with lock(output_dir):
            logger.info("Not running.")
    except ValueError:
        for entry in json.loads((output_dir / "running.json").read_text(encoding="utf-8")):
            logger.info("Running: %s of %s", entry["kind"], entry["run"])
    for row in records.steps[records.steps["status"] == "failed"].to_dict("records"):
        logger.info("Failed: %s of %s: %s", row["kind"], row["run"], row["error"])
    return steps


def _log_counts(steps: Steps, records: Records, jobs: int) -> None:
    found = time_left(steps, records, jobs=jobs, rough=_rough(steps))
    for kind, count in found["kinds"].items():
        failed = f", {count['failed']} failed" if count["failed"] else ""
        logger.info("%s: %d of %d done%s, %.0f s each", kind, count["done"], count["all"], failed, count["seconds"])
    left = timedelta(seconds=round(found["seconds"]))
    logger.info("About %s left with %d at a time%s.", left, jobs, "" if len(records.steps) else " (rough estimate)")


def _rough(steps: Steps) -> Mapping[str, float]:
    """Seconds of a step by kind, from the speed of a matrix product here and the length of the rows."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.ones(1024, 1024, device=device)
    (matrix @ matrix).sum().item()  # the first one is slow
    start = time.perf_counter()
    for _ in range(5):
        (matrix @ matrix).sum().item()
    per_second = 5 * 2 * 1024**3 / (time.perf_counter() - start)
    train, test = 0.0, 0.0
    grid = list(steps.study.grid())
    for model, data, _ in grid:
        parameters, options = _parameters(steps.bases[model]), steps.study.train_options(model, data)
        n_rows, tokens = _rows(steps.inputs[data].dataset_name)
        batch = options.get("per_device_train_batch_size", 4) * options.get("gradient_accumulation_steps", 2)
        rows = options.get("max_steps", 0) * batch or n_rows * options.get("num_train_epochs", 3)
        train += 6 * parameters * tokens * rows / per_second / len(grid)
        test += 2 * parameters * 100 * (tokens + 100) / per_second / len(grid)  # 100 documents
    return {"train": _START + train, **dict.fromkeys(("validation", "test", "inspect"), _START + test)}


def _parameters(base: str) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not base:
        return 0
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).num_parameters()


def _rows(dataset_name: str) -> tuple[int, float]:
    """Number of rows, and mean tokens of one, four characters each; 1,000 rows of 300 tokens if not known."""
    path = Path(dataset_name) / "train.parquet"
    if not path.is_file():
        return 1000, 300.0
    table = pd.read_parquet(path)
    texts = table[["prompt", "completion"]].map(lambda turns: sum(len(turn["content"]) for turn in turns))
    return len(table), float(texts.sum(axis=1).mean()) / 4
