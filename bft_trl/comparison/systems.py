"""Recorded systems as runs: their answers to the documents of evaluated runs, scored as the runs are."""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import pandas as pd

from bft_trl.comparison.runs import Run
from bft_trl.evaluation.names import Scorer, load_scorer
from bft_trl.evaluation.recorded import recorded_systems, score_answers

RECORDED_KIND = "recorded"


def recorded_runs(systems: Sequence[str], runs: Sequence[Run]) -> list[Run]:
    """Returns one run per system, with scores of its answers to the documents of `runs`.

    Args:
        systems: names of systems that come with the package, in any case.
        runs: runs with answers.

    Raises ValueError for a name that is not known, and for a system without an answer to any of the documents.
    """
    recorded = recorded_systems()
    known = recorded["system"].unique()
    chosen = list(dict.fromkeys(_known(system, known) for system in systems))
    documents = pd.concat([run.answers for run in runs]).dropna(subset="document")
    documents = documents[~documents.index.duplicated()]
    if documents.empty:
        raise ValueError(
            "`with`: none of the runs has answers.parquet with gene sets or questions. Evaluate them again."
        )
    scores: dict[str, dict[tuple[str, str], pd.DataFrame]] = {system: {} for system in chosen}
    texts: dict[str, list[pd.DataFrame]] = {system: [] for system in chosen}
    settings: dict[str, Any] = {}
    for task, of_task in documents.groupby(level="task", sort=False):
        found = {system: _answered(of_task, recorded[recorded["system"] == system]) for system in chosen}
        found = {system: table for system, table in found.items() if len(table)}
        if not found:
            continue
        everything = pd.concat(found.values(), keys=found)
        parts = [json.loads(text) for text in everything["document"]]
        scorer = _scorer(str(task), runs) if "genes" in parts[0] else None
        settings[str(task)] = {} if scorer is None else scorer.settings
        # Together, so that every text is encoded once.
        metrics = score_answers(parts, everything["answer"].tolist(), scorer).set_index(everything.index)
        for system, table in found.items():
            units = table.index.get_level_values("unit")
            texts[system].append(table)
            for metric, column in metrics.loc[system].items():
                scores[system][str(task), str(metric)] = pd.DataFrame({0: column.to_numpy()}, index=units).dropna()
    for system in chosen:
        if not scores[system]:
            raise ValueError(f"`with`: {system} has no answer to any document of these runs.")
    return [Run(name, RECORDED_KIND, scores[name], settings, pd.concat(texts[name])) for name in chosen]


def is_system(name: str) -> bool:
    """Returns whether recorded answers of this system come with the package."""
    return name.lower() in {system.lower() for system in recorded_systems()["system"].unique()}


def _known(name: str, systems: Sequence[str]) -> str:
    lower = {system.lower(): system for system in systems}
    if name.lower() not in lower:
        close = [lower[key] for key in get_close_matches(name.lower(), lower, n=1)]
        hint = f" Do you mean {close[0]!r}?" if close else ""
        raise ValueError(f"`with`: {name!r} is no recorded system.{hint} There are {', '.join(sorted(systems))}.")
    return lower[name.lower()]


def _answered(documents: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """The documents that a system has an answer for, with the answer; joined by what is asked.

    GeneAgent's answers to NeST and MSigDB sets are joined by the id, in our tasks only.
    """
    answers = recorded.set_index("key")["answer"]
    where = documents["key"]
    if documents.index[0][0].startswith("bft_gene_sets"):
        units = documents.index.get_level_values("unit").to_series(index=documents.index)
        where = where.where(where.isin(answers.index), units)
    known = where.isin(answers.index)
    return documents[known].assign(answer=where[known].map(answers), prompt=None)


def _scorer(task: str, runs: Sequence[Run]) -> Scorer:
    """The scorer that the runs' names were scored with. Raises ValueError if it cannot be loaded again."""
    run = next(run for run in runs if task in run.settings and task in run.tasks)
    inputs, settings = run.inputs, run.settings[task]
    scorer = Scorer()
    if settings.get("encoder_fingerprint"):
        background = inputs.get("background") if settings.get("background_fingerprint") else "none"
        options = {name: inputs.get(name) for name in ("data_dir", "ontology")}
        scorer = load_scorer(str(inputs["encoder"]), background, **options)
    changed = [key for key, value in scorer.settings.items() if value != settings.get(key)]
    if changed:
        raise ValueError(
            f"`with`: '{run.name}' was scored with another {', '.join(changed)} than there is now. Evaluate it again, "
            "with `--overwrite_output_dir`."
        )
    return scorer
