"""MedXpertQA in its two published forms, rows that are wrong, and its ten labels in written answers."""

import json

import pandas as pd
import pytest

from bft_trl.data.documents import read_documents
from bft_trl.data.medical import as_questions, load_questions, question_row
from bft_trl.prompts import LETTERS, parse_choice

TEXTS = {letter: f"sign {k}" for k, letter in enumerate("ABCDEFGHIJ")}
LISTED = "Answer Choices: " + " ".join(f"({letter}) {text}" for letter, text in TEXTS.items())
HUB = {"id": "Text-1", "question": f"A man coughs.\nWhich sign?\n{LISTED}", "options": TEXTS, "label": "J"}
SAMPLE = HUB | {"options": [{"letter": a, "content": t} for a, t in TEXTS.items()], "label": ["J"]}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("name", "row"), [("test", HUB), ("sampled_text", SAMPLE)], ids=["hub", "sample"])
def test_both_published_forms_give_the_same_question(name, row, suffix, tmp_path):
    path = tmp_path / f"medxpertqa_{name}.{suffix}"
    path.write_text(json.dumps(row)) if suffix == "jsonl" else pd.DataFrame([row]).to_parquet(path)
    (question,) = load_questions("medxpertqa", data_dir=tmp_path).to_dict("records")
    assert question == {
        "id": "Text-1",
        "question": "A man coughs.\nWhich sign?",
        "context": "",
        "labels": list("ABCDEFGHIJ"),
        "options": [f"sign {k}" for k in range(10)],
        "answer": "J",
        "explanation": None,
    }
    assert read_documents(path)[1]["text"].tolist() == ["A man coughs.\nWhich sign?"]
    prompt = question_row(question, source="medxpertqa")["prompt"][0]["content"]
    listed = "".join(f"{letter}. sign {k}\n" for k, letter in enumerate("ABCDEFGHIJ"))
    assert prompt == f'A man coughs.\nWhich sign?\n\n{listed}\nWrite "Answer: <letter>" and nothing else.'


def test_the_whole_test_set_is_preferred_to_its_sample(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no medxpertqa_test.parquet or medxpertqa_sampled_text.parquet"):
        load_questions("medxpertqa", data_dir=tmp_path)
    (tmp_path / "medxpertqa_sampled_text.jsonl").write_text(json.dumps(SAMPLE))
    (tmp_path / "medxpertqa_test.jsonl").write_text(json.dumps(HUB | {"id": "whole"}))
    assert load_questions("medxpertqa", data_dir=tmp_path)["id"].tolist() == ["whole"]
    with pytest.raises(FileNotFoundError, match="has no medxpertqa_dev.parquet.$"):
        load_questions("medxpertqa", split="dev", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"A": "sign 0", "B": "sign 1"}}, "options .* are not A to J with a text each"),
        ({"options": [*SAMPLE["options"][:9], {"letter": "A", "content": "x"}]}, "are not A to J"),
        ({"options": list(TEXTS.values())}, "are not A to J"),
        ({"options": str(TEXTS)}, "are not A to J"),
        ({"options": None}, "are not A to J"),
        ({"options": TEXTS | {"C": " "}}, "option C has no text"),
        ({"label": "K"}, "label 'K' is not one of A to J"),
        ({"label": 9}, "label 9 is not one of A to J"),
        ({"label": ["A", "B"]}, r"label \['A', 'B'\] is not one of A to J"),
        ({"label": [["A"]]}, "label .* is not one of A to J"),
        ({"label": []}, r"label \[\] is not one of"),
        ({"label": None}, "label None is not one of"),
        ({"question": LISTED}, "has no question"),
        ({"question": f" \n{LISTED}"}, "has no question"),
    ],
)
def test_a_bad_row_is_named(change, words):
    with pytest.raises(ValueError, match=f"FILE: row 1 .*{words}"):
        as_questions(pd.DataFrame([HUB, HUB | {"id": "Text-2"} | change]), "medxpertqa", where="FILE")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Answer: J", "J"),
        ("So.\n\n**Answer: I**", "I"),
        ("Answer: I. sign 8", "I"),
        ("Answer: (I)", "I"),
        ("i", "I"),
        ("Answer: I think it is B", None),  # a pronoun, as "A patient" begins with an article
        ("The answer is I believe F.", None),
        ("Answer: I or J", None),
        ("Answer: B and I am sure", "B"),
        ("Answer: K", None),
    ],
)
def test_ten_labels_in_written_answers(answer, label):
    assert parse_choice(answer, LETTERS) == label
