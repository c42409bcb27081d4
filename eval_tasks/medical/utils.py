"""Functions of the medical tasks: the data, the prompts and the scores of written answers."""

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from bft_trl.data.medical import load_questions
from bft_trl.evaluation.multiple_choice import choice_scores
from bft_trl.prompts import choice_prompt


def _load(source: str, data_dir: str | None, *, shuffle: bool = False) -> DatasetDict:
    questions = load_questions(source, data_dir=data_dir).drop(columns="explanation")
    if shuffle:  # --limit takes the first documents
        questions = questions.iloc[np.random.default_rng(0).permutation(len(questions))]
    return DatasetDict(test=Dataset.from_pandas(questions, preserve_index=False))


def medqa(data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    return _load("medqa", data_dir)


def medmcqa(data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    return _load("medmcqa", data_dir)


def pubmedqa(data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    # Published by answer.
    return _load("pubmedqa", data_dir, shuffle=True)


def mmlu_medical(data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    # Published by subject.
    return _load("mmlu_medical", data_dir, shuffle=True)


def medxpertqa(data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    return _load("medxpertqa", data_dir)


def prompt(doc: dict[str, Any]) -> str:
    return _prompt(doc, reasoning=False)


def prompt_reasoning(doc: dict[str, Any]) -> str:
    return _prompt(doc, reasoning=True)


def _prompt(doc: dict[str, Any], *, reasoning: bool) -> str:
    choices = dict(zip(doc["labels"], doc["options"], strict=True))
    return choice_prompt(doc["question"], choices, context=doc["context"], reasoning=reasoning)


def written_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return choice_scores(results[0], labels=doc["labels"], target=doc["answer"])
