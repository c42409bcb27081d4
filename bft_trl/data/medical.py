"""Medical questions in one form, to train and to evaluate on: from a local folder or from the Hub and publishers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.data.download import content_hash, fetch, hub_table
from bft_trl.data.tables import READERS, ids_as_text, read_json_object, read_table
from bft_trl.prompts import choice_answer, choice_prompt, conversation, lettered

MMLU_SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)
_PUBMEDQA = "https://raw.githubusercontent.com/pubmedqa/pubmedqa/1cbae8e92f72f20c8d3747cbb3bf5bc53554d997/data"
_NO_OPTIONS = {"yes": "", "no": "", "maybe": ""}  # PubMedQA's labels say all
# What a question is made of. Options are empty where the labels say all; without labels, the answer is free text.
COLUMNS = ("id", "question", "context", "labels", "options", "answer", "explanation")


@dataclass(frozen=True)
class Source:
    """A data set: where it is, what it looks like there, and how a row becomes a question."""

    licence: str
    columns: tuple[str, ...]
    stem: Callable[[Mapping[str, Any]], tuple[str, str]]  # question and context
    answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # labels, options, answer, explanation
    train: str = "train"
    test: str = "test"
    hub: tuple[str, str | None] | None = None


def _choices(options: Mapping[str, str], answer: Any) -> dict[str, Any]:
    """Labels, options and the label of `answer`, which counts from 0."""
    labels = list(options)
    if not (isinstance(answer, int | float) and answer in range(len(labels))):
        raise ValueError(f"answer {answer!r} is not one of 0 to {len(labels) - 1}")
    return {"labels": labels, "options": list(options.values()), "answer": labels[int(answer)]}


def _medqa(row: Mapping[str, Any]) -> dict[str, Any]:
    return _choices(lettered([_text(row[f"ending{i}"]) for i in range(4)]), row["label"])


def _medmcqa(row: Mapping[str, Any]) -> dict[str, Any]:
    options = lettered([_text(row[f"op{letter}"]) for letter in "abcd"])
    return _choices(options, row["cop"]) | {"explanation": row.get("exp")}


def _pubmedqa(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["final_decision"] not in _NO_OPTIONS:
        raise ValueError(f"final_decision {row['final_decision']!r} is not yes, no or maybe")
    options = {"labels": list(_NO_OPTIONS), "options": list(_NO_OPTIONS.values())}
    return options | {"answer": row["final_decision"], "explanation": row.get("LONG_ANSWER")}


def _mmlu(row: Mapping[str, Any]) -> dict[str, Any]:
    return _choices(lettered([_text(choice) for choice in _list(row, "choices")]), row["answer"])


def _medical_o1(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"answer": _text(row["Response"]), "explanation": row["Complex_CoT"]}


def _list(row: Mapping[str, Any], column: str) -> list[Any]:
    if isinstance(row[column], str) or not isinstance(row[column], Iterable):
        raise ValueError(f"{column} {str(row[column])[:30]!r} is no list: use parquet or JSON, which have lists")
    return list(row[column])


SOURCES: Mapping[str, Source] = {
    "medqa": Source(
        "MIT (MedQA)",
        ("id", "sent1", "sent2", "ending0", "ending1", "ending2", "ending3", "label"),
        lambda row: (f"{_text(row['sent1'])} {_text(row['sent2'])}".strip(), ""),
        _medqa,
        hub=("GBaker/MedQA-USMLE-4-options-hf", None),
    ),
    "medmcqa": Source(
        "MIT (MedMCQA)",
        ("id", "question", "opa", "opb", "opc", "opd", "cop"),
        lambda row: (_text(row["question"]), ""),
        _medmcqa,
        test="validation",  # the answers of its test split are not public
        hub=("openlifescienceai/medmcqa", None),
    ),
    "pubmedqa": Source(
        "MIT (PubMedQA)",
        ("id", "QUESTION", "CONTEXTS", "final_decision"),
        lambda row: (_text(row["QUESTION"]), "\n".join(_text(part) for part in _list(row, "CONTEXTS"))),
        _pubmedqa,
    ),
    "mmlu_medical": Source(
        "MIT (MMLU)",
        ("question", "subject", "choices", "answer"),
        lambda row: (_text(row["question"]), ""),
        _mmlu,
        train="validation",  # its "auxiliary_train" is not medical
        hub=("cais/mmlu", "all"),
    ),
    "medical_o1": Source(
        "Apache-2.0 (medical-o1-reasoning-SFT)",
        ("Question", "Complex_CoT", "Response"),
        lambda row: (_text(row["Question"]), ""),
        _medical_o1,
        hub=("FreedomIntelligence/medical-o1-reasoning-SFT", "en"),
    ),
}
# Of the questions as `content_hash` gives it, where somebody has seen them.
KNOWN: Mapping[tuple[str, str], str] = {
    ("pubmedqa", "test"): "973470ba1e34173ac9b24347938119b6217b64d38329324b5c8b896935ca7594",
    ("pubmedqa", "train"): "6055f4a58d88b44af5bb7160981c7da72411fb473913fed329c66c71736dfbc2",
}


def load_questions(
    source: str, *, split: str | None = None, data_dir: str | Path | None = None, drop_unanswered: bool = False
) -> pd.DataFrame:
    """Questions of a data set, one row each.

    Args:
        source: a key of `SOURCES`.
        split: the data set's name of it; None takes what is evaluated on.
        data_dir: folder with `<source>_<split>.parquet` (or .jsonl, .json, .csv, .tsv) in the columns of the
            published data; None takes the Hub or the publisher, and keeps it.
        drop_unanswered: leave rows without an answer out (MedMCQA marks them with -1) instead of refusing them.

    Returns:
        Columns id, question, context ("" for none), labels, options (lists of equal length), answer (a label, or
        text where there are no labels) and explanation (None for none).

    Raises FileNotFoundError or another OSError where the data are not to be had, ValueError that names the file, the
    row and what is wrong with it.
    """
    if source not in SOURCES:
        raise ValueError(f"`source={source!r}` is not known: choose one of {', '.join(SOURCES)}.")
    known = SOURCES[source]
    split = split or known.test
    if data_dir is not None:
        path = local_file(Path(data_dir), f"{source}_{split}")
        table, where = read_table(path, known.columns), str(path)
    elif source == "pubmedqa":
        table, where = _download_pubmedqa(split), "PubMedQA"
    else:
        assert known.hub is not None
        table, where = hub_table(*known.hub, split), known.hub[0]
    questions = as_questions(table, source, where=where, split=split, drop_unanswered=drop_unanswered)
    if data_dir is None and content_hash(questions) != KNOWN.get((source, split), content_hash(questions)):
        raise ValueError(f"{where}, {split}: other questions than expected (sha256 {content_hash(questions)}).")
    return questions


def as_questions(
    table: pd.DataFrame, source: str, *, where: str, split: str = "", drop_unanswered: bool = False
) -> pd.DataFrame:
    """A table in a data set's published columns as questions: see [`load_questions`]. `where` is for messages."""
    if source == "mmlu_medical":
        table = table[table["subject"].isin(MMLU_SUBJECTS)].reset_index(drop=True)
        if table.empty:
            raise ValueError(f"{where}: has none of the subjects {', '.join(MMLU_SUBJECTS)}.")
    if source == "medmcqa" and drop_unanswered:
        table = table[table["cop"] >= 0].reset_index(drop=True)
    defaults: dict[str, Any] = {"context": "", "labels": [], "options": [], "explanation": None}
    ids = (
        ids_as_text(table["id"], where=where)
        if "id" in table
        else pd.Series(f"{source}-{split}-" + table.index.astype(str))
    )
    rows = []
    for i, row in enumerate(table.to_dict("records")):
        try:
            stem, context = SOURCES[source].stem(row)
            question = defaults | dict(SOURCES[source].answer(row)) | {"question": stem, "context": context}
            if not stem:
                raise ValueError("has no question")
            if ids[i] is None:
                raise ValueError("has no id")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: row {i} (counted from 0): {error}.") from error
        explanation = question["explanation"]
        question["explanation"] = explanation.strip() or None if isinstance(explanation, str) else None
        rows.append(question | {"id": ids[i]})
    questions = pd.DataFrame(rows, columns=list(COLUMNS))
    repeated = questions["id"][questions["id"].duplicated()].tolist()
    if repeated:
        raise ValueError(f"{where}: repeated id {', '.join(repeated[:5])}.")
    return questions


def question_row(question: Mapping[str, Any], *, source: str, reasoning: bool = True) -> dict[str, Any]:
    """A question as a TRL row: id, source, question, and prompt and completion of one message each.

    With `reasoning` the explanation, where there is one, goes before the answer, and the prompt asks for it.
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


def local_file(folder: Path, stem: str) -> Path:
    """The table `stem` in a folder, of any kind that is known. Raises FileNotFoundError where there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"`data_dir={str(folder)!r}`: no such folder.")
    for suffix in READERS:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise FileNotFoundError(f"`data_dir={str(folder)!r}` has no {stem}.parquet.")


def _download_pubmedqa(split: str) -> pd.DataFrame:
    """The 500 official test questions, or the 500 others."""
    if split not in ("train", "test"):
        raise ValueError(f"`split={split!r}`: PubMedQA has train and test.")
    labelled = read_json_object(fetch(f"{_PUBMEDQA}/ori_pqal.json"))
    test = read_json_object(fetch(f"{_PUBMEDQA}/test_ground_truth.json"))
    return pd.DataFrame([row | {"id": key} for key, row in labelled.items() if (key in test) == (split == "test")])


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None or value != value else str(value)
