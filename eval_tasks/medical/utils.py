"""Functions of the medical tasks: the data, the prompts and the scores of written answers."""

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from bft_trl.data.medical import load_questions
from bft_trl.evaluation.multiple_choice import choice_scores
from bft_trl.prompts import choice_prompt


def load(source: str, shuffle: bool = False, data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    questions = load_questions(source, data_dir=data_dir).drop(columns="explanation")
    if shuffle:  # --limit takes the first documents
        questions = questions.iloc[np.random.default_rng(0).permutation(len(questions))]
    return DatasetDict(test=Dataset.from_pandas(questions, preserve_index=False))


def prompt(doc: dict[str, Any]) -> str:
    return _prompt(doc, reasoning=False)


def prompt_reasoning(doc: dict[str, Any]) -> str:
    return _prompt(doc, reasoning=True)


def _prompt(doc: dict[str, Any], *, reasoning: bool) -> str:
    choices = dict(zip(doc["labels"], doc["options"], strict=True))
    return choice_prompt(doc["question"], choices, context=doc["context"], reasoning=reasoning)


def written_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return choice_scores(results[0], labels=doc["labels"], target=doc["answer"])
