"""The data of the leaderboard's tasks, in the columns that lm-eval's prompts read."""

from typing import Any

from datasets import Dataset, DatasetDict

from bft_trl.data.medical import SOURCES, as_questions, read_published


def load(source: str, subject: str | None = None, data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    """Returns the published rows of a test set, in order, with the parts that baselines and comparisons need.

    Raises FileNotFoundError if the data, or those of the subject, are missing, ValueError for an invalid row.
    """
    table, where = read_published(source, data_dir=data_dir)
    if subject is not None:
        table, where = table[table["subject"] == subject].reset_index(drop=True), f"{where}, {subject}"
        if table.empty:
            raise FileNotFoundError(f"{where}: no questions.")
    questions = as_questions(table, source, where=where)
    known = SOURCES[source]
    # lm-eval's scoring takes integers only as indices of choices.
    published = table[list(known.columns)].astype({known.answer: int} if known.options else {})
    added = {
        name: questions[name] for name in ("id", "question", "labels", "options", "answer") if name not in published
    }
    return DatasetDict(test=Dataset.from_pandas(published.assign(**added), preserve_index=False))
