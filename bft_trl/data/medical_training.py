"""Medical questions as training data: keep evaluation data out, split, and write TRL rows with their data card."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bft_trl.data.card import write_data
from bft_trl.data.documents import read_documents
from bft_trl.data.leakage import normalize_text, split, without_leaks
from bft_trl.data.medical import SOURCES, load_questions, local_file, question_row
from bft_trl.io import check_folder

logger = logging.getLogger(__name__)

_DESCRIPTION = (
    "Questions and answers in TRL's conversational prompt-completion form, with the columns `id`, `source` and "
    "`question`. No question is in both files."
)


def build(
    sources: Sequence[str],
    output_dir: Path,
    *,
    data_dir: Path | None = None,
    train_rows: int | None = None,
    eval_rows: int = 150,
    exclude: Sequence[Path] = (),
    reasoning: bool = True,
    seed: int = 0,
    command: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Writes `train.parquet`, `eval.parquet` and their data card to `output_dir`.

    Args:
        sources: keys of `SOURCES`, each with its training split; "source:split" takes another split.
        output_dir: folder.
        data_dir: folder with `<source>_<split>.parquet`; None for cached downloads.
        train_rows, eval_rows: number of rows in each file; None takes all that remain.
        exclude: files of evaluation data that must not leak into either.
        reasoning: explanations before the answers; False gives the answers alone.
        seed: seed of the split. Rows with the same question stay together.
        command: command line for the data card.

    Returns the two tables, by name. Raises ValueError or OSError before anything is written.
    """
    check_folder(output_dir)
    splits = _parse(sources)
    tests = [read_documents(path)[1] for path in exclude]
    rows = pd.concat([_rows(*split, data_dir, reasoning) for split in splits.items()], ignore_index=True)
    prompts = rows["prompt"].map(lambda turns: turns[0]["content"])
    kept = without_leaks(rows, rows[["id"]].assign(text=rows["question"], body=prompts), tests)
    logger.info("%d of %d questions remain without the evaluation data", len(kept), len(rows))
    equal = kept.groupby(kept["question"].map(normalize_text), sort=False).indices.values()
    sizes = {"eval": eval_rows, "train": train_rows}
    tables = split(kept, [group.tolist() for group in equal], sizes, rng=np.random.default_rng(seed))
    counts = pd.concat(tables.values())["source"].value_counts()
    read = [local_file(data_dir, f"{source}_{part}") for source, part in splits.items()] if data_dir else []
    write_data(
        output_dir,
        tables,
        title="Medical questions",
        description=_DESCRIPTION,
        excluded=[(path.name, len(test)) for path, test in zip(exclude, tests, strict=True)],
        attribution=[f"{name}: {count} rows, {SOURCES[name].license}" for name, count in counts.items()],
        inputs=[*read, *exclude],
        command=command,
    )
    return tables


def _parse(sources: Sequence[str]) -> dict[str, str]:
    """Returns the split of each data set, the training split if none is given."""
    names = [name.partition(":") for name in sources]
    splits = {source: part or SOURCES[source].train for source, _, part in names if source in SOURCES}
    if not sources or len(splits) < len(sources):
        raise ValueError(f"`sources={list(sources)}`: choose from {', '.join(SOURCES)}, each once.")
    return splits


def _rows(source: str, part: str, data_dir: Path | None, reasoning: bool) -> pd.DataFrame:
    questions = load_questions(source, split=part, data_dir=data_dir, drop_unanswered=True)
    explained = questions["explanation"].notna().sum()
    logger.info("%s, %s: %d questions, %d with an explanation", source, part, len(questions), explained)
    return pd.DataFrame(
        [question_row(row, source=source, reasoning=reasoning) for row in questions.to_dict("records")]
    )
