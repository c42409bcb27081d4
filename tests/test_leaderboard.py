"""The tasks of bft_leaderboard beside lm-eval's own, on the same documents in the schema of the Hub."""

import json
from pathlib import Path

import datasets
import lm_eval.tasks
import pandas as pd
import pytest
from conftest import build_model, build_tokenizer
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bft_trl.cli.main import main
from bft_trl.data.medical import MMLU_SUBJECTS
from bft_trl.evaluation.runner import tasks_path
from bft_trl.evaluation.scores import read_scores

MMLU = [f"mmlu_{subject}" for subject in MMLU_SUBJECTS]
OWN = ["medmcqa", "medqa_4options", "pubmedqa", *MMLU]  # lm-eval's names
LEADERBOARD = [f"bft_leaderboard_{name}" for name in OWN]
# Space at the ends, braces of a template, an empty option, another script: nothing may be changed on the way.
TEXTS = ["Which nerve? ", " {{question}} of \u03b2-cells:\n1. a\n2. b", "Why\u00a0\u200b?"]
OPTIONS = [["vagus", "optic ", "", "None"], [" 1", "{% if %}", "both", "\u4fee\u5fa9"], ["w", "x\n", "y", "z"]]
NAMES = ("opa", "opb", "opc", "opd")


def documents():
    """Three rows of each data set by the name of its file; of MMLU for every subject, and for another one."""
    rows = [(i, text, options) for i, (text, options) in enumerate(zip(TEXTS, OPTIONS, strict=True))]
    return {
        "medmcqa_validation": [
            {"id": f"m{i}", "question": text, "cop": i, "exp": None, "subject_name": "Anatomy"}
            | dict(zip(NAMES, options, strict=True))
            for i, text, options in rows
        ],
        "medqa_test": [
            {"id": f"test-{i}", "sent1": text, "sent2": "", "label": 3 - i}
            | {f"ending{k}": option for k, option in enumerate(options)}
            for i, text, options in rows
        ],
        "pubmedqa_test": [
            {"id": str(i), "QUESTION": text, "CONTEXTS": options[: i + 1], "LONG_ANSWER": "So."}
            | {"final_decision": ["yes", "maybe", "no"][i]}
            for i, text, options in rows
        ],
        "mmlu_medical_test": [
            {"question": f"{text} ({subject})", "subject": subject, "choices": options, "answer": 3 - i}
            for i, text, options in rows
            for subject in (*MMLU_SUBJECTS, "philosophy")
        ],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/ and model/."""
    root = tmp_path_factory.mktemp("leaderboard")
    (root / "data").mkdir()
    for name, rows in documents().items():
        pd.DataFrame(rows).to_parquet(root / "data" / f"{name}.parquet")
    build_model(max_position_embeddings=1024).save_pretrained(root / "model")
    build_tokenizer().save_pretrained(root / "model")
    return root


def hub(path, name=None, **kwargs):
    """Stands for `datasets.load_dataset`: the splits that lm-eval's tasks ask the Hub for."""
    rows = documents()
    if path == "cais/mmlu":
        found = [row for row in rows["mmlu_medical_test"] if row["subject"] == name]
        return datasets.DatasetDict({split: datasets.Dataset.from_list(found) for split in ("test", "dev")})
    stem = {"openlifescienceai/medmcqa": "medmcqa_validation", "bigbio/pubmed_qa": "pubmedqa_test"}
    found = datasets.Dataset.from_list(rows[stem.get(path, "medqa_test")])
    return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), found))


def test_prompts_choices_targets_and_scores_are_those_of_lm_eval(folder, monkeypatch):
    """Byte for byte, with and without a chat template: what the model is given and what it answers."""
    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", hub)
    theirs = Path(lm_eval.tasks.__file__).parent
    paths = [str(theirs / name) for name in ("medmcqa", "medqa", "pubmedqa", "mmlu/default")]
    metadata = {"data_dir": str(folder / "data")}
    manager = TaskManager(include_path=[*paths, str(tasks_path())], include_defaults=False, metadata=metadata)
    model = HFLM(pretrained=build_model(max_position_embeddings=1024), tokenizer=build_tokenizer(), batch_size=4)
    for chat in (False, True):
        results = simple_evaluate(
            model, tasks=[*OWN, *LEADERBOARD], task_manager=manager, apply_chat_template=chat, bootstrap_iters=0
        )
        for own, ours in zip(OWN, LEADERBOARD, strict=True):
            metrics = {"acc", "acc_norm"} if own in ("medmcqa", "medqa_4options") else {"acc"}
            assert metrics == set(results["samples"][ours][0]["metrics"]) == set(results["samples"][own][0]["metrics"])
            keys = ("doc_id", "arguments", "target", "filtered_resps", "prompt_hash", *metrics)
            samples = [[[sample[key] for key in keys] for sample in results["samples"][name]] for name in (own, ours)]
            assert samples[0] == samples[1]
            assert len(samples[1]) == 3
            for metric in metrics:
                assert results["results"][ours][f"{metric},none"] == results["results"][own][f"{metric},none"]
            for key in ("higher_is_better", "n-shot"):
                assert results[key][ours] == results[key][own]


def test_the_group_runs_with_baselines_and_the_mean_of_the_nine(folder, tmp_path):
    command = ["eval", "--model_name_or_path", str(folder / "model"), "--tasks", "bft_leaderboard", "--device", "cpu"]
    command += ["--data_dir", str(folder / "data"), "--no-apply_chat_template", "--output_dir"]
    assert main([*command, str(tmp_path / "o")]) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert set(results["results"]) == {*LEADERBOARD, "bft_leaderboard"}
    accuracies = [results["results"][name]["acc,none"] for name in LEADERBOARD]
    assert results["groups"]["bft_leaderboard"]["acc,none"] == pytest.approx(sum(accuracies) / 9)
    scores, _ = read_scores(tmp_path / "o")
    means = scores.groupby(["task", "model", "metric"])["score"].mean()
    for name, options in zip(LEADERBOARD, [4, 4, 3, *[4] * 6], strict=True):
        assert means[name, "baseline: chance", "acc"] == pytest.approx(1 / options)
        assert means[name, "baseline: most frequent answer", "acc"] == pytest.approx(1 / 3)  # three different ones
    # What the model reads, written by hand: MMLU strips the question, the others keep it.
    lines = [json.loads(line) for line in (tmp_path / "o" / "samples.jsonl").read_text().splitlines()]
    read = {line["task"]: line["arguments"] for line in lines if line["doc_id"] == 0}
    choices = "A. vagus\nB. optic \nC. \nD. None\nAnswer:"
    assert read["bft_leaderboard_medmcqa"][0] == [f"Question: Which nerve? \nChoices:\n{choices}", " A"]
    assert read["bft_leaderboard_medqa_4options"][3] == [f"Question: Which nerve? \n{choices}", " D"]
    assert read["bft_leaderboard_pubmedqa"][2] == ["Abstract: vagus\nQuestion: Which nerve? \nAnswer:", " maybe"]
    heading = "The following are multiple choice questions (with answers) about medical genetics.\n\n"
    genetics = f"{heading}Which nerve?  (medical_genetics)\n{choices}"
    assert read["bft_leaderboard_mmlu_medical_genetics"][1] == [genetics, " B"]


def test_missing_subjects_are_left_out_and_bad_rows_are_named(folder, tmp_path, caplog, capsys):
    rows = documents()["mmlu_medical_test"]
    table = pd.DataFrame([row for row in rows if row["subject"] == "anatomy"])
    table.to_parquet(tmp_path / "mmlu_medical_test.parquet")
    command = ["eval", "--model_name_or_path", str(folder / "model"), "--device", "cpu", "--data_dir", str(tmp_path)]
    command += ["--output_dir", str(tmp_path / "o"), "--overwrite_output_dir", "--allow_missing", "--tasks"]
    assert main([*command, "bft_leaderboard"]) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert set(results["results"]) == {"bft_leaderboard_mmlu_anatomy"}
    assert "Left out bft_leaderboard_medmcqa: " in caplog.text
    assert "mmlu_medical_test.parquet, college_biology: no questions." in caplog.text
    table.assign(answer=[0, 4, 1]).to_parquet(tmp_path / "mmlu_medical_test.parquet")
    assert main([*command, "bft_leaderboard_mmlu_anatomy"]) == 2
    error = capsys.readouterr().err
    assert "mmlu_medical_test.parquet, anatomy: row 1 (counted from 0): answer 4 is not one of 0 to 3" in error


def test_indices_that_a_file_has_as_decimals(tmp_path, folder):
    pd.DataFrame(documents()["medqa_test"]).astype({"label": float}).to_parquet(tmp_path / "medqa_test.parquet")
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata={"data_dir": str(tmp_path)})
    task = manager.load(["bft_leaderboard_medqa_4options"])["tasks"]["bft_leaderboard_medqa_4options"]
    targets = [task.doc_to_target(doc) for doc in task.eval_docs]
    assert targets == [3, 2, 1]
    assert all(isinstance(target, int) for target in targets)
