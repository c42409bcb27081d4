"""Lists of hard samples by hand, from a written record; plots and pages are made from the same."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset

from bft_trl import BFTTrainer
from bft_trl.cli.main import main
from bft_trl.inspection.hard_samples import by_sample, by_source, hard_samples, ranked, read_record
from bft_trl.training.sample_log import SCHEMA

# nll of each sample in three epochs: b is learned from a hard start, c never, d gets worse, e is easy throughout.
NLL = {"a": [2.0, 1.5, 1.0], "b": [6.0, 3.0, 0.6], "c": [5.0, 5.0, 4.9], "d": [3.0, 3.5, 4.5], "e": [0.5, 0.4, 0.2]}


def record(**changes):
    rows = []
    for epoch in range(3):
        for row, (name, values) in enumerate(NLL.items()):
            rows.append(
                {
                    "epoch": epoch,
                    "step": epoch * 5 + row + 1,
                    "row": row,
                    "id": name,
                    "source": "go" if name in "abc" else None,
                    "tokens": 10,
                    "nll": values[epoch],
                    "group_confidence": 0.1 * row,
                    "sample_weight": 1 - 0.1 * row,
                    "window_first": 0,
                    "window_end": 8,
                    "window_text": f"text of {name}",
                }
                | changes
            )
    return pd.DataFrame(rows)


def write(folder, table, name="part-00000-0.parquet"):
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(table, schema=SCHEMA, preserve_index=False), folder / "samples" / name)


def test_lists_by_hand():
    """Last nll: c 4.9, d 4.5, a 1, b .6, e .2, median 1. First nll: 6, 5, 3, 2, .5, median 3."""
    samples = by_sample(record())
    by_id = samples.set_index("id")
    assert by_id.loc["b", ["first_nll", "last_nll", "change"]].tolist() == pytest.approx([6.0, 0.6, -5.4])
    assert by_id.loc["b", "learned"] == pytest.approx(0.9)
    assert by_id.loc["d", "learned"] == pytest.approx(-0.5)
    assert list(ranked(samples, "hardest")["id"]) == ["c", "d", "a", "b", "e"]
    assert list(ranked(samples, "never learned")["id"]) == ["d", "c"]  # -50 %, 2 %
    assert list(ranked(samples, "getting worse")["id"]) == ["d"]
    assert list(ranked(samples, "learned late")["id"]) == ["b", "c"]  # 90 %, 2 %
    with pytest.raises(ValueError, match="`name='softest'` is not known"):
        ranked(samples, "softest")


def test_one_epoch_says_nothing_of_learning():
    samples = by_sample(record()[:5])
    assert samples["change"].isna().all()
    assert list(ranked(samples, "hardest")["id"]) == ["b", "c", "d", "a", "e"]
    assert not len(ranked(samples, "never learned"))


def test_sources_by_hand():
    """go in epoch 0: a, b, c: (2 + 6 + 5) / 3; the others are of none."""
    table = by_source(record()).set_index(["source", "epoch"])
    assert table.loc[("go", 0), "nll"] == pytest.approx(13 / 3)
    assert table.loc[("go", 0), "group_confidence"] == pytest.approx(0.1)
    assert table.loc[("-", 2), "nll"] == pytest.approx((4.5 + 0.2) / 2)


def test_pieces_of_a_document_are_one_sample(tmp_path):
    """Pieces of 30 tokens at 2 nats and 10 at 6: 3 nats; weights .5 and .9: .6; the weaker window is the sample's."""
    pieces = [record().iloc[0].to_dict() for _ in range(2)]
    pieces[0] |= {"tokens": 30, "nll": 2.0, "sample_weight": 0.5, "group_confidence": 0.4, "window_text": "first"}
    pieces[1] |= {"tokens": 10, "nll": 6.0, "sample_weight": 0.9, "group_confidence": 0.3, "window_text": "second"}
    write(tmp_path, pd.DataFrame(pieces))
    (sample,) = read_record(tmp_path).to_dict("records")
    assert sample["nll"] == pytest.approx(3)
    assert sample["sample_weight"] == pytest.approx(0.6)
    assert (sample["tokens"], sample["window_text"]) == (40, "second")


def test_parts_are_read_together_in_the_order_of_training(tmp_path):
    table = record()
    write(tmp_path, table[7:], "part-00000-1.parquet")
    write(tmp_path, table[:7], "part-00000-0.parquet")
    pd.testing.assert_frame_equal(read_record(tmp_path), table, check_dtype=False, rtol=1e-5)


def test_command_line(tmp_path, caplog):
    write(tmp_path, record())
    assert main(["hard-samples", str(tmp_path), "--top", "2"]) == 0
    page = (tmp_path / "hard_samples" / "index.html").read_text()
    assert "text of c" in page
    assert page.count("<svg") == 2
    assert "hardest: highest nll when last seen (5)" in caplog.text
    assert "c [go]: nll 5 to 4.9" in caplog.text
    table = pd.read_csv(tmp_path / "hard_samples" / "samples.csv")
    assert dict(zip(table["id"], table["last_nll"], strict=True)) == pytest.approx(
        {name: values[-1] for name, values in NLL.items()}
    )
    assert main(["hard-samples", str(tmp_path), "--source", "go", "--out", str(tmp_path / "go")]) == 0
    assert len(pd.read_csv(tmp_path / "go" / "samples.csv")) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top", "0"], "`top=0` must be 1 or more"),
        (["--source", "qa"], r"`source='qa'` is not in the record, which has ['go']"),
    ],
)
def test_bad_options(options, words, tmp_path, capsys):
    write(tmp_path, record())
    assert main(["hard-samples", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "hard_samples").exists()


def test_folders_without_a_record(tmp_path, capsys):
    assert main(["hard-samples", str(tmp_path / "absent")]) == 2
    assert "has no record of samples in samples/" in capsys.readouterr().err
    write(tmp_path, record())
    file = tmp_path / "samples" / "part-00000-0.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    assert main(["hard-samples", str(tmp_path)]) == 2
    assert "part-00000-0.parquet: cannot be read" in capsys.readouterr().err


def test_samples_without_a_finite_loss_are_named(tmp_path):
    table = record()
    table.loc[table["id"] == "e", "nll"] = float("nan")
    write(tmp_path, table)
    result = hard_samples(tmp_path, tmp_path / "out")
    assert result["not_finite"] == ["e"]
    assert result["samples"] == 4


def test_texts_of_the_data_are_escaped(tmp_path):
    evil = "<script>document.title='run'</script>$x"
    write(tmp_path, record(id=evil, source=evil, window_text=evil))
    hard_samples(tmp_path, tmp_path / "out")
    assert "<script" not in (tmp_path / "out" / "index.html").read_text()


def test_from_training_to_the_pages(tmp_path):
    """A run leaves its record and its page: figures by group, curves, a link from the model card."""
    rows = [row | {"from": ["go", "<script>1</script>"][place % 2]} for place, row in enumerate(sample_rows(6))]
    run = BFTTrainer(
        build_model(),
        build_config(
            tmp_path, num_train_epochs=2, save_strategy="epoch", group_column="from", per_device_train_batch_size=2
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=build_tokenizer(),
    )
    run.train()
    assert len(read_record(tmp_path)) == 12
    page = (tmp_path / "run.html").read_text()
    assert "<script" not in page
    assert page.count("<svg") == 1
    last = [entry for entry in run.state.log_history if "nll" in entry][-1]
    assert f"<td>{last['nll']:.1f}</td>" in page
    assert "[run.html](run.html)" in (tmp_path / "README.md").read_text()
    hard_samples(tmp_path, tmp_path / "hard")


def test_a_new_run_does_not_keep_the_page_of_an_older_one(tmp_path):
    (tmp_path / "run.html").write_text("old")
    data = Dataset.from_list(sample_rows(2))
    config = build_config(tmp_path, max_steps=1)
    BFTTrainer(build_model(), config, train_dataset=data, processing_class=build_tokenizer()).train()
    assert not (tmp_path / "run.html").exists()  # with save_strategy="no" nothing is to be kept


def test_tensorboard_gets_every_figure(tmp_path):
    """Offline, through `report_to`: the figures of the log, of groups too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [row | {"from": "go"} for row in sample_rows(4)]
    config = build_config(
        tmp_path, max_steps=2, report_to="tensorboard", group_column="from", eval_strategy="steps", eval_steps=1
    )
    data = Dataset.from_list(rows)
    run = BFTTrainer(build_model(), config, train_dataset=data, eval_dataset=data, processing_class=build_tokenizer())
    run.train()
    (file,) = tmp_path.rglob("*tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    for name in ("nll", "token_weight", "sample_weight", "group_confidence", "windowed_share", "nll/go"):
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(
            [entry[name] for entry in logged], rel=1e-5
        )
    assert "eval/nll/go" in events.Tags()["scalars"]


@pytest.mark.long
def test_trackio_gets_every_figure(tmp_path):
    """Offline, into a local data base; in a process of its own, because trackio serves a dashboard beside the run."""
    code = """
import sys
from conftest import *
from bft_trl import BFTTrainer
rows = Dataset.from_list([row | {"from": "go"} for row in sample_rows(4)])
config = build_config(sys.argv[1], max_steps=2, report_to="trackio", group_column="from")
BFTTrainer(build_model(), config, train_dataset=rows, processing_class=build_tokenizer()).train()
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], env=environment, check=True, timeout=120)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        logged = [json.loads(row[0]) for row in base.execute("select metrics from metrics order by id")]
    assert sum("train/nll/go" in entry for entry in logged) == 2
    assert all(entry["train/nll"] > 0 for entry in logged if "train/nll" in entry)
