"""`bft-trl eval --panel`: what a run forgot. General tasks for an adapter and for its base, and the paired change."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bft_trl.comparison.compare import compare
from bft_trl.evaluation.runner import available, evaluate, given, include_path
from bft_trl.io import check_folder
from bft_trl.models import Run, fingerprint

logger = logging.getLogger(__name__)

# Flags of lm-eval that a comparison of two models cannot bear, and why.
REFUSED = {
    ("--use_cache", "-c"): "its answers are kept without the model's name, so the adapter would get those of its base",
    ("--samples", "-E"): "it names documents task by task; use --panel-limit",
    ("--predict_only", "-x"): "without scores there is nothing to compare",
}


def check_panel(
    run: Run,
    tasks: Sequence[str],
    out: Path,
    *,
    limit: int | None = None,
    metadata: Mapping[str, str] | None = None,
    passed_on: Sequence[str] = (),
) -> None:
    """Raises ValueError for a panel that cannot be evaluated: to be known before anything runs.

    Arguments as of [`evaluate_panel`].
    """
    from lm_eval.tasks import TaskManager

    if run.adapter is None:
        raise ValueError("`panel` shows what an adapter changed in its base: it needs `adapter`, without `base_only`.")
    if not tasks:
        raise ValueError("`panel` names no task: give names of lm-eval, with commas between them.")
    if limit is not None and limit < 1:
        raise ValueError(f"`panel_limit={limit}` must be 1 or more.")
    for flags, reason in REFUSED.items():
        if given(passed_on, *flags):
            raise ValueError(f"`{flags[0]}` does not go with `panel`: {reason}.")
    check_folder(out, name="out")
    known = TaskManager(include_path=include_path(tasks, passed_on), metadata={**run.model_args(), **(metadata or {})})
    unknown = [task for task in tasks if not task.endswith(".yaml") and not known.match_tasks([task])]
    unknown += [task for task in tasks if task.endswith(".yaml") and not Path(task).is_file()]
    if unknown:
        raise ValueError(
            f"`panel`: lm-eval knows no {', '.join(map(repr, unknown))}. `lm-eval ls tasks` lists all names; tasks of "
            "your own are found with --include_path DIR."
        )
    missing = available(tasks, metadata or {})[1]
    if missing:
        raise ValueError("`panel`: " + "; ".join(f"{task}: {reason}" for task, reason in missing.items()))
    try:
        known.load([task for task in tasks if not task.endswith(".yaml")])  # which fetches what is not in the cache
    except OSError as error:
        raise ValueError(f"`panel`: the data of its tasks cannot be loaded ({error}).") from error


def evaluate_panel(
    run: Run,
    tasks: Sequence[str],
    out: Path,
    *,
    limit: int | None = None,
    metadata: Mapping[str, str] | None = None,
    passed_on: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates `tasks` for the base (into `out`/panel/base) and the adapter (`out`/panel/tuned), and compares them.

    Each lies in a folder named after all settings, weights and tokenizer; what lies there already is not made again.

    Args:
        run: an adapter on its base; both are loaded in the same way.
        tasks: names of lm-eval's tasks and groups, or paths of YAML files.
        out: the comparison goes into `out`/forgetting.
        limit: documents of each task; None takes all, or as many as a `--limit` that is passed on says.
        metadata: as of [`evaluate`], for tasks of ours.
        passed_on: further flags of `lm_eval run`.

    Returns:
        The comparison of "tuned" with "base"; see [`compare`].
    """
    if limit is not None:
        passed_on = [*passed_on, "--limit", str(limit)]  # the last one counts
    folders = {}
    for name, model in (("base", replace(run, adapter=None)), ("tuned", run)):
        folder = out / "panel" / name / _settings_hash(model, tasks, metadata or {}, passed_on)
        folders[name] = folder
        if folder.is_dir():
            logger.info("Panel, %s: reused %s, made with the same settings (delete it to make it anew)", name, folder)
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: only a folder with all results takes the name that is looked for.
        with TemporaryDirectory(prefix=".panel-", dir=folder.parent) as temporary:
            evaluate(model, tasks, Path(temporary) / "results", metadata=metadata, passed_on=passed_on)
            (Path(temporary) / "results").rename(folder)
    runs = [f"{name}={folder}" for name, folder in folders.items()]
    return compare(runs, "base", out / "forgetting")


def _settings_hash(run: Run, tasks: Sequence[str], metadata: Mapping[str, str], passed_on: Sequence[str]) -> str:
    """12 digits that differ where scores could: weights, tokenizer, loading, tasks, flags, version of lm-eval."""
    from lm_eval import __version__

    settings = {
        "weights": fingerprint(run),
        "quantization": run.quantization,
        "chat template": run.chat_template,
        "tokenizer": [hashlib.sha256(file.read_bytes()).hexdigest() for file in _tokenizer_files(run)],
        "tasks": list(tasks),
        "task files": [hashlib.sha256(file.read_bytes()).hexdigest() for file in _task_files(tasks, passed_on)],
        "metadata": dict(metadata),
        "passed on": list(passed_on),
        "lm-eval": __version__,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _tokenizer_files(run: Run) -> list[Path]:
    folder = Path(run.tokenizer or run.base)
    files = [path for pattern in ("*token*", "*vocab*", "merges.txt", "*.jinja") for path in folder.glob(pattern)]
    return sorted({path for path in files if path.is_file()})


def _task_files(tasks: Sequence[str], passed_on: Sequence[str]) -> list[Path]:
    """Files that say what a task of the user's own is; lm-eval's own come with its version."""
    folder = Path(include_path(tasks, passed_on))
    files = [path for pattern in ("**/*yaml", "**/*.py") for path in folder.glob(pattern)]
    return sorted({path for path in [*files, *map(Path, tasks)] if path.is_file()})
