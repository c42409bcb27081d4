"""Runs the steps of a study: several at a time, resumable, and a failure stops no other step."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from bft_trl.io import last_complete_checkpoint, lock, write_text
from bft_trl.study.records import Records
from bft_trl.study.steps import Step, Steps, measured, shown

logger = logging.getLogger(__name__)

_RUN = "import sys; from bft_trl.cli.main import main; sys.exit(main(sys.argv[1:]))"


class Running(NamedTuple):
    """A process of a step."""

    step: Step
    slot: int
    process: subprocess.Popen[bytes]
    start: float


def run_steps(steps: Steps, records: Records, *, jobs: int, keep_adapters: bool = False) -> None:
    """Runs all steps that are not done, `jobs` at a time, and adds what they measure to the records.

    Each process has one GPU, or one CPU and one thread. Training that was killed continues from its last checkpoint.
    On an interrupt the processes are ended.
    """
    for step in steps.known(records):
        if step.options and records.options(step.run, step.kind) not in (None, step.options):
            records.forget(step.run, step.kind)
            shutil.rmtree(steps.folder(step.run) / step.kind, ignore_errors=True)
    running: list[Running] = []
    total = sum(steps.count().values())
    done = sum(records.status(step.run, step.kind) == "done" for step in steps.known(records))
    with tqdm(total=total, initial=done, desc="Study", unit="step") as progress:
        try:
            while True:
                slots = set(range(jobs)) - {found.slot for found in running}
                waiting = steps.ready(records, {found.step.run for found in running}) if slots else []
                ready = [step for step in waiting if not _is_written(steps.folder(step.run) / step.kind)]
                complete = [step for step in ready if steps.is_complete(step)]
                if complete:  # a study that was killed did not add them
                    for step in complete:
                        _add(step, {}, steps, records)
                        progress.update()
                    continue
                # A process that a killed study left keeps its slot.
                free = sorted(slots)[len(waiting) - len(ready) :]
                running += [_start(step, slot, steps) for step, slot in zip(ready, free, strict=False)]
                if slots and not waiting and not running:
                    return
                if ready:
                    _write_status(steps, running)
                finished = _finished(running)
                running = [found for found in running if found not in finished]
                for found in finished:
                    _finish(found, steps, records)
                    progress.update()
                if finished and not keep_adapters:
                    _delete_losers(steps, records, {found.step.run for found in running})
        finally:
            for found in running:
                found.process.terminate()
            for found in running:
                found.process.wait()
            _write_status(steps, [])


def _start(step: Step, slot: int, steps: Steps) -> Running:
    folder = steps.folder(step.run)
    folder.mkdir(parents=True, exist_ok=True)
    command = [*step.command]
    output_dir = folder / step.kind
    if step.trial is not None and step.kind == "train":
        import yaml

        write_text(folder / "train.yaml", yaml.safe_dump(steps.train_config(step.trial), sort_keys=False))
        flag = "--overwrite_output_dir"
        with suppress(ValueError):
            last_complete_checkpoint(output_dir)
            flag = "--resume_from_checkpoint"
        command += [flag, "True"]
    environment, pin = _device(slot)
    with (folder / f"{step.kind}.log").open("wb") as log:
        log.write(f"{shown(step)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            preexec_fn=pin,
            start_new_session=True,  # Ctrl-C reaches the study alone: a second signal would end training at once
        )
    return Running(step, slot, process, time.monotonic())


def _is_written(output_dir: Path) -> bool:
    """Whether a process still writes there, which a study that was killed has left."""
    try:
        with lock(output_dir):
            return False
    except ValueError:
        return True


def _device(slot: int) -> tuple[dict[str, str], Any]:
    """Environment of a process, and what binds it to one CPU where there is no GPU."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[slot % count]}, None
    if not hasattr(os, "sched_setaffinity"):  # macOS and Windows
        return {"OMP_NUM_THREADS": "1"}, None
    cpus = sorted(os.sched_getaffinity(0))
    cpu = cpus[slot % len(cpus)]
    return {"OMP_NUM_THREADS": "1"}, lambda: os.sched_setaffinity(0, {cpu})


def default_jobs() -> int:
    """Returns the number of GPUs, else of CPUs."""
    import torch

    return torch.cuda.device_count() or len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))


def _finished(running: list[Running]) -> list[Running]:
    """Processes that have ended, after a short wait if there are none."""
    finished = [found for found in running if found.process.poll() is not None]
    if not finished:
        time.sleep(0.5)
    return finished


def _finish(found: Running, steps: Steps, records: Records) -> None:
    step, folder = found.step, steps.folder(found.step.run)
    seconds = {"seconds": round(time.monotonic() - found.start, 1)}
    if found.process.returncode == 0:
        _add(step, seconds, steps, records)
        return
    lines = (folder / f"{step.kind}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    code = found.process.returncode
    reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}: {lines[-1][-200:]}"
    _add_failed(step, seconds, reason, steps, records)


def _add(step: Step, seconds: dict[str, float], steps: Steps, records: Records) -> None:
    try:
        numbers, scores, answers = measured(step, steps.folder(step.run))
    except (OSError, ValueError, KeyError) as error:
        _add_failed(step, seconds, f"its results cannot be read: {error}", steps, records)
        return
    options = {"options": step.options} if step.options else {}
    records.add(step.run, step.kind, seconds | numbers | options, scores, answers)


def _add_failed(step: Step, seconds: dict[str, float], error: str, steps: Steps, records: Records) -> None:
    log = steps.folder(step.run) / f"{step.kind}.log"
    logger.warning("%s of %s failed: %s (%s)", step.kind, step.run, error, log)
    records.add(step.run, step.kind, seconds | {"error": error}, status="failed")


def _delete_losers(steps: Steps, records: Records, busy: set[str]) -> None:
    for trial in steps.losers(records):
        if trial.id not in busy:
            shutil.rmtree(steps.folder(trial.id) / "train", ignore_errors=True)


def _write_status(steps: Steps, running: list[Running]) -> None:
    names = [{"run": found.step.run, "kind": found.step.kind} for found in running]
    write_text(steps.output_dir / "running.json", json.dumps(names) + "\n")


def time_left(steps: Steps, records: Records, *, jobs: int, rough: Mapping[str, float]) -> dict[str, Any]:
    """Returns the number of steps by kind that are done, failed and left, and the seconds that are left.

    Args:
        steps, records: of the study.
        jobs: number of processes at a time.
        rough: estimated seconds of a step by kind, for kinds of which none is done.
    """
    counts, seconds = {}, 0.0
    done = records.steps[records.steps["status"] == "done"]
    known = {(step.run, step.kind) for step in steps.known(records)}
    for kind, total in steps.count().items():
        rows = done[(done["kind"] == kind) & done["run"].map(lambda run, kind=kind: (run, kind) in known).astype(bool)]
        failed = int(((records.steps["kind"] == kind) & (records.steps["status"] == "failed")).sum())
        # A step that outlived a study that was killed has no time.
        times = pd.to_numeric(rows.get("seconds", pd.Series())).dropna()
        mean = float(times.mean()) if len(times) else rough[kind]
        counts[kind] = {"all": total, "done": len(rows), "failed": failed, "seconds": mean}
        seconds += mean * max(0, total - len(rows))
    return {"kinds": counts, "seconds": seconds / jobs}
