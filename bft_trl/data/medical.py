"""Medical questions in one form, for training and evaluation: from a local folder, the Hub or the publisher."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.data.download import fetch, hub_table
from bft_trl.data.tables import READERS, ids_as_text, map_rows, read_table
from bft_trl.prompts import LETTERS, choice_answer, choice_prompt, conversation, lettered

MMLU_SUBJECTS = (
    *("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics"),
    "professional_medicine",
)
# PubMedQA's files at a fixed commit of its repository, with their SHA-256.
_PUBMEDQA = "https://raw.githubusercontent.com/pubmedqa/pubmedqa/1cbae8e92f72f20c8d3747cbb3bf5bc53554d997/data"
PUBMEDQA_FILES: Mapping[str, str] = {
    f"{_PUBMEDQA}/ori_pqal.json": "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d",
    f"{_PUBMEDQA}/test_ground_truth.json": "939fe566f09017d13b1ca64d2ddfee0bc2374b366048152997669cccedc44d51",
}


@dataclass(frozen=True)
class Source:
    """A data set and its published columns.

    Attributes:
        license: license and data set, for the data card.
        columns: columns that a file must have.
        question: columns that make up the question.
        answer: column with the index of the right option, one of `labels`, or free text.
        options: columns of the options, or one column with lists of them.
        labels: answers, if there are no options.
        explanation, context: columns of the explanation and of a list of paragraphs before the question, if any.
        heading: what begins the options at the end of a question; then `options` and `answer` are by letter.
        train, test: splits for training and for evaluation.
        sample: published sample of the test split.
        hub: id, configuration and commit on the Hub.
    """

    license: str
    columns: tuple[str, ...]
    question: tuple[str, ...]
    answer: str
    options: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    explanation: str = ""
    context: str | None = None
    heading: str | None = None
    train: str = "train"
    test: str = "test"
    sample: str | None = None
    hub: tuple[str, str | None, str] | None = None

    def texts(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Returns the question and its context, one paragraph per line, or ""."""
        question = " ".join(_text(row[column]) for column in self.question)
        if self.heading:
            question = question.partition(self.heading)[0]
        return question.strip(), "\n".join(_list(row, self.context)) if self.context else ""

    def convert(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns question, context, labels, options, answer and explanation of a row. Raises ValueError."""
        question, context = self.texts(row)
        if not question:
            raise ValueError("has no question")
        answer, choices = row[self.answer], dict.fromkeys(self.labels, "")
        if self.heading:
            choices, answer = _by_letter(row[self.options[0]], answer)
        elif self.options:
            listed = len(self.options) == 1
            choices = lettered(_list(row, self.options[0]) if listed else [_text(row[name]) for name in self.options])
            if not isinstance(answer, int | float) or answer not in range(len(choices)):
                raise ValueError(f"{self.answer} {answer!r} is not one of 0 to {len(choices) - 1}")
            answer = list(choices)[int(answer)]
        elif self.labels and answer not in self.labels:
            raise ValueError(f"{self.answer} {answer!r} is not one of {', '.join(self.labels)}")
        return {
            "question": question,
            "context": context,
            "labels": list(choices),
            "options": list(choices.values()),
            "answer": _text(answer),
            "explanation": _text(row.get(self.explanation)) or None,
        }


def _by_letter(options: Any, answer: Any) -> tuple[dict[str, str], str]:
    """Returns the options A to J and the letter of the right one, each text without surrounding space.

    Args:
        options: {"A": text, ...}, as on the Hub, or [{"letter": "A", "content": text}, ...], as in the sample.
        answer: letter, or a list of one.

    Raises ValueError.
    """
    listed = [] if isinstance(options, Mapping) or not isinstance(options, Iterable) else list(options)
    if listed and all(isinstance(option, Mapping) for option in listed):
        options = {str(option.get("letter")): option.get("content") for option in listed}
    if not isinstance(options, Mapping) or options.keys() != set(LETTERS):
        raise ValueError(f"options {str(options)[:60]!r} are not A to {LETTERS[-1]} with a text each")
    choices = {letter: _text(options[letter]) for letter in LETTERS}
    if not all(choices.values()):
        raise ValueError(f"option {next(letter for letter in LETTERS if not choices[letter])} has no text")
    answers = [answer] if isinstance(answer, str) or not isinstance(answer, Iterable) else list(answer)
    if len(answers) != 1 or answers[0] not in list(choices):  # a list has no hash
        raise ValueError(f"label {answer!r} is not one of A to {LETTERS[-1]}")
    return choices, answers[0]


def _list(row: Mapping[str, Any], column: str) -> list[str]:
    if isinstance(row[column], str) or not isinstance(row[column], Iterable):
        raise ValueError(f"{column} {str(row[column])[:30]!r} is not a list: use parquet or JSON")
    return [_text(value) for value in row[column]]


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None or value != value else str(value)


_ENDINGS, _OP = tuple(f"ending{i}" for i in range(4)), ("opa", "opb", "opc", "opd")
SOURCES: Mapping[str, Source] = {
    "medqa": Source(
        "MIT (MedQA)",
        columns=("id", "sent1", "sent2", *_ENDINGS, "label"),
        question=("sent1", "sent2"),
        options=_ENDINGS,
        answer="label",
        hub=("GBaker/MedQA-USMLE-4-options-hf", None, "17af9355ef89fba60de966eabaeba797c695f86e"),
    ),
    "medmcqa": Source(
        "MIT (MedMCQA)",
        columns=("id", "question", *_OP, "cop"),
        question=("question",),
        options=_OP,
        answer="cop",
        explanation="exp",
        test="validation",  # the answers of its test split are not public
        hub=("openlifescienceai/medmcqa", None, "91c6572c454088bf71b679ad90aa8dffcd0d5868"),
    ),
    "pubmedqa": Source(
        "MIT (PubMedQA)",
        columns=("id", "QUESTION", "CONTEXTS", "final_decision"),
        question=("QUESTION",),
        labels=("yes", "no", "maybe"),
        answer="final_decision",
        explanation="LONG_ANSWER",
        context="CONTEXTS",
    ),
    "mmlu_medical": Source(
        "MIT (MMLU)",
        columns=("question", "subject", "choices", "answer"),
        question=("question",),
        options=("choices",),
        answer="answer",
        train="validation",  # auxiliary_train is not medical
        hub=("cais/mmlu", "all", "c30699e8356da336a370243923dbaf21066bb9fe"),
    ),
    "medxpertqa": Source(
        "MIT (MedXpertQA)",
        columns=("id", "question", "options", "label"),
        question=("question",),
        options=("options",),
        answer="label",
        heading="Answer Choices:",
        train="dev",
        sample="sampled_text",
        hub=("TsinghuaC3I/MedXpertQA", "Text", "7e7c465a68eb2b866926bfa59c8c9d17a8daba65"),
    ),
    "medical_o1": Source(
        "Apache-2.0 (medical-o1-reasoning-SFT)",
        columns=("Question", "Complex_CoT", "Response"),
        question=("Question",),
        answer="Response",
        explanation="Complex_CoT",
        hub=("FreedomIntelligence/medical-o1-reasoning-SFT", "en", "fc2c9e8a37b38f38da6d449564a8c350b244aef4"),
    ),
}


def load_questions(
    source: str, *, split: str | None = None, data_dir: str | Path | None = None, drop_unanswered: bool = False
) -> pd.DataFrame:
    """Loads the questions of a data set.

    Args:
        source: key of `SOURCES`.
        split: published name of the split; None for the one used in evaluation.
        data_dir: folder with `<source>_<split>.parquet` (or .jsonl, .json, .csv, .tsv) in the published columns; None
            for a cached download. Without the test split of MedXpertQA its sample is read, `medxpertqa_sampled_text`.
        drop_unanswered: drop rows without an answer (-1 in MedMCQA) instead of raising ValueError.

    Returns one row per question: id, question, context ("" for none), labels, options (lists of equal length; empty
    texts where the labels are the answers, both empty for free text), answer (a label or free text) and explanation
    (None for none). Raises OSError if the data cannot be loaded, ValueError with file and row if they are invalid.
    """
    table, where = read_published(source, split=split, data_dir=data_dir)
    split = split or SOURCES[source].test
    return as_questions(table, source, where=where, split=split, drop_unanswered=drop_unanswered)


def read_published(
    source: str, *, split: str | None = None, data_dir: str | Path | None = None
) -> tuple[pd.DataFrame, str]:
    """Returns a data set in its published columns, unchecked, and where it is from: see [`load_questions`]."""
    if source not in SOURCES:
        raise ValueError(f"`source={source!r}` is not known: choose one of {', '.join(SOURCES)}.")
    known = SOURCES[source]
    split = split or known.test
    if data_dir is not None:
        names = [split, known.sample] if known.sample and split == known.test else [split]
        path = local_file(Path(data_dir), *(f"{source}_{name}" for name in names))
        return read_table(path, known.columns), str(path)
    if known.hub is None:
        return _download_pubmedqa(split), "PubMedQA"
    return hub_table(*known.hub, split=split), known.hub[0]


def as_questions(
    table: pd.DataFrame, source: str, *, where: str, split: str = "", drop_unanswered: bool = False
) -> pd.DataFrame:
    """Converts a table in the published columns to questions: see [`load_questions`]. `where` prefixes errors."""
    if source == "mmlu_medical":
        table = table[table["subject"].isin(MMLU_SUBJECTS)].reset_index(drop=True)
    if source == "medmcqa" and drop_unanswered:
        table = table[table["cop"] >= 0].reset_index(drop=True)
    if table.empty:
        raise ValueError(f"{where}: has no answered questions, or none of the subjects {', '.join(MMLU_SUBJECTS)}.")
    questions = pd.DataFrame(map_rows(SOURCES[source].convert, table, where=where))
    numbered = pd.Series(f"{source}-{split}-" + table.index.astype(str))
    ids = ids_as_text(table["id"], where=where) if "id" in table else numbered
    wrong = ids[ids.isna() | ids.duplicated()]
    if len(wrong):
        raise ValueError(f"{where}: row {wrong.index[0]} (counted from 0): missing or repeated id {wrong.iloc[0]}.")
    questions.insert(0, "id", ids)
    return questions


def question_row(question: Mapping[str, Any], *, source: str, reasoning: bool = True) -> dict[str, Any]:
    """Converts a question to a TRL row: id, source, question, and prompt and completion of one message each.

    With `reasoning` an explanation is written before the answer, and the prompt asks for it.
    """
    explanation = (question["explanation"] or "") if reasoning else ""
    if len(question["labels"]):
        choices = dict(zip(question["labels"], question["options"], strict=True))
        prompt = choice_prompt(question["question"], choices, context=question["context"], reasoning=bool(explanation))
        completion = choice_answer(question["answer"], reasoning=explanation)
    else:
        prompt = question["question"]
        completion = "\n\n".join(part for part in (explanation, question["answer"]) if part)
    row = {"id": question["id"], "source": source, "question": question["question"]}
    return row | conversation(prompt, completion)


def local_file(folder: Path, *stems: str) -> Path:
    """Returns the first of the tables `stems` that is in a folder, in any format. Raises FileNotFoundError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"`data_dir={str(folder)!r}`: no such folder.")
    for stem in stems:
        for suffix in READERS:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    raise FileNotFoundError(f"`data_dir={str(folder)!r}` has no {' or '.join(f'{stem}.parquet' for stem in stems)}.")


def _download_pubmedqa(split: str) -> pd.DataFrame:
    """Returns the 500 official test questions, or the 500 others."""
    if split not in ("train", "test"):
        raise ValueError(f"`split={split!r}`: PubMedQA has train and test.")
    labeled, test = (json.loads(fetch(url, sha256=sha256).read_bytes()) for url, sha256 in PUBMEDQA_FILES.items())
    return pd.DataFrame([row | {"id": key} for key, row in labeled.items() if (key in test) == (split == "test")])
