"""Lists of hard samples by hand, from a written sample log and its data set; and what `report_to` gets."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset

from bft_trl import BFTTrainer
from bft_trl.cli.main import main
from bft_trl.data.loading import load_train_and_eval
from bft_trl.inspection.hard_samples import by_sample, by_source, hard_samples, rank, read_sample_log
from bft_trl.training.sample_log import FOLDER, SCHEMA

# nll of each sample in three epochs: b is learned from a hard start, c never, d gets worse, e is easy throughout.
NLL = {"a": [2.0, 1.5, 1.0], "b": [6.0, 3.0, 0.6], "c": [5.0, 5.0, 4.9], "d": [3.0, 3.5, 4.5], "e": [0.5, 0.4, 0.2]}
# With the end of turn each answer has 10 tokens, of which the window [2, 8) is logged.
ROWS = [
    {"id": name, "source": "go" if name in "abc" else None, "prompt": "why", "completion": f"--text {name}-"}
    for name in NLL
]


def log(**changes):
    values = {"tokens": 10, "window_first": 2, "window_end": 8}
    rows = [
        values | {"epoch": epoch, "step": epoch * 5 + row + 1, "row": row, "nll": nll[epoch]}
        | {"group_confidence": 0.1 * row, "sample_weight": 1 - 0.1 * row}
        | changes
        for epoch in range(3)
        for row, nll in enumerate(NLL.values())
    ]  # fmt: skip
    return pd.DataFrame(rows)[SCHEMA.names]


def with_names(table):
    return table.assign(
        id=[ROWS[row]["id"] for row in table["row"]], source=[ROWS[row]["source"] for row in table["row"]]
    )


@pytest.fixture
def run(tmp_path):
    """A run folder with a tokenizer; the log is written by `write`."""
    build_tokenizer().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def write(folder, table, name="part-00000-0.parquet"):
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(table, schema=SCHEMA, preserve_index=False), folder / FOLDER / name)


def test_lists_by_hand():
    """Last nll: c 4.9, d 4.5, a 1, b .6, e .2, median 1. First nll: 6, 5, 3, 2, .5, median 3."""
    samples = by_sample(with_names(log()))
    by_id, ranked = samples.set_index("id"), rank(samples)
    assert by_id.loc["b", ["first_nll", "last_nll", "change"]].tolist() == pytest.approx([6.0, 0.6, -5.4])
    assert by_id.loc[["b", "d"], "learned"].tolist() == pytest.approx([0.9, -0.5])
    assert list(ranked["hardest"]["id"]) == ["c", "d", "a", "b", "e"]
    assert list(ranked["never learned"]["id"]) == ["d", "c"]  # -50 %, 2 %
    assert list(ranked["getting worse"]["id"]) == ["d"]
    assert list(ranked["learned late"]["id"]) == ["b", "c"]  # 90 %, 2 %
    once = by_sample(log()[:5])  # after one epoch no change is known
    assert once["change"].isna().all()
    assert {name: list(table["row"]) for name, table in rank(once).items() if len(table)} == {
        "hardest": [1, 2, 3, 0, 4]
    }


def test_sources_by_hand():
    """go in epoch 0: a, b, c: (2 + 6 + 5) / 3; the others have none."""
    table = by_source(with_names(log())).set_index(["source", "epoch"])
    assert table.loc[("go", 0), "nll"] == pytest.approx(13 / 3)
    assert table.loc[("go", 0), "group_confidence"] == pytest.approx(0.1)
    assert table.loc[("-", 2), "nll"] == pytest.approx((4.5 + 0.2) / 2)


def test_pieces_of_a_document_are_one_sample(tmp_path):
    """Pieces of 30 tokens at 2 nats and 10 at 6: 3 nats; weights .5 and .9: .6; the confidence is the lower one."""
    pieces = log()[:3]
    pieces.loc[:1, "row"] = 0
    pieces.loc[:1, ["tokens", "nll", "sample_weight", "group_confidence"]] = [[30, 2.0, 0.5, 0.4], [10, 6.0, 0.9, 0.3]]
    write(tmp_path, pieces)
    sample, whole = read_sample_log(tmp_path).to_dict("records")
    assert [sample[name] for name in ("nll", "sample_weight", "group_confidence")] == pytest.approx([3, 0.6, 0.3])
    assert (sample["tokens"], sample["window_first"], sample["window_end"]) == (40, 0, 0)
    assert (whole["row"], whole["tokens"], whole["window_end"]) == (2, 10, 8)

    pieces.loc[0, "nll"] = float("nan")  # a sum would leave it out
    write(tmp_path, pieces)
    assert read_sample_log(tmp_path)["nll"].isna().tolist() == [True, False]


def test_parts_are_read_in_training_order(tmp_path):
    table = log()
    write(tmp_path, table[7:], "part-00000-1.parquet")
    write(tmp_path, table[:7], "part-00000-0.parquet")
    pd.testing.assert_frame_equal(read_sample_log(tmp_path), table, check_dtype=False, rtol=1e-5)


def test_command_line(run, tmp_path, caplog, capsys):
    write(run, log())
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    command = ["hard-samples", str(run), "--dataset_name", str(data)]
    assert main([*command, "--top", "2"]) == 0
    page = (run / "hard_samples" / "index.html").read_text()
    assert '<td class="text">text c</td>' in page
    assert "text e" not in page  # in no list of two
    assert page.count("<svg") == 1
    assert "hardest: highest last nll (5)" in caplog.text
    assert "c [go]: nll 5 to 4.9" in caplog.text
    table = pd.read_csv(run / "hard_samples" / "samples.csv")
    last = {name: values[-1] for name, values in NLL.items()}
    assert dict(zip(table["id"], table["last_nll"], strict=True)) == pytest.approx(last)
    assert main([*command, "--source", "go", "--output_dir", str(tmp_path / "go")]) == 0
    assert len(pd.read_csv(tmp_path / "go" / "samples.csv")) == 3
    for options, words in {
        ("--top", "0"): "`top=0` must be 1 or more",
        ("--source", "qa"): "`source='qa'` is not in the data set, which has ['go']",
        ("--eval_samples", "0"): "`eval_samples=0` must be 1 or more",
    }.items():
        assert main([*command, *options, "--output_dir", str(tmp_path / "bad")]) == 2
        assert words in capsys.readouterr().err
    assert not list((tmp_path / "bad").glob("*.html"))


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        (ROWS[:4], {}, "`dataset` has 4 rows, but the sample log of .* has row 4.*`seed`"),
        (ROWS, {"tokens": 11}, "Row 2 of `dataset` has 10 supervised tokens, but the sample log of .* has 11.*`seed`"),
    ],
)
def test_another_data_set_raises(rows, changes, words, run):
    write(run, log(**changes))
    with pytest.raises(ValueError, match=words):
        hard_samples(run, Dataset.from_list(rows), run / "out")


def test_supervised_tokens_as_in_training(run):
    """With the prompt supervised, 3 + 10 tokens are 12 targets: the first token has no prediction."""
    write(run, log(tokens=12, window_first=0, window_end=4))
    result = hard_samples(run, Dataset.from_list(ROWS), run / "out", config={"completion_only_loss": False})
    assert result["lists"]["hardest"]["rows"][0]["window_text"] == "hy--"


def test_folders_without_log_or_tokenizer(run, tmp_path):
    data = Dataset.from_list(ROWS)
    with pytest.raises(FileNotFoundError, match=r"has no sample log in _samples/. Train with `--log_samples True`"):
        hard_samples(tmp_path / "absent", data, tmp_path / "out")
    write(tmp_path, log())
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        hard_samples(tmp_path, data, tmp_path / "out")
    build_tokenizer().save_pretrained(tmp_path / "checkpoint-5")
    assert hard_samples(tmp_path, data, tmp_path / "out")["lists"]["hardest"]["rows"][0]["window_text"] == "text c"


def test_samples_without_a_finite_loss_and_escaped_texts(run):
    evil = "<script>document.title='run'</script>$x"
    table = log(window_first=0)
    table.loc[table["row"] == 4, "nll"] = float("nan")
    write(run, table)
    rows = [row | {"source": evil, "completion": evil} for row in ROWS]
    result = hard_samples(run, Dataset.from_list(rows), run / "out")
    assert (result["not_finite"], result["samples"]) == (["e"], 4)
    assert "<script" not in (run / "out" / "index.html").read_text()


def test_from_training_to_the_page(tmp_path):
    """The text of each window is found again, of rows that training shuffles, cuts and leaves out (weight 0)."""
    rows = [row | {"weight": float(number != 2)} for number, row in enumerate(sample_rows(6, seed=2))]
    config = build_config(tmp_path, num_train_epochs=2, log_samples=True, weight_column="weight", max_length=40)
    data = Dataset.from_list(rows)
    trainer = BFTTrainer(build_model(), config, train_dataset=data, processing_class=build_tokenizer())
    trainer.train()
    trainer.save_model()
    assert sorted(read_sample_log(tmp_path)["row"]) == sorted(2 * [0, 1, 3, 4, 5])
    found = hard_samples(tmp_path, data, tmp_path / "hard")["lists"]["hardest"]["rows"]
    assert {row["id"] for row in found} == set("01345")
    for sample in found:
        answer = (rows[sample["row"]]["completion"] + "\n")[sample["window_first"] : sample["window_end"]]
        assert sample["window_text"].replace("<eos>", "\n") == answer


def test_train_and_eval_rows(tmp_path):
    """Without a test split the rows are drawn by `seed`, as in training; with one they are its first rows."""
    data = tmp_path / "rows.csv"
    data.write_text("q,a\n" + "".join(f"why {n},so {n}\n" for n in range(9)))
    columns = {"prompt_column": "q", "completion_columns": ["a"]}
    train, test = load_train_and_eval(str(data), eval_samples=3, seed=7, **columns)
    expected = Dataset.from_list([{"q": n} for n in range(9)]).train_test_split(test_size=3, seed=7)
    for rows, split in ((train, "train"), (test, "test")):
        assert [row["prompt"][0]["content"] for row in rows] == [f"why {n}" for n in expected[split]["q"]]
    train, test = load_train_and_eval(str(data), eval_samples=9)
    assert (len(train), test) == (9, None)
    train, test = load_train_and_eval(None, eval_samples=5)
    assert (len(train), len(test)) == (615, 5)
    with pytest.raises(ValueError, match="`eval_samples=0` must be 1 or more"):
        load_train_and_eval(None, eval_samples=0)


def test_tensorboard_gets_every_metric(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = Dataset.from_list([row | {"from": "go"} for row in sample_rows(4)])
    options = {"report_to": "tensorboard", "metrics_by_column": "from", "eval_strategy": "steps", "eval_steps": 1}
    config = build_config(tmp_path, max_steps=2, **options)
    run = BFTTrainer(build_model(), config, train_dataset=data, eval_dataset=data, processing_class=build_tokenizer())
    run.train()
    (file,) = tmp_path.rglob("*tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    for name in ("nll", "token_weight", "sample_weight", "group_confidence", "windowed_fraction", "nll/go"):
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(
            [entry[name] for entry in logged], rel=1e-5
        )
    assert "eval/nll/go" in events.Tags()["scalars"]
