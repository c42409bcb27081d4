"""`bft-trl study`: its file, the choice on validation documents, resumption, failures, and the result."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import build_model, build_tokenizer

from bft_trl.cli.main import main
from bft_trl.evaluation.scores import write_scores
from bft_trl.io import write_files, write_text
from bft_trl.study import check, execution
from bft_trl.study.check import check_study
from bft_trl.study.execution import run_steps, time_left
from bft_trl.study.inputs import Inputs, find_leaks, prepare, training_file
from bft_trl.study.records import Records
from bft_trl.study.report import headline, write_report
from bft_trl.study.steps import Steps, base_run
from bft_trl.study.study_file import read_study

STUDY = {
    "models": {"tiny": {"model_name_or_path": "tiny"}},
    "data": {"names": {"gene_sets": {"train_samples": 20, "validation_samples": 4, "test_samples": 4}}},
    "objectives": {"SFT": {"loss_type": "nll"}, "BFT": {"loss_type": "bft"}},
    "tune": {"learning_rate": [0.1, 0.2]},
    "seeds": [1, 2],
}


POPEN = subprocess.Popen


class StandIn:
    """Stands in for the process of a `bft-trl` command: writes what the command writes.

    A score is 10 times the learning rate plus .01 times the seed, and .05 more for BFT; both documents differ by 1.
    """

    fails = staticmethod(lambda options: False)
    trained: ClassVar[list[str]] = []

    def __init__(self, command, *, stdout, **options):
        self.words = command[3:]
        self.returncode = getattr(self, f"_{self.words[0]}")(stdout)

    def poll(self):
        return self.returncode

    wait = terminate = poll

    def _option(self, name):
        return Path(self.words[self.words.index(f"--{name}") + 1])

    def _train(self, log):
        options = yaml.safe_load(self._option("config").read_text())
        self.trained.append(options["output_dir"])
        if self.fails(options):
            log.write(b"error: out of memory\n")
            return 2
        folder = Path(options["output_dir"])
        summary = {"eval_nll_after": 2.5, "seconds": 3.0, "peak_memory": {"host_gib": 1.5}, "steps": 7}
        write_files(
            {
                folder / "options.json": json.dumps(options).encode(),
                folder / "metrics.csv": b"step,num_tokens\n1,600\n",
                folder / "summary.json": json.dumps(summary).encode(),
            }
        )
        return 0

    def _inspect(self, log):
        metrics = {"token_confidence": 0.25, "nll": 3.0}
        write_text(self._option("output_dir") / "report.json", json.dumps({"metrics": metrics}))
        write_text(self._option("output_dir") / "index.html", "")
        return 0

    def _eval(self, log):
        score, task, folder = 0.0, str(self._option("tasks")), self._option("output_dir")
        if "--adapter" in self.words:
            options = json.loads((self._option("adapter") / "options.json").read_text())
            bft = options["loss_type"] == "bft"
            score = 10 * options["learning_rate"] + 0.01 * options["seed"] + 0.05 * bft
        units = pd.DataFrame({"unit": ["0", "1"], "task": task, "model": "/some/path"})
        metrics = pd.DataFrame({"metric": ["similarity", "percentile", "rouge1"]})
        scores = units.merge(metrics, how="cross").assign(seed=0)
        scores["score"] = score + scores["unit"].astype(float)
        document = json.dumps({"id": "0", "name": "x", "genes": ["A"]})
        texts = units.assign(answer="Process: x", reference="x", document=document, key="", prompt="")
        settings = {"tasks": {task: {"higher_is_better": {"similarity": True}}}, "models": {"/some/path": {}}}
        write_scores(folder, scores, settings, answers=texts)
        return 0


def write_study(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """A study whose commands are stand-ins."""
    monkeypatch.setattr(execution.subprocess, "Popen", StandIn)
    monkeypatch.setattr(StandIn, "trained", [])
    study = read_study(write_study(tmp_path))
    inputs = {name: prepare(name, entry, tmp_path / "out" / "data") for name, entry in study.data.items()}
    return Steps(study, inputs, {"tiny": "tiny"}, tmp_path / "out")


def test_grid_is_tuned_then_run_over_seeds(steps, tmp_path):
    records = Records(steps.output_dir)
    run_steps(steps, records, jobs=2)
    chosen = steps.chosen(records, "tiny", "names", "SFT")
    assert chosen.tuned == (("learning_rate", 0.2),)
    # Two objectives at two rates with the first seed, and at the chosen rate with the second: the first is there.
    assert len(StandIn.trained) == 6
    assert steps.count() == {"train": 6, "validation": 4, "test": 5, "inspect": 1}
    assert (records.steps["status"] == "done").all()
    assert records.steps["kind"].value_counts().to_dict() == steps.count()
    # No test document was scored at a rate that was not chosen.
    loser = steps.study.trial("tiny", "names", "SFT", {"learning_rate": 0.1}, 1).id
    assert set(records.scores[records.scores["run"] == loser]["part"]) == {"validation"}
    assert not (steps.folder(loser) / "train").exists()
    assert (steps.folder(chosen.id) / "train").exists()
    # Nothing that is kept names a folder of this machine.
    assert str(tmp_path) not in (steps.output_dir / "steps.csv").read_text()
    assert "/some/path" not in records.scores.to_csv() + records.answers.to_csv()


def test_report(steps):
    records = Records(steps.output_dir)
    run_steps(steps, records, jobs=2)
    result = write_report(steps, records, n_resamples=99)
    row = next(row for row in result["rows"] if row["metric"] == "similarity")
    # The stand-in's scores: .5 for the mean of both documents, 2 for the rate, .015 for the mean of both seeds.
    assert row["baseline_score"] == pytest.approx(2.515)
    assert row["difference"] == pytest.approx(0.05)
    assert row["n_seeds"] == row["baseline_n_seeds"] == 2
    base, sft, bft = result["table"]
    assert base["similarity"] == [0.5, None]
    assert sft["chosen"] == {"learning_rate": 0.2}
    assert sft["similarity"] == pytest.approx([2.515, 0.01 / np.sqrt(2)])
    assert (bft["nll"], bft["train_seconds"], bft["memory_gib"], bft["tokens_per_second"]) == (2.5, 3.0, 1.5, 200)
    point = result["map"][0]
    assert (point["objective"], point["confidence"]) == ("BFT", 0.25)
    assert point["difference"] == pytest.approx(0.05)
    page = (steps.output_dir / "index.html").read_text()
    assert "src=" not in page
    assert "@import" not in page
    assert {path.name for path in steps.output_dir.glob("*.*")} >= {
        *("study.json", "study.csv", "forest.png", "forest.svg", "regime_map.png", "regime_map.svg", "steps.csv")
    }


@pytest.mark.parametrize(("higher", "text"), [(True, "1 find an objective better"), (False, "0 find an objective")])
def test_headline_knows_which_scores_are_better(higher, text):
    row = {"task": "t", "metric": "m", "difference": 0.1, "p_holm": 0.01}
    tasks = {"t": {"settings": {"higher_is_better": {"m": higher}}}}
    assert text in headline({"rows": [row], "baseline": "SFT", "tasks": tasks})


def test_report_of_a_metric_without_numbers(steps):
    records = Records(steps.output_dir)
    run_steps(steps, records, jobs=1)
    records.scores.loc[records.scores["metric"] == "rouge1", "score"] = np.nan
    result = write_report(steps, records, n_resamples=99)
    assert result["table"][1]["rouge1"] == [None, None]
    assert "rouge1 (2 of 2 without a number)" in (steps.output_dir / "index.html").read_text()


def test_rows_are_inspected_as_they_are_trained(steps, tmp_path):
    train = {"prompt_column": "q", "completion_columns": ["a", "b"], "completion_only_loss": False}
    study = read_study(write_study(tmp_path, train=train))
    inspect = Steps(study, steps.inputs, steps.bases, steps.output_dir).ready(Records(steps.output_dir))[0]
    words = " ".join(inspect.command)
    assert inspect.kind == "inspect"
    assert "--prompt_column q --completion_columns a b --no-completion_only_loss" in words


def test_disk_counts_the_rank_that_all_runs_have(tmp_path, monkeypatch, caplog):
    build_model().save_pretrained(tmp_path / "tiny")
    build_tokenizer().save_pretrained(tmp_path / "tiny")
    sizes = []
    monkeypatch.setattr(check, "_disk_problems", lambda steps, found: sizes.append(found["tiny"]) or [])
    for rank in (16, 64):
        models = {"tiny": {"model_name_or_path": str(tmp_path / "tiny")}}
        check_study(read_study(write_study(tmp_path, models=models, train={"lora_r": rank})), tmp_path / "out")
    assert sizes[1] == 4 * sizes[0]


def test_base_model_is_measured_again_with_other_options(steps, tmp_path):
    records = Records(steps.output_dir)
    run_steps(steps, records, jobs=1)
    for changes, again in (({"train": {"max_steps": 2}}, False), ({"eval": {"limit": 3}}, True)):
        changed = Steps(read_study(write_study(tmp_path, **changes)), steps.inputs, steps.bases, steps.output_dir)
        report = steps.folder(base_run("tiny", "names")) / "inspect" / "report.json"
        write_text(report, json.dumps({"metrics": {"token_confidence": 0.5, "nll": 3.0}}))
        run_steps(changed, Records(steps.output_dir), jobs=1)
        assert (json.loads(report.read_text())["metrics"]["token_confidence"] == 0.25) is again


def test_metrics_that_need_an_option(tmp_path):
    study = read_study(write_study(tmp_path, eval={"encoder": "none"}))
    with pytest.raises(ValueError, match="`data: names: metrics`: 'similarity' needs `encoder` under `eval`"):
        check_study(study, tmp_path / "out")


def test_killed_study_continues(steps, tmp_path, monkeypatch):
    records = Records(steps.output_dir)
    add, count = Records.add, iter(range(100))

    def add_or_die(self, *args, **options):
        if next(count) == 5:
            raise KeyboardInterrupt
        add(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "add", add_or_die)
        with pytest.raises(KeyboardInterrupt):
            run_steps(steps, records, jobs=1)
    run_steps(steps, Records(steps.output_dir), jobs=1)
    # What was complete when the study was killed is not repeated.
    assert len(StandIn.trained) == len(set(StandIn.trained)) == 6
    once = write_report(steps, Records(steps.output_dir), n_resamples=99)
    other = Steps(steps.study, steps.inputs, steps.bases, tmp_path / "other")
    run_steps(other, Records(other.output_dir), jobs=1)
    assert write_report(other, Records(other.output_dir), n_resamples=99) == once


def test_time_left_without_the_time_of_any_step(steps):
    records = Records(steps.output_dir)
    step = steps.ready(records)[0]
    assert step.kind == "inspect"
    records.add(step.run, step.kind, {})  # it outlived a study that was killed
    rough = {"inspect": 1.0, "test": 2.0, "train": 10.0, "validation": 5.0}
    # Left are 5 tests, 6 trainings and 4 validations.
    assert time_left(steps, Records(steps.output_dir), jobs=2, rough=rough)["seconds"] == (10 + 60 + 20) / 2


def test_interrupted_training_is_not_complete(steps):
    records = Records(steps.output_dir)
    step = next(step for step in steps.ready(records) if step.kind == "train")
    for interrupted in (True, False):
        summary = json.dumps({"interrupted": interrupted})
        write_text(steps.folder(step.run) / "train" / "summary.json", summary)
        assert steps.is_complete(step) is not interrupted


def test_evaluation_without_its_scores_is_repeated(steps):
    run_steps(steps, Records(steps.output_dir), jobs=1)
    (steps.output_dir / "scores.parquet").unlink()
    records = Records(steps.output_dir)
    assert {step.kind for step in steps.ready(records)} == {"train", "validation", "test"}
    assert records.status(base_run("tiny", "names"), "inspect") == "done"


@pytest.mark.parametrize("name", ["steps.csv", "scores.parquet", "answers.parquet"])
@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n"])
def test_damaged_table_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: is damaged"):
        Records(tmp_path)


def test_processes_are_out_of_reach_of_ctrl_c(steps, monkeypatch):
    monkeypatch.setattr(execution.subprocess, "Popen", POPEN)
    monkeypatch.setattr(execution, "_RUN", "import os, sys; sys.exit(os.getsid(0) != os.getpid())")
    step = steps.ready(Records(steps.output_dir))[0]
    assert execution._start(step, 0, steps).process.wait() == 0


def test_processes_have_the_gpus_that_the_study_has(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [execution._device(slot)[0]["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [execution._device(slot)[0]["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["5", "7", "5"]


def test_scores_without_adapters_are_enough_on_another_machine(steps, tmp_path):
    records = Records(steps.output_dir)
    run_steps(steps, records, jobs=2)
    moved = Steps(steps.study, steps.inputs, steps.bases, tmp_path / "moved")
    moved.output_dir.mkdir()
    for name in ("steps.csv", "scores.parquet", "answers.parquet"):
        (steps.output_dir / name).rename(moved.output_dir / name)
    before = len(StandIn.trained)
    again = Records(moved.output_dir)
    assert moved.ready(again) == []
    # Without its test scores a run is trained again, because its adapter is on the other machine.
    run = steps.chosen(records, "tiny", "names", "SFT").id
    again.steps = again.steps[(again.steps["run"] != run) | (again.steps["kind"] != "test")]
    run_steps(moved, again, jobs=1)
    assert len(StandIn.trained) == before + 1
    assert again.status(run, "test") == "done"


def test_failed_runs_are_reported_and_stop_no_other(steps, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(StandIn, "fails", lambda _, of: of["learning_rate"] == 0.2 and of["loss_type"] == "nll")
    records = Records(steps.output_dir)
    run_steps(steps, records, jobs=2)
    failed = records.steps[records.steps["status"] == "failed"]
    assert failed["error"].tolist() == ["exit code 2: error: out of memory"]
    assert "out of memory" in caplog.text
    # The other rate is chosen for SFT.
    assert steps.chosen(records, "tiny", "names", "SFT").tuned == (("learning_rate", 0.1),)
    result = write_report(steps, records, n_resamples=99)
    assert [entry["error"] for entry in result["failed"]] == ["exit code 2: error: out of memory"]
    left = time_left(steps, records, jobs=1, rough={})
    assert left["kinds"]["train"]["failed"] == 1
    # The next start repeats what failed.
    monkeypatch.setattr(StandIn, "fails", lambda *_: False)
    records.retry_failed()
    run_steps(steps, records, jobs=1)
    assert steps.chosen(records, "tiny", "names", "SFT").tuned == (("learning_rate", 0.2),)


@pytest.mark.parametrize(
    ("scores", "higher", "chosen"),
    [
        ((-0.5, 0.0), True, 1),
        ((0.5, 0.0), False, 1),
        ((np.nan, 0.2), True, 1),
        ((None, 0.0), True, 1),  # the first one failed
        ((0.0, 0.0), True, 0),
        ((np.nan, np.nan), True, None),
    ],
)
def test_choice(steps, scores, higher, chosen):
    records = Records(steps.output_dir)
    trials = steps.study.tuning("tiny", "names", "SFT")
    for trial, score in zip(trials, scores, strict=True):
        row = {"task": "t", "metric": "similarity", "unit": "0", "name": "", "kind": "model", "score": score}
        table = pd.DataFrame([row | {"higher_is_better": higher}])
        texts = pd.DataFrame(columns=["task", "unit", "answer", "reference", "document"])
        if score is None:
            records.add(trial.id, "train", {}, status="failed")
        else:
            records.add(trial.id, "validation", {}, table, texts)
    found = steps.chosen(records, "tiny", "names", "SFT")
    assert found == (None if chosen is None else trials[chosen])


def test_run_without_any_success_leaves_the_others(steps, monkeypatch):
    monkeypatch.setattr(StandIn, "fails", lambda _, options: options["loss_type"] == "nll")
    records = Records(steps.output_dir)
    run_steps(steps, records, jobs=2)
    assert steps.chosen(records, "tiny", "names", "SFT") is None
    with pytest.raises(ValueError, match="nothing to compare with SFT"):
        write_report(steps, records, n_resamples=99)


def test_problems_are_reported_together(tmp_path):
    changes = {
        "objectives": {"DFT": {"loss_type": "dtf"}, "BFT": {"lerning_rate": 1}},
        "data": {
            "mine": {"dataset_name": "rows.jsonl", "tasks": "bft_medmcqa", "test_dir": "test", "metrics": ["acc"]}
        },
        "eval": {"batchsize": 1},
        "models": {"tiny": {"objectives": ["DFT", "BTF"]}},
    }
    with pytest.raises(ValueError, match="has problems") as error:
        read_study(write_study(tmp_path, **changes))
    for text in (
        "no SFT arm: add one with `loss_type: nll`",
        "`objectives: BFT`: 'lerning_rate' is not known; did you mean 'learning_rate'?",
        "`objectives: DFT` (tiny, mine): `loss_type='dtf'` is not known",
        "`data: mine` has a dataset_name and needs `validation_dir`",
        "`eval`: 'batchsize' is not known; did you mean 'batch_size'?",
        "`models: tiny: objectives`: 'BTF' is not known; did you mean 'BFT'?",
    ):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objectives: {SFT: {loss_type: nll}, SFT: {loss_type: dft}}", "repeated name SFT"),
        ("[1]", "must have the keys"),
        ("modles: {}", "'modles' is not known; did you mean 'models'"),
        ("seeds: [1, 1]", "different whole numbers"),
        ("a: [", "cannot be read"),
        ("? [a]\n: 1", "cannot be read"),
    ],
)
def test_bad_file(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_study(path)


MINE = {"dataset_name": "d", "tasks": "t", "validation_dir": "v", "test_dir": "t", "metrics": ["acc"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {1: {}}}, "the name 1 must be a text"),
        ({"data": {"..": {"gene_sets": {}}}}, "the name '..' must be a text with a letter"),
        ({"models": {"a": {"data": None}}}, "`models: a: data`: None must be a list"),
        ({"models": {"a": {"data": []}}}, "`models: a: data` is empty"),
        ({"models": {"a": {"objectives": ["BFT"]}}}, "has no SFT, which the others are compared with"),
        ({"data": {"n": {"gene_sets": 5}}}, "`data: n: gene_sets`: 5 must be a mapping"),
        ({"data": {"n": {"gene_sets": {"train_samples": -1}}}}, "-1 must be a number, 0 or more"),
        ({"data": {"n": {"gene_sets": {}, "train": None}}}, "`data: n: train`: None must be a mapping"),
        ({"data": {"n": {"gene_sets": {}, "eval": [1]}}}, "`data: n: eval`: [1] must be a mapping"),
        ({"data": {"n": MINE | {"metrics": "acc"}}}, "`data: n: metrics`: 'acc' must be a list"),
        ({"eval": {"limit": "few"}}, "`eval: limit`: 'few' must be a number"),
        ({"eval": {"load_in_4bit": 1}}, "`eval: load_in_4bit`: 1 must be true or false"),
        ({"objectives": {"SFT": {"loss_type": "nll"}}}, "nothing to compare"),
        ({"objectives": STUDY["objectives"] | {"base model": {}}}, "`objectives: base model`"),
        ({"objectives": STUDY["objectives"] | {"a": {"learning_rate": 1}}}, "no effect, because `tune` sets it"),
        ({"tune": {"loss_type": ["nll", "bft"]}}, "`tune: loss_type` must be under the objectives"),
        ({"train": {"anchor_coef": 0.1}}, "`train: anchor_coef` must be under the objectives"),
        ({"tune": {"learning_rate": [0.1, 0.1]}}, "must be a list of different numbers"),
        ({"tune": {"learning_rate": ["fast"]}}, "invalid float value: 'fast'"),
        ({"train": {"max_steps": 2.5}}, "invalid int value: '2.5'"),
        ({"train": {"max_steps": [2]}}, "invalid int value: '[2]'"),
        ({"train": {"use_peft": False}}, "a study evaluates adapters"),
        ({"train": {"model_name_or_path": "x"}}, "'model_name_or_path' is not known"),
        ({"models": {"a b": {}, "a_b": {}}}, "'a b' and 'a_b' would have the same folders"),
        ({"models": {"a": {}, "a: b": {}}, "data": {"n": {"gene_sets": {}}}}, "'a, n' and 'a: b, n' cannot be told"),
        ({"models": {"a": {}, "a-b": {}}, "data": {"b-c": MINE, "c": MINE}}, "'a, b-c' and 'a-b, c' cannot be told"),
    ],
)
def test_bad_values(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_study(write_study(tmp_path, **changes))


def test_numbers_with_an_exponent(tmp_path):
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace("- 0.1", "- 1e-3"))
    assert read_study(path).tune["learning_rate"] == [0.001, 0.2]


def test_check_finds_everything_before_training(tmp_path):
    entry = {
        "tasks": "bft_medmcqa",
        "validation_dir": "v",
        "test_dir": "t",
        "metrics": ["acc"],
        "dataset_name": "d.jsonl",
    }
    data = {**STUDY["data"], "mine": entry, "many": {"gene_sets": {}, "metrics": ["accuracy"]}}
    study = read_study(write_study(tmp_path, data=data))
    with pytest.raises(ValueError, match="problems:") as error:
        check_study(study, tmp_path / "out")
    for text in (
        "`data: mine` has no validation documents: `data_dir='v'`: no such folder.",
        "`models: tiny`: `model_name_or_path='tiny'`",
        "`data: mine`: `dataset_name='d.jsonl'`: no such file.",
        "`data: many: metrics`: ['accuracy'] are not of its tasks",
    ):
        assert text in str(error.value)


def test_problems_of_the_file_and_of_the_data_are_one_list(tmp_path, capsys):
    entry = {"tasks": ["bft_medmcqa"], "validation_dir": "v", "test_dir": "t", "metrics": ["acc"], "dataset_name": "d"}
    file = write_study(tmp_path, data={**STUDY["data"], "mine": entry}, train={"lerning_rate": 1})
    assert main(["study", str(file), "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    for text in ("'lerning_rate' is not known", "`data: mine` has no test documents", "`models: tiny`"):
        assert text in error


def test_tasks_of_made_data_may_be_a_list(tmp_path):
    entry = STUDY["data"]["names"] | {"tasks": ["bft_gene_sets_go", "bft_gene_sets_described_go"]}
    assert prepare("names", entry, tmp_path).tasks == "bft_gene_sets_go,bft_gene_sets_described_go"


def test_leak_stops_the_study(tmp_path):
    inputs = prepare("names", STUDY["data"]["names"], tmp_path)
    file = training_file(inputs, {}, tmp_path)
    assert find_leaks(inputs, file).empty
    rows = pd.read_parquet(tmp_path / "rows" / "train.parquet")
    test = pd.read_parquet(tmp_path / "test" / "gene_sets_go.parquet")
    test.loc[0, "name"] = rows["name"][3]
    test.to_parquet(tmp_path / "test" / "gene_sets_go.parquet")
    assert find_leaks(inputs, file)["train_row"].tolist() == [3]
    # Rows in a file of the user's, in no format of TRL, leak as well.
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps({"asks": name, "says": "x"}) + "\n" for name in ["other", test["name"][1]]))
    questions = Inputs(str(mine), "bft_gene_sets_go", inputs.validation_dir, inputs.test_dir)
    file = training_file(questions, {"prompt_column": "asks", "completion_columns": ["says"]}, tmp_path)
    assert pd.read_parquet(file)["prompt"][1][0]["content"] == test["name"][1]
    assert {*find_leaks(questions, file)["train"]} == {"train.parquet"}


def test_medical_data_is_split_by_question(tmp_path):
    n = 30
    published = {
        "medmcqa_validation": {
            "id": [f"m{i}" for i in range(n)],
            "question": [f"Question number {i} of the exam?" for i in range(n)],
            **{f"op{letter}": [letter] * n for letter in "abcd"},
            "cop": [i % 4 for i in range(n)],
            "exp": [f"Reason {i}" if i < 24 else None for i in range(n)],
        },
        **{
            f"pubmedqa_{part}": {
                "id": [f"{part}{i}" for i in range(n)],
                "QUESTION": [f"Does {part} {i} help?" for i in range(n)],
                "CONTEXTS": [[f"Context {part} {i}."] for i in range(n)],
                "final_decision": ["yes"] * n,
                "LONG_ANSWER": ["Because."] * n,
            }
            for part in ("train", "test")
        },
        "mmlu_medical_test": {
            "question": [f"Anatomy {i}?" for i in range(n)],
            "subject": ["anatomy"] * n,
            "choices": [list("abcd")] * n,
            "answer": [1] * n,
        },
    }
    (tmp_path / "data").mkdir()
    for name, table in published.items():
        pd.DataFrame(table).to_parquet(tmp_path / "data" / f"{name}.parquet")
    options = {"data_dir": str(tmp_path / "data"), "train_samples": 20, "validation_samples": 12, "test_samples": 14}
    inputs = prepare("medical", {"medical": options}, tmp_path / "out")
    rows = pd.read_parquet(tmp_path / "out" / "rows" / "train.parquet")
    assert len(rows) == 20
    assert all("Reason" in row[0]["content"] or "Because" in row[0]["content"] for row in rows["completion"])
    held = {
        (part, path.stem): pd.read_parquet(path)
        for part, folder in (("validation", inputs.validation_dir), ("test", inputs.test_dir))
        for path in folder.glob("*.parquet")
    }
    assert set(held) == {
        *(("validation", name) for name in ("medmcqa_validation", "pubmedqa_test")),
        *(("test", name) for name in ("medmcqa_validation", "pubmedqa_test", "mmlu_medical_test")),
    }
    # PubMedQA's validation documents are of its training questions, its test documents of its test questions.
    assert held["validation", "pubmedqa_test"]["id"].str.startswith("train").all()
    assert held["test", "pubmedqa_test"]["id"].str.startswith("test").all()
    ids = [*rows["id"], *held["validation", "medmcqa_validation"]["id"], *held["test", "medmcqa_validation"]["id"]]
    assert len(ids) == len(set(ids))
    assert find_leaks(inputs, training_file(inputs, {}, tmp_path)).empty


def test_ids_do_not_depend_on_local_folders(tmp_path):
    entry = {"medical": {"data_dir": "here", "train_samples": 9}}
    first, second = (
        read_study(write_study(tmp_path, data={"m": {"medical": {**entry["medical"], "data_dir": folder}}}))
        for folder in ("here", "there")
    )
    assert first.tuning("tiny", "m", "SFT")[0].id == second.tuning("tiny", "m", "SFT")[0].id
    longer = read_study(write_study(tmp_path, data={"m": entry}, train={"max_steps": 5}))
    assert longer.tuning("tiny", "m", "SFT")[0].id != first.tuning("tiny", "m", "SFT")[0].id


def test_dry_run_and_status(tmp_path, monkeypatch, caplog, capsys):
    build_model().save_pretrained(tmp_path / "tiny")
    build_tokenizer().save_pretrained(tmp_path / "tiny")
    file = write_study(tmp_path, models={"tiny": {"model_name_or_path": str(tmp_path / "tiny")}})
    words = [str(file), "--output_dir", str(tmp_path / "out")]
    caplog.set_level("INFO", logger="bft_trl")
    assert main(["study", "status", *words]) == 2
    assert "has no study" in capsys.readouterr().err
    assert main(["study", *words, "--dry_run"]) == 0
    for text in ("tiny, names: SFT, BFT", "train: 0 of 6 done", "test: 0 of 5 done", "(rough estimate)", "are free"):
        assert text in caplog.text
    assert not (tmp_path / "out" / "runs").exists()
    monkeypatch.setattr(execution.subprocess, "Popen", StandIn)
    assert main(["study", *words, "--jobs", "2", "--resamples", "99"]) == 0
    caplog.clear()
    assert main(["study", "status", *words]) == 0
    assert "train: 6 of 6 done" in caplog.text
    assert "Not running." in caplog.text
    assert "So far: " in caplog.text
    code = "import sys; from pathlib import Path; from bft_trl.io import lock\n"
    code += "with lock(Path(sys.argv[1])): print(flush=True); input()"
    with POPEN(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        caplog.clear()
        assert main(["study", "status", *words]) == 0  # also while it runs
        assert "Not running." not in caplog.text
        assert main(["study", *words]) == 2
        other.communicate(b"\n")
    assert "another process is writing there" in capsys.readouterr().err
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert main(["study", *words]) == 2
    assert "0.0 GB" in capsys.readouterr().err


def test_sigterm_ends_the_processes(tmp_path, monkeypatch):
    steps = SimpleNamespace(output_dir=tmp_path)
    monkeypatch.setattr(check, "check_study", lambda *args, **options: steps)
    monkeypatch.setattr("bft_trl.study.status.log_plan", lambda *args, **options: None)
    monkeypatch.setattr(execution, "run_steps", lambda *args, **options: os.kill(os.getpid(), signal.SIGTERM))
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["study", str(write_study(tmp_path)), "--output_dir", str(tmp_path / "out")]) == 130
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--jobs", "0"], "`jobs=0` must be 1 or more"), (["--resamples", "9"], "`resamples=9` 99 or more")],
)
def test_bad_options(tmp_path, words, message, capsys):
    assert main(["study", str(write_study(tmp_path)), *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_base_run_is_a_folder_name():
    assert base_run("Qwen/Qwen3 4B", "a, b") == "base_model_Qwen_Qwen3_4B_a_b"
