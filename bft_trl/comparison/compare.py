"""`bft-trl compare`: runs against a baseline on the same documents, with the tests that the question asks for."""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.comparison.baselines import floors_of
from bft_trl.comparison.published import PUBLISHED
from bft_trl.comparison.runs import Run, TaskScores, aligned, combined, differences, load_runs
from bft_trl.comparison.statistics import ALPHA, MCNEMAR, holm, paired_interval, paired_test, smallest_difference
from bft_trl.io import check_folder, write_files

logger = logging.getLogger(__name__)


def compare(
    runs: Sequence[str], baseline: str, out: Path, *, seed: int = 0, n_resamples: int = 9999
) -> dict[str, Any]:
    """Writes `comparison.json`, `.csv`, `.md`, `index.html`, `forest.png` and `.svg` into `out`; returns the first.

    Args:
        runs: "PATH", "NAME=PATH" or, for runs that differ in the seed, "NAME=PATH,PATH,PATH"; see [`load_runs`].
        baseline: the name or the path of one of `runs`, or another in the same form.
        out: folder.
        seed: of the bootstrap, the permutations and the floors.
        n_resamples: of bootstrap and permutations.

    Raises ValueError or FileNotFoundError, before anything is written, for runs that are not there, are broken, or
    differ from the baseline in version, prompts, shots, template, settings or documents of a task.
    """
    if n_resamples < 99:
        raise ValueError(f"`n_resamples={n_resamples}` must be 99 or more.")
    if seed < 0:
        raise ValueError(f"`seed={seed}` must be 0 or more.")
    base, others, references = _gather(runs, baseline)
    problems = [problem for run in others for problem in differences(base, run)]
    if problems:
        raise ValueError("These runs cannot be compared:\n  " + "\n  ".join(problems))
    tasks = {name: scores for name, scores in base.tasks.items() if any(name in run.tasks for run in others)}
    if not tasks:
        raise ValueError(
            f"No run shares a task with the baseline '{base.name}': it has {sorted(base.tasks)}, the runs have "
            f"{sorted({task for run in others for task in run.tasks})}."
        )
    left_out = {
        run.name: sorted(set(base.tasks) ^ set(run.tasks)) for run in others if set(base.tasks) != set(run.tasks)
    }
    for name, missing in left_out.items():
        logger.warning("Not compared, because '%s' or the baseline lacks them: %s", name, ", ".join(missing))
    check_folder(out, name="out")
    rng = np.random.default_rng(seed)
    rows = _rows(base, others, tasks, rng=rng, n_resamples=n_resamples)
    needed = math.ceil(2 * len(rows) / ALPHA)
    if n_resamples < needed:
        logger.warning(
            "With %d resamples no permutation test can stand after Holm's adjustment over %d tests: take %d or more.",
            *(n_resamples, len(rows), needed),
        )
    result = {
        "format": 1,
        "baseline": base.name,
        "runs": [run.name for run in others],
        "seed": seed,
        "n_resamples": n_resamples,
        "n_resamples_needed": needed,
        "tasks": {
            name: {"n": len(scores.scores), "settings": dict(scores.settings)} for name, scores in tasks.items()
        },
        "not_compared": left_out,
        "rows": rows,
        "reference_rows": _reference_rows(tasks, references, rng=rng),
    }
    _write(result, out)
    return result


def _gather(specs: Sequence[str], baseline: str) -> tuple[Run, list[Run], list[Run]]:
    """The baseline, the other runs, and floors that came with recorded answers."""
    loaded: list[Run] = []
    names: dict[Path, str] = {}
    for spec in dict.fromkeys(specs):
        found = _load(spec)
        loaded += found
        models = [run.name for run in found if run.kind == "model"]
        if len(models) == 1:
            names[_parse(spec)[1][0].resolve()] = models[0]
    wanted = names.get(Path(baseline).resolve(), baseline)
    found = [run for run in loaded if run.name == wanted and run.kind == "model"]
    if not found:
        if not all(path.exists() for path in _parse(baseline)[1]):
            known = ", ".join(repr(run.name) for run in loaded if run.kind == "model")
            raise ValueError(f"`baseline={baseline!r}` is neither one of the runs ({known}) nor a folder.")
        found = [run for run in _load(baseline) if run.kind == "model"]
        if len(found) > 1:
            known = ", ".join(repr(run.name) for run in found)
            raise ValueError(
                f"`baseline={baseline!r}` holds {len(found)} models: add it to the runs and name one of {known}."
            )
        loaded += found
    base = found[0]
    evaluated = [run for run in loaded if run.kind == "model"]
    repeated = sorted(name for name, count in Counter(run.name for run in evaluated).items() if count > 1)
    if repeated:
        raise ValueError(f"`runs`: the name {', '.join(map(repr, repeated))} stands twice; write NAME=RUN.")
    others = [aligned(base, run) for run in evaluated if run is not base]
    if not others:
        raise ValueError("`runs`: nothing to compare with the baseline; name another run.")
    references = {run.name: aligned(base, run) for run in loaded if run.kind != "model"}
    # A floor on other documents (of a model that has answered only some) is none for these.
    return base, others, [run for run in references.values() if not differences(base, run)]


def _parse(spec: str) -> tuple[str | None, list[Path]]:
    """Name and folders of "PATH", "NAME=PATH" or "NAME=PATH,PATH"."""
    if Path(spec).exists():
        return None, [Path(spec)]
    name, equals, paths = spec.partition("=")
    if not equals:
        return None, [Path(part) for part in spec.split(",")]
    if not name or not paths:
        raise ValueError(f"`runs`: {spec!r} is not PATH, NAME=PATH or NAME=PATH,PATH.")
    parts = [paths] if Path(paths).exists() else paths.split(",")
    if not all(parts):
        raise ValueError(f"`runs`: {spec!r} has an empty folder between or after its commas.")
    return name, [Path(part) for part in parts]


def _load(spec: str) -> list[Run]:
    name, paths = _parse(spec)
    if len(paths) == 1:
        return load_runs(paths[0], name=name)
    if name is None:
        raise ValueError(f"`runs`: {spec!r} has several folders; give them a name: NAME={spec}.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"`runs`: {spec!r} has the same folder twice: seeds must be separate runs.")
    runs = [[run for run in load_runs(path, name=name) if run.kind == "model"] for path in paths]
    if any(len(found) > 1 for found in runs):
        raise ValueError(f"`runs`: {spec!r} has a `score` output of several models, which are no seeds of one method.")
    return [combined(name, [found[0] for found in runs])]


def _rows(
    base: Run,
    others: Sequence[Run],
    tasks: Mapping[str, TaskScores],
    *,
    rng: np.random.Generator,
    n_resamples: int,
) -> list[dict[str, Any]]:
    """One row per task, metric and run; Holm's adjustment is over all of them."""
    wanted = [
        (task, metric, run)
        for task, scores in tasks.items()
        for metric in scores.scores
        for run in others
        if task in run.tasks and metric in run.tasks[task].scores
    ]
    rows = []
    for task, metric, run in tqdm(wanted, desc="Comparing", disable=len(wanted) < 20):
        theirs = tasks[task].scores[metric]
        ours = run.tasks[task].scores[metric].reindex(theirs.index)
        a, b = ours.to_numpy(), theirs.to_numpy()
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError(f"{task}: '{run.name}' or '{base.name}' has documents without a number for {metric}.")
        interval = paired_interval(a - b, rng=rng, n_resamples=n_resamples)
        test = paired_test(a, b, rng=rng, n_resamples=n_resamples)
        # Scores that are all 0 are of no kind.
        binary = test.name == MCNEMAR and bool(a.any() or b.any())
        means = run.tasks[task].seed_means.get(metric, [float(a.mean())])
        base_means = tasks[task].seed_means.get(metric, [float(b.mean())])
        rows.append(
            {
                "task": task,
                "metric": metric,
                "run": run.name,
                "n": len(a),
                "score": float(a.mean()),
                "baseline_score": float(b.mean()),
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "p": test.p,
                "test": test.name,
                "smallest_difference": smallest_difference(a - b, binary=binary),
                **_seeds("", means),
                **_seeds("baseline_", base_means),
            }
        )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def _seeds(whose: str, means: Sequence[float]) -> dict[str, Any]:
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return {f"{whose}n_seeds": len(means), f"{whose}seed_sd": spread}


def _reference_rows(
    tasks: Mapping[str, TaskScores], recorded: Sequence[Run], *, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Floors computed here, floors and oracles that came with recorded answers, and published figures."""
    rows = []
    for task, scores in tasks.items():
        floors = floors_of(task, scores, rng=rng)
        tables = {f"floor: {name}": ("floor", table) for name, table in floors.items()}
        tables |= {
            run.name: (run.kind, run.tasks[task].scores)
            for run in recorded
            if task in run.tasks and run.name not in tables
        }
        for name, (kind, table) in tables.items():
            rows += [
                {"task": task, "metric": metric, "name": name, "kind": kind, "value": float(table[metric].mean())}
                | {"spread": None, "source": "computed on these documents"}
                for metric in scores.scores
                if metric in table
            ]
    named = any(scores.names_gene_sets for scores in tasks.values())
    rows += [
        {"task": figure.task, "metric": figure.metric, "name": figure.system, "kind": "published, not re-run"}
        | {"value": figure.value, "spread": figure.spread, "source": figure.source}
        for figure in PUBLISHED
        if figure.task in tasks or (named and figure.task == "all")
    ]
    return rows


def _write(result: Mapping[str, Any], out: Path) -> None:
    """All files, each whole; what can fail is done before the first is written."""
    from bft_trl.comparison.forest import forest_plot
    from bft_trl.comparison.page import html_page, markdown_page

    svg = forest_plot(result, "svg")
    files = {
        "comparison.json": json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "comparison.csv": pd.DataFrame(result["rows"]).to_csv(index=False),
        "comparison.md": markdown_page(result),
        "index.html": html_page(result, svg.decode("utf-8")),
        "forest.svg": svg.decode("utf-8"),
    }
    contents = {name: text.encode("utf-8") for name, text in files.items()}
    contents["forest.png"] = forest_plot(result, "png")
    write_files({out / name: content for name, content in contents.items()})
