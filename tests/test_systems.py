"""Recorded systems beside a run: joined by what a document asks, on the documents that all have."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from test_comparison import choice_documents, gene_set_documents, row_of, write_lm_eval

from bft_trl.cli.main import main
from bft_trl.comparison.answers import document_tables
from bft_trl.comparison.compare import compare
from bft_trl.comparison.runs import load_runs
from bft_trl.evaluation.recorded import recorded_systems
from bft_trl.evaluation.scores import document_key

# Two of GeneAgent's sets, with its answers "Lipid Metabolism and Transport" and "Nucleotide Excision Repair (NER)".
SETS = [
    {
        "id": "GO:0032385",
        "name": "positive regulation of intracellular cholesterol transport",
        "genes": ["LDLRAP1", "SCP2D1", "ANXA2", "SCP2"],
    },
    {
        "id": "GO:0033683",
        "name": "nucleotide-excision repair, DNA incision",
        "genes": ["OGG1", "ERCC5", "XPA", "ERCC4", "NTHL1"],
    },
]
# Two questions of MedMCQA: gpt-4o answered A and C, o1-mini C and C.
QUESTIONS = [
    {"question": "Concentration of tropicamide:", "options": ["0.01", "0.02", "0.03", "0.04"], "answer": "A"},
    {
        "question": "Base pairs in DNA",
        "options": ["1.5 billion", "46 billions", "3.2 billion", "100 billion"],
        "answer": "C",
    },
]
QUESTIONS = [question | {"id": f"q{i}", "labels": list("ABCD")} for i, question in enumerate(QUESTIONS)]


@pytest.fixture
def run(tmp_path):
    """Right on neither question, and no words of the names."""
    tasks = {
        "bft_gene_sets_go": (SETS, {"rouge1": np.zeros(2), "answer_rate": np.ones(2)}),
        "bft_medmcqa": (QUESTIONS, {"acc": np.zeros(2)}),
    }
    return str(write_lm_eval(tmp_path / "run", tasks))


def test_systems_are_scored_on_the_documents_of_the_run(run, tmp_path):
    """'transport' is 1 of 6 and 1 of 4 words: F = .2; 'nucleotide excision repair' 3 of 5 and 3 of 3: F = .75."""
    systems = ["GeneAgent", "gpt-4o", "o1-mini"]
    result = compare([run], "run", tmp_path / "o", systems=systems, n_resamples=99)
    assert row_of(result, run="geneagent", metric="rouge1")["score"] == pytest.approx((0.2 + 0.75) / 2)
    assert row_of(result, run="gpt-4o")["score"] == 1
    assert row_of(result, run="o1-mini")["score"] == 0.5
    assert result["recorded"] == ["geneagent", "gpt-4o", "o1-mini"]
    page = (tmp_path / "o" / "index.html").read_text()
    assert page.count("geneagent (recorded, other prompt)") == 2
    assert "Fewer than 50 documents: the baselines are rough." in page


def test_a_system_is_the_baseline(run, tmp_path):
    result = compare([run], "geneagent", tmp_path / "o", n_resamples=99)
    assert (result["baseline"], result["runs"]) == ("geneagent", ["run"])
    assert row_of(result, metric="rouge1")["difference"] == pytest.approx(-0.475)


def test_common_documents(tmp_path, caplog):
    """The system has answers to 2 of 5 questions, the second run to 4 of them: 2 are compared."""
    caplog.set_level("INFO")
    questions = [*choice_documents(3), *QUESTIONS]
    one = write_lm_eval(tmp_path / "one", {"bft_medmcqa": (questions, {"acc": [0, 0, 0, 1, 0]})})
    two = write_lm_eval(tmp_path / "two", {"bft_medmcqa": (questions[1:], {"acc": [1, 1, 1, 1]})})
    command = ["compare", str(one), str(two), "--baseline", "one", "--with", "gpt-4o", "--resamples", "99"]
    assert main([*command, "--output_dir", str(tmp_path / "o")]) == 2
    assert main([*command, "--common_documents", "--output_dir", str(tmp_path / "o")]) == 0
    assert "bft_medmcqa: 2 documents are in all runs (one 5, two 4, gpt-4o 2)" in caplog.text
    rows = json.loads((tmp_path / "o" / "comparison.json").read_text())["rows"]
    assert [(row["run"], row["n"], row["score"], row["baseline_score"]) for row in rows] == [
        ("two", 2, 1.0, 0.5),
        ("gpt-4o", 2, 1.0, 0.5),
    ]


def test_bad_systems(run, tmp_path):
    with pytest.raises(ValueError, match=r"`with`: 'gpt-4oo' is no recorded system\. Do you mean 'gpt-4o'"):
        compare([run], "run", tmp_path / "o", systems=["gpt-4oo"])
    with pytest.raises(ValueError, match="`with`: gpt-4 has no answer to any document of these runs"):
        compare([run], "run", tmp_path / "o", systems=["gpt-4"])
    tasks = {"bft_medmcqa": ([*QUESTIONS, *choice_documents(1)], {"acc": np.zeros(3)})}
    more = write_lm_eval(tmp_path / "more", tasks)
    with pytest.raises(ValueError, match=re.escape("`--common_documents` compares what all runs have")):
        compare([str(more)], "more", tmp_path / "o", systems=["gpt-4o"])
    other = write_lm_eval(tmp_path / "x", {"bft_medmcqa": (choice_documents(2), {"acc": np.zeros(2)})})
    with pytest.raises(ValueError, match="`common_documents`: no document of bft_medmcqa is in all of run, x"):
        compare([run, str(other)], "run", tmp_path / "o", common_documents=True)
    assert not (tmp_path / "o").exists()


def test_runs_are_checked_against_each_other_too(run, tmp_path):
    """A recorded baseline has no prompt that the runs could differ from."""
    other = write_lm_eval(tmp_path / "x", {"bft_medmcqa": (QUESTIONS, {"acc": np.zeros(2)})}, chat_template_sha="bb")
    with pytest.raises(ValueError, match=re.escape("'x' differs from 'run' in chat_template (bb, baseline aa)")):
        compare([run, str(other)], "gpt-4o", tmp_path / "o")


def test_a_name_stands_for_one_run(run, tmp_path):
    result = compare([run], "run", tmp_path / "o", systems=["gpt-4o", "GPT-4o"], n_resamples=99)
    assert result["runs"] == ["gpt-4o"]
    with pytest.raises(ValueError, match="two runs have the name 'gpt-4o'"):
        compare([f"gpt-4o={run}"], "gpt-4o", tmp_path / "p", systems=["gpt-4o"])


def test_a_document_without_one_metric_is_compared_by_the_others(tmp_path):
    """One of three sets is not in the ontology: two documents by go_hit, three by rouge1."""
    sets = [*SETS, SETS[0] | {"id": "GO:old"}]
    scores = {"rouge1": np.ones(3), "go_hit": [1.0, 0.0, float("nan")]}
    runs = [str(write_lm_eval(tmp_path / name, {"bft_gene_sets_go": (sets, scores)})) for name in "ab"]
    result = compare(runs, "a", tmp_path / "o", common_documents=True, n_resamples=99)
    assert {row["metric"]: row["n"] for row in result["rows"]} == {"rouge1": 3, "go_hit": 2}
    assert result["not_compared"] == {}


def test_the_ontology_is_a_setting(tmp_path):
    tasks = {"bft_gene_sets_go": (SETS, {"go_hit": np.ones(2)})}
    runs = [write_lm_eval(tmp_path / name, tasks) for name in "ab"]
    for folder, fingerprint in zip(runs, ("11", "22"), strict=True):
        (file,) = folder.rglob("results_*.json")
        results = json.loads(file.read_text())
        results["configs"]["bft_gene_sets_go"]["metadata"]["ontology_fingerprint"] = fingerprint
        file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=re.escape("ontology_fingerprint (22, baseline 11)")):
        compare(list(map(str, runs)), "a", tmp_path / "o")


@pytest.mark.parametrize("content", [b"PAR1", pd.DataFrame({"unit": ["1"], "answer": ["x"]}).to_parquet()])
def test_answers_that_cannot_be_read(content, data):
    """Damaged, or with the columns of an earlier version."""
    assert score(data, "id,label\nm0,A\nm1,A\nm2,A\n") == 0
    (data.parent / "out" / "answers.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"answers\.parquet cannot be read"):
        load_runs(data.parent / "out")


def test_another_question_under_the_same_id_raises(run, tmp_path):
    changed = [QUESTIONS[0], QUESTIONS[1] | {"options": ["1", "2", "3", "4"]}]
    other = write_lm_eval(tmp_path / "other", {"bft_medmcqa": (changed, {"acc": np.zeros(2)})}, prompts=lambda doc: 0)
    with pytest.raises(ValueError, match="the question of 1 of 2 documents, the prompt of 2 of 2 documents"):
        compare([run, str(other)], "run", tmp_path / "o")


def test_the_key_of_a_document():
    """Order of genes, case and white space do not count; the order of options does."""
    assert document_key(SETS[0]) == document_key(SETS[0] | {"genes": ["scp2", "ANXA2", "LDLRAP1", "SCP2D1"]})
    assert document_key(SETS[0]) != document_key(SETS[0] | {"genes": ["SCP2"]})
    assert document_key(QUESTIONS[0]) == document_key(QUESTIONS[0] | {"question": " concentration  of tropicamide:"})
    assert document_key(QUESTIONS[0]) != document_key(QUESTIONS[0] | {"options": ["0.02", "0.01", "0.03", "0.04"]})


def test_the_recorded_answers():
    """Counts of the sources: 1,106 names by GeneAgent, 1,000 by GPT-4, 100 by each of five models."""
    table = recorded_systems()
    counts = table["system"].value_counts()
    assert counts[["geneagent", "gpt-4", "gemini-pro", "gpt-4-100"]].tolist() == [1106, 1000, 100, 100]
    assert len(counts) == 17
    assert not table.duplicated(["system", "key"]).any()


# --- answers on the page ---------------------------------------------------------------------------------------------


def test_documents_for_the_page(tmp_path):
    answers = {"a": "So:\n\nAnswer: C", "b": "no idea"}
    tasks = {"bft_medmcqa_gen": (QUESTIONS[1:], {"acc": [1]}), "bft_gene_sets_go": (SETS[:1], {"rouge1": [0.25]})}
    runs = [
        load_runs(write_lm_eval(tmp_path / name, tasks, responses=lambda doc, text=text: text))[0]
        for name, text in answers.items()
    ]
    choice, names = document_tables(runs[0], runs[1:], ["bft_medmcqa_gen", "bft_gene_sets_go"])
    (document,) = choice["documents"]
    assert (choice["runs"], choice["metrics"]) == (["a", "b"], ["acc"])
    assert (document["asked"], document["reference"]) == ("Base pairs in DNA", "C. 3.2 billion")
    assert document["answers"] == ["C. 3.2 billion", "no idea"]
    assert document["scores"] == [[1, 1]]
    assert names["documents"][0]["asked"] == "LDLRAP1, SCP2D1, ANXA2, SCP2"


def test_a_choice_by_log_likelihood_is_the_most_likely_label(tmp_path):
    """lm-eval's files hold the log-likelihoods as text."""
    folder = write_lm_eval(tmp_path / "a", {"bft_medmcqa": (QUESTIONS, {"acc": [0, 1]})})
    file = next(tmp_path.rglob("samples_*.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["filtered_resps"] = [["-3.5", "False"], ["-2.0", "True"], ["-10.0", "False"], ["-9.9", "False"]]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert load_runs(folder)[0].answers["answer"].tolist() == ["B", "B"]


# --- baselines -------------------------------------------------------------------------------------------------------


def test_baselines_need_the_whole_test_set(tmp_path):
    """The most frequent name of ten selected sets is not that of the test set: then there are no baselines."""
    tasks = {"bft_gene_sets_go": (gene_set_documents(10), {"rouge1": np.zeros(10)})}
    assert len(load_runs(write_lm_eval(tmp_path / "all", tasks))) == 5
    assert len(load_runs(write_lm_eval(tmp_path / "some", tasks, limited=True))) == 1


# --- bft-trl score --task --------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """MedMCQA with three questions: right are A, C and B."""
    rows = [
        {
            "id": f"m{i}",
            "question": f"Which {i}?",
            "opa": "heart",
            "opb": "lung",
            "opc": "skin",
            "opd": "eye",
            "cop": cop,
        }
        for i, cop in enumerate((0, 2, 1))
    ]
    (tmp_path / "data").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "data" / "medmcqa_validation.parquet")
    return tmp_path / "data"


def score(data, answers, *extra):
    file = data.parent / "answers.csv"
    file.write_text(answers)
    command = ["score", "--task", "bft_medmcqa", "--data_dir", str(data), "--predictions", str(file)]
    return main([*command, "--output_dir", str(data.parent / "out"), *extra])


def test_answers_to_questions(data, capsys):
    """x: right by its label and by its text, wrong by a label in lower case; y: 'Skin' for m1 only, skipped else."""
    answers = "id,label,text,model\nm0,A,,x\nm1,,Skin,x\nm2,c,,x\nm1,A,skin,y\n"
    assert score(data, answers, "--missing", "skip", "--baselines") == 0
    summary = pd.read_csv(data.parent / "out" / "summary.csv").set_index("model")
    assert summary.loc["x", ["metric", "n", "mean"]].tolist() == ["acc", 3, pytest.approx(2 / 3)]
    assert summary.loc["y", ["n", "mean"]].tolist() == [1, 1]  # the text decides, not the label
    assert summary.loc["baseline: chance", "mean"] == 0.25
    assert set(load_runs(data.parent / "out")[0].tasks) == {"bft_medmcqa"}


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("id,label\nm0,A\nm1,E\nm2,A\n", "no option of the question: answer to id 'm1 (E)'"),
        ("id,text\nm0,heart\nm1,liver\nm2,eye\n", "no option of the question: answer to id 'm1 (liver)'"),
        ("id,label\nm0,A\nm9,A\n", "not among the references: id 'm9'"),
        ("id,label\nm0,A\nm0,B\n", "two answers for id 'm0'"),
        ("id,label\nm0,A\n", "model 'answers' has no prediction for id 'm1', 'm2'"),
        ("id,answer\nm0,A\n", "has neither a column label nor text"),
    ],
)
def test_bad_answers_to_questions(data, answers, words, capsys):
    assert score(data, answers) == 2
    assert words in capsys.readouterr().err
    assert not (data.parent / "out").exists()


def test_numbers_as_texts(data):
    """An option "0.50" is not 0.5; an option that is another question's label is the option."""
    rows = {"id": "n", "question": "How many?", "opa": "0.50", "opb": "30", "opc": "D", "opd": "7", "cop": 2}
    pd.DataFrame([rows, rows | {"id": "k", "question": "And?"}]).to_parquet(data / "medmcqa_validation.parquet")
    assert score(data, "id,text,source\nn,D,7\nk,0.50,7\nk,30,8\n", "--source", "7") == 0
    answers = pd.read_parquet(data.parent / "out" / "answers.parquet")
    assert answers["answer"].tolist() == ["C", "A"]


def test_empty_answers_score_zero(data, caplog):
    assert score(data, "id,label\nm0,A\nm1,\nm2,B\n") == 0
    assert "1 empty answers score 0" in caplog.text
    assert pd.read_csv(data.parent / "out" / "summary.csv")["mean"].tolist() == [pytest.approx(2 / 3)]


def test_bad_tasks(data, capsys):
    assert score(data, "id,label\nm0,A\n", "--task", "bft_medqa") == 2
    assert "is not one task with its data" in capsys.readouterr().err
