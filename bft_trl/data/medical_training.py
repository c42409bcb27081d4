"""Medical questions as training data: keep evaluation data out, split, and write TRL rows with their data card."""

import logging
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bft_trl.data.card import write_data
from bft_trl.data.documents import read_documents
from bft_trl.data.leakage import find_leaks, normalised_text
from bft_trl.data.medical import SOURCES, load_questions, local_file, question_row
from bft_trl.data.splits import split
from bft_trl.io import check_folder

logger = logging.getLogger(__name__)


def build(
    sources: Sequence[str],
    out: Path,
    *,
    data_dir: Path | None = None,
    train_rows: int | None = None,
    eval_rows: int = 150,
    excluded: Sequence[Path] = (),
    reasoning: bool = True,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Writes `train.parquet`, `eval.parquet` and their README into `out`; nothing before all input has been read.

    Args:
        sources: keys of `SOURCES`, each with its training split; "source:split" takes another split.
        out: folder.
        data_dir: folder with `<source>_<split>.parquet`; None takes the Hub and the publishers.
        train_rows, eval_rows: rows of each file; None takes all that remain.
        excluded: files of evaluation data that must not leak into either.
        reasoning: explanations before the answers; False gives the answers alone.
        seed: of the split. Rows with the same question stay together.

    Returns the two tables of rows. Raises ValueError or OSError for values and files that cannot be used.
    """
    check_folder(out, name="out")
    if seed < 0:
        raise ValueError(f"`seed={seed}` must be 0 or more.")
    if len(set(sources)) < len(sources) or not sources:
        raise ValueError(f"`sources={list(sources)}`: name each data set once, and one at least.")
    tests = [(path, read_documents(path)[1]) for path in excluded]
    names = [(source, part or SOURCES[source].train) for source, part in map(_parse, sources)]
    rows = pd.DataFrame([row for name in names for row in _rows(*name, data_dir, reasoning)])
    documents = _documents(rows)
    leaked: set[int] = set()
    for _, test in tests:
        leaked |= set(find_leaks(documents, test)["train_row"])
    kept = rows.drop(index=rows.index[sorted(leaked)]).reset_index(drop=True)
    logger.info("%d of %d questions remain after excluding evaluation data", len(kept), len(rows))
    groups = defaultdict(list)
    for i, question in enumerate(kept["question"]):
        groups[normalised_text(question)].append(i)
    sizes = {"eval": eval_rows, "train": train_rows}
    tables = split(kept, list(groups.values()), sizes, rng=np.random.default_rng(seed))
    files = {out / f"{name}.parquet": table for name, table in tables.items()}
    command = [f"bft-trl data medical --sources {shlex.join(sources)} --out {shlex.quote(out.name)}"]
    command += [f"--data-dir {shlex.quote(data_dir.name)}"] if data_dir else []
    command += [f"--eval-rows {eval_rows} --seed {seed}"]
    command += [f"--train-rows {train_rows}"] if train_rows is not None else []
    command += [] if reasoning else ["--no-reasoning"]
    command += [f"--exclude {shlex.join(path.name for path in excluded)}"] if excluded else []
    written = _documents(pd.concat(tables.values(), ignore_index=True))
    counts = pd.concat(tables.values())["source"].value_counts()
    write_data(
        files,
        title="Medical questions",
        description="Questions and answers in TRL's conversational prompt-completion form, with `id`, `source` and "
        "`question` beside it. No question is in both files.",
        extra_column=("sources", lambda table: ", ".join(table["source"].value_counts().index)),
        exclusion="Evaluation data kept out, by id, by text and by 13 words in a row; `bft-trl data check` finds:",
        excluded=[(path.name, len(test), len(find_leaks(written, test))) for path, test in tests],
        attribution=[f"{name}: {count} rows, {SOURCES[name].licence}" for name, count in counts.items()],
        inputs=[*(local_file(data_dir, f"{source}_{part}") for source, part in names if data_dir), *excluded],
        command=command,
    )
    return tables


def _parse(name: str) -> tuple[str, str]:
    """Data set and split of "source:split"; "" for the training split."""
    source, _, part = name.partition(":")
    if source not in SOURCES:
        raise ValueError(f"`sources`: {source!r} is not known: choose from {', '.join(SOURCES)}.")
    return source, part


def _rows(source: str, part: str, data_dir: Path | None, reasoning: bool) -> list[dict[str, object]]:
    questions = load_questions(source, split=part, data_dir=data_dir, drop_unanswered=True)
    explained = questions["explanation"].notna().sum()
    logger.info("%s, %s: %d questions, %d with an explanation", source, part, len(questions), explained)
    return [question_row(row, source=source, reasoning=reasoning) for row in questions.to_dict("records")]


def _documents(rows: pd.DataFrame) -> pd.DataFrame:
    prompts = rows["prompt"].map(lambda turns: turns[0]["content"])
    return pd.DataFrame({"id": rows["id"], "text": rows["question"], "body": prompts})
