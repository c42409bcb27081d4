"""`bft-trl compare`: runs against a baseline run on the same documents, with paired tests."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.comparison.answers import document_tables
from bft_trl.comparison.published import PUBLISHED, PUBLISHED_KIND
from bft_trl.comparison.runs import Run, align_runs, combine_seeds, differences, load_runs
from bft_trl.comparison.statistics import (
    MCNEMAR,
    OVER_SEEDS,
    holm,
    paired_interval,
    paired_test,
    seeds_interval,
    smallest_difference,
    smallest_of_interval,
)
from bft_trl.comparison.systems import RECORDED_KIND, is_system, recorded_runs
from bft_trl.evaluation.samples import RECORDED
from bft_trl.io import check_folder, write_files

logger = logging.getLogger(__name__)


def compare(
    runs: Sequence[str],
    baseline: str,
    output_dir: Path,
    *,
    systems: Sequence[str] = (),
    common_documents: bool = False,
    seed: int = 0,
    n_resamples: int = 9999,
) -> dict[str, Any]:
    """Writes `comparison.json`, `.csv`, `index.html`, `forest.png` and `.svg`, and returns what is in the first.

    Args:
        runs: "PATH", "NAME=PATH" or, for runs that differ in the seed, "NAME=PATH,PATH,PATH"; see [`load_runs`].
        baseline: the name or the path of one of `runs`, another run in the same form, or a recorded system.
        output_dir: folder.
        systems: recorded systems to compare with on the same documents, see [`recorded_runs`].
        common_documents: compare the documents of a task that all runs have; False raises ValueError if they differ.
        seed: of the bootstrap and the permutations.
        n_resamples: number of bootstrap samples and of permutations.

    Raises ValueError or FileNotFoundError, before anything is written, for runs that do not exist, are broken, or
    differ from the baseline in the settings or documents of a task.
    """
    if n_resamples < 99 or seed < 0:
        raise ValueError(f"`n_resamples={n_resamples}` must be 99 or more, `seed={seed}` 0 or more.")
    check_folder(output_dir)
    base, others, references = _load_all(runs, baseline, systems)
    not_compared = _not_compared(base, others)
    if common_documents:
        base, others, references = _common(base, others, references)
    _check_comparable(base, others)
    result = compare_loaded(base, others, references, not_compared, seed=seed, n_resamples=n_resamples)
    _write(result, document_tables(base, others, list(result["tasks"])), output_dir)
    return result


def compare_loaded(
    base: Run,
    others: Sequence[Run],
    references: Sequence[Run],
    not_compared: dict[str, list[str]],
    *,
    seed: int = 0,
    n_resamples: int = 9999,
) -> dict[str, Any]:
    """Returns what [`compare`] writes to comparison.json, of runs that are comparable."""
    rows = _rows(base, others, np.random.default_rng(seed), n_resamples, not_compared)
    sizes = {row["task"]: row["n"] for row in rows}
    return {
        "format": 3,
        "baseline": base.name,
        "runs": [run.name for run in others],
        "recorded": [run.name for run in (base, *others) if run.kind == RECORDED_KIND],
        "seed": seed,
        "n_resamples": n_resamples,
        "tasks": {task: {"n": n, "settings": dict(base.settings.get(task, {}))} for task, n in sizes.items()},
        "not_compared": not_compared,
        "rows": rows,
        "reference_rows": _reference_rows(rows, base, references),
    }


def _load_all(specs: Sequence[str], baseline: str, systems: Sequence[str]) -> tuple[Run, list[Run], list[Run]]:
    """The baseline run, the other runs, and the baselines that are in their folders."""
    loaded = {spec: _load(spec) for spec in dict.fromkeys(specs)}
    models = [run for runs in loaded.values() for run in runs if run.kind == "model"]
    unknown = baseline not in [run.name for run in models] and not Path(baseline).exists()
    by_system = unknown and bool(models) and is_system(baseline)
    if by_system:
        systems = [baseline, *systems]
    base = models[0] if by_system else _find(baseline, loaded, models)
    models = [align_runs(base, run) for run in models]
    references = [align_runs(base, run) for runs in loaded.values() for run in runs if run.kind != "model"]
    recorded = recorded_runs(systems, models) if systems else []
    repeated = sorted(name for name, count in Counter(run.name for run in (*models, *recorded)).items() if count > 1)
    if repeated:
        raise ValueError(f"`runs`: two runs have the name {', '.join(map(repr, repeated))}; write NAME=RUN.")
    if by_system:
        base = recorded[0]
    others = [run for run in (*models, *recorded) if run.name != base.name]
    if not others:
        raise ValueError("`runs`: nothing to compare with the baseline; name another run.")
    return base, others, references


def _find(baseline: str, loaded: dict[str, list[Run]], models: list[Run]) -> Run:
    """The run that `baseline` names; a folder that is not among the runs is added to `models`."""
    found = [run for run in models if run.name == baseline]
    if not found:
        same = [spec for spec in loaded if _parse(spec)[1][0].resolve() == Path(baseline).resolve()]
        if not same and not all(path.exists() for path in _parse(baseline)[1]):
            known = ", ".join(repr(run.name) for run in models)
            raise ValueError(
                f"`baseline={baseline!r}` is neither one of the runs ({known}), a folder nor a recorded system."
            )
        if not same:
            loaded[baseline] = _load(baseline)
            models += [run for run in loaded[baseline] if run.kind == "model"]
        found = [run for run in loaded[same[0] if same else baseline] if run.kind == "model"]
        if len(found) > 1:
            names = ", ".join(repr(run.name) for run in found)
            raise ValueError(
                f"`baseline={baseline!r}` has several models: add it to the runs and name one of {names}."
            )
    return found[0]


def _common(base: Run, others: Sequence[Run], references: Sequence[Run]) -> tuple[Run, list[Run], list[Run]]:
    """The runs with those documents of each task that all runs with the task have."""
    units: dict[str, pd.Index] = {}
    for run in (base, *others):
        for task in run.tasks:  # a document may lack one of the metrics
            found = pd.concat([table.iloc[:, 0] for (of, _), table in run.scores.items() if of == task])
            index = found.index.unique()
            units[task] = index if task not in units else units[task].intersection(index, sort=False)
    shared = {task: index for task, index in units.items() if task in base.tasks}
    for task, index in shared.items():
        sizes = {
            run.name: len(table) for run in (base, *others) for (of, _), table in run.scores.items() if of == task
        }
        if index.empty:
            raise ValueError(f"`common_documents`: no document of {task} is in all of {', '.join(sizes)}.")
        counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        logger.info("%s: %d documents are in all runs (%s)", task, len(index), counts)
    restricted = [run.restricted(shared) for run in (base, *others)]
    return restricted[0], restricted[1:], [run.restricted(shared) for run in references]


def _parse(spec: str) -> tuple[str | None, list[Path]]:
    """Name and folders of "PATH", "NAME=PATH" or "NAME=PATH,PATH"."""
    if Path(spec).exists():
        return None, [Path(spec)]
    name, equals, paths = spec.partition("=") if "=" in spec else ("", "", spec)
    parts = paths.split(",")
    if (equals and not name) or not all(parts) or (len(parts) > 1 and not name):
        raise ValueError(f"`runs`: {spec!r} is not PATH, NAME=PATH or NAME=PATH,PATH.")
    return name or None, [Path(part) for part in parts]


def _load(spec: str) -> list[Run]:
    name, paths = _parse(spec)
    folders = [load_runs(path, name=name) for path in paths]
    if name is None or len(paths) == 1:
        return folders[0]
    models = [run for found in folders for run in found if run.kind == "model"]
    if len({path.resolve() for path in paths}) < len(paths) or len(models) > len(paths):
        raise ValueError(f"`runs`: {spec!r} must name different folders, each with one seed of the same method.")
    return [combine_seeds(name, models), *(run for run in folders[0] if run.kind != "model")]


def _not_compared(base: Run, others: Sequence[Run]) -> dict[str, list[str]]:
    """Per run the tasks, and the metrics of shared tasks, that only the run or only the baseline has."""
    found = {}
    for run in others:
        tasks = set(base.tasks) ^ set(run.tasks)
        metrics = {f"{task}, {metric}" for task, metric in base.scores.keys() ^ run.scores.keys() if task not in tasks}
        if tasks or metrics:
            found[run.name] = sorted(tasks | metrics)
    return found


def _check_comparable(base: Run, others: Sequence[Run]) -> None:
    """Raises ValueError that lists all differences of settings and documents."""
    problems = [problem for run in others for problem in differences(base, run)]
    if base.kind == RECORDED_KIND or RECORDED in base.tasks:
        # It has no prompt, so the runs, which may have been of different tasks, are also checked against each other.
        pairs = combinations([run for run in others if run.kind != RECORDED_KIND], 2)
        problems += [problem for first, run in pairs for problem in differences(first, run)]
    if problems:
        raise ValueError("These runs cannot be compared:\n  " + "\n  ".join(problems))


def _rows(
    base: Run,
    others: Sequence[Run],
    rng: np.random.Generator,
    n_resamples: int,
    not_compared: dict[str, list[str]],
) -> list[dict[str, Any]]:
    """One row per task, metric and run, with Holm's adjustment over all. Metrics with NaN go into `not_compared`.

    Raises ValueError if no run shares a task with the baseline.
    """
    wanted = [(task, metric, run) for task, metric in base.scores for run in others if (task, metric) in run.scores]
    rows = []
    for task, metric, run in tqdm(wanted, desc="Comparing", disable=len(wanted) < 20):
        theirs = base.scores[task, metric]
        a, b = run.scores[task, metric].reindex(theirs.index).to_numpy(), theirs.to_numpy()
        n_nan = int(np.isnan(a.mean(1) - b.mean(1)).sum())
        if n_nan:
            not_compared.setdefault(run.name, []).append(f"{task}, {metric} ({n_nan} of {len(a)} without a number)")
            continue
        rows.append({"task": task, "metric": metric, "run": run.name, "n": len(a)})
        rows[-1] |= _tested(a, b, rng=rng, n_resamples=n_resamples)
        for prefix, scores in (("", a), ("baseline_", b)):
            means = scores.mean(axis=0)
            spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
            rows[-1] |= {f"{prefix}n_seeds": len(means), f"{prefix}seed_sd": spread}
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    for name, missing in not_compared.items():
        logger.warning("Not compared, because '%s' or the baseline has no scores: %s", name, ", ".join(missing))
    if not rows:
        raise ValueError(f"No run shares a task with the baseline '{base.name}', which has {sorted(base.tasks)}.")
    return rows


def _tested(a: np.ndarray, b: np.ndarray, *, rng: np.random.Generator, n_resamples: int) -> dict[str, Any]:
    """Means, their difference with its interval and test, of scores of the same documents, one column per seed."""
    over_seeds = min(*a.shape, *b.shape) > 1
    if over_seeds:
        interval, test = seeds_interval(a, b, rng=rng, n_resamples=n_resamples)
        smallest = smallest_of_interval(interval)
    else:
        a, b = a.mean(1), b.mean(1)
        interval = paired_interval(a - b, rng=rng, n_resamples=n_resamples)
        test = paired_test(a, b, rng=rng, n_resamples=n_resamples)
        # Scores that are all 0 may be of a metric that is not binary.
        smallest = smallest_difference(a - b, binary=test.name == MCNEMAR and bool(a.any() or b.any()))
    return {
        "score": float(a.mean()),
        "baseline_score": float(b.mean()),
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "interval_of": OVER_SEEDS if over_seeds else "documents",
        "p": test.p,
        "test": test.name,
        "smallest_difference": smallest,
    }


def _reference_rows(rows: Sequence[Mapping[str, Any]], base: Run, references: Sequence[Run]) -> list[dict[str, Any]]:
    """Means of baselines and oracles on the documents that are compared, and published results."""
    keys = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for task, metric in keys:
        for run in references:
            # On other documents (of a model that has answered only some) it is no baseline.
            table = run.scores.get((task, metric))
            if table is not None and set(table.index) == set(base.scores[task, metric].index):
                row: dict[str, Any] = {"task": task, "metric": metric, "name": run.name, "kind": run.kind}
                row |= {"value": float(run.unit_scores(task, metric).mean()), "spread": None}
                found.setdefault((task, metric, run.name), row | {"source": "computed on these documents"})
    tasks = {task for task, _ in keys}
    named = any("scorer_version" in base.settings.get(task, {}) for task in tasks)
    published = [entry for entry in PUBLISHED if entry.task in tasks or (named and entry.task == "all")]
    return [*found.values(), *(entry._asdict() | {"kind": PUBLISHED_KIND} for entry in published)]


def _write(result: Mapping[str, Any], documents: Sequence[Mapping[str, Any]], output_dir: Path) -> None:
    from bft_trl.comparison.forest import forest_plot
    from bft_trl.comparison.page import html_page

    svg = forest_plot(result, "svg")
    texts = {
        "comparison.json": json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "comparison.csv": pd.DataFrame(result["rows"]).to_csv(index=False),
        "index.html": html_page(result, svg.decode("utf-8"), documents=documents),
    }
    contents = {name: text.encode("utf-8") for name, text in texts.items()}
    contents |= {"forest.svg": svg, "forest.png": forest_plot(result, "png")}
    write_files({output_dir / name: content for name, content in contents.items()})
