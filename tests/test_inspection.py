"""`bft-trl inspect`: numbers against the reference implementation, texts, advice, and errors."""

import json
import re
from pathlib import Path

import pytest
import reference
import torch
from conftest import answer_probs, broken_model, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from bft_trl.cli.main import main
from bft_trl.cli.train import parse
from bft_trl.inspection.advice import advice
from bft_trl.inspection.inspection import inspect_samples, token_texts
from bft_trl.inspection.token_scores import token_scores
from bft_trl.models import DemoModel, Run

ROWS = [row | {"id": f"row-{number}", "source": "go"} for number, row in enumerate(sample_rows(5, seed=7))]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def report_of(base, rows, output_dir, **options):
    data = Dataset.from_list(rows)
    return inspect_samples(Run(str(base)), data, output_dir, dataset_name="rows", device="cpu", **options)


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        ({"group_size": 8}, {"group_size": 8}),
        ({"group_size": 6, "bft_version": "v3"}, {"group_size": 6, "version": "v3"}),
        ({"confidence_gamma": 2.0, "min_token_weight": 0.3}, {"gamma": 2.0, "floor": 0.3}),
    ],
)
def test_samples_equal_the_reference(objective, rule, base, tmp_path):
    report = report_of(base, ROWS, tmp_path, config=objective)
    assert [sample["id"] for sample in report["samples"]] == [row["id"] for row in ROWS]
    for sample, row in zip(report["samples"], ROWS, strict=True):
        probs = answer_probs(row)
        token, weight, confidence, acts = reference.weights(probs, **rule)
        assert sample["probs"] == pytest.approx(probs, rel=2e-3)
        assert sample["weights"] == pytest.approx(token, rel=2e-3)
        assert sample["sample_weight"] == pytest.approx(weight, rel=2e-3)
        assert sample["group_confidence"] == pytest.approx(confidence, rel=2e-3)
        assert sample["windowed"] == acts
        assert sample["nll"] == pytest.approx(-sum(torch.tensor(probs).log().tolist()) / len(probs), rel=2e-3)
        assert sample["supervised"] == len(probs)
        assert sample["ends"]
        read, supervised = sample["parts"]
        assert read["texts"] == [row["prompt"]]
        assert "".join(supervised["texts"]) == row["completion"] + "<eos>"
    metrics = report["metrics"]
    everything = [value for row in ROWS for value in answer_probs(row)]
    assert metrics["token_confidence"] == pytest.approx(sum(everything) / len(everything), rel=2e-3)
    assert metrics["supervised_tokens"] == len(everything)
    assert sum(metrics["distributions"]["token confidence"]["counts"]) == len(everything)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_weights_of_nll_and_dft(base, tmp_path):
    for loss_type in ("nll", "dft"):
        for sample in report_of(base, ROWS, tmp_path, config={"loss_type": loss_type})["samples"]:
            assert sample["weights"] == ([1] * sample["supervised"] if loss_type == "nll" else sample["probs"])
            assert sample["sample_weight"] == 1


def test_max_length_cuts(base, tmp_path):
    """Prompt of 4 and answer of 6 with its end: 8 tokens lose 3 supervised ones, with 4 nothing is left to learn."""
    rows = [{"prompt": "abcd", "completion": "abcdef"}, {"prompt": "a", "completion": "b"}]
    first, second = report_of(base, rows, tmp_path, max_length=8)["samples"]
    assert (first["length"], first["cut"], first["cut_supervised"], first["supervised"]) == (11, 3, 3, 4)
    assert first["probs"] == pytest.approx(answer_probs(rows[0], 8), rel=2e-3)
    assert not first["ends"]
    assert (second["cut"], second["ends"]) == (0, True)
    report = report_of(base, rows, tmp_path, max_length=4)
    assert report["samples"][0]["supervised"] == 0
    assert "nll" not in report["samples"][0]
    levels = {entry["code"]: entry["level"] for entry in report["advice"]}
    assert levels["nothing_supervised"] == "warning"
    report = report_of(base, rows[:1], tmp_path, max_length=4)
    assert report["advice"][0]["code"] == "nothing_supervised"
    assert report["advice"][0]["level"] == "error"


def test_rows_are_drawn_by_seed_and_repeats_are_counted_in_all(base, tmp_path):
    rows = [*ROWS, ROWS[0], ROWS[0] | {"completion": "other"}, ROWS[1] | {"id": "new name"}]
    reports = [report_of(base, rows, tmp_path, num_samples=3, seed=seed) for seed in (0, 0, 1)]
    drawn = [[sample["row"] for sample in report["samples"]] for report in reports]
    assert drawn[0] == drawn[1] == sorted(drawn[0]) != drawn[2]
    assert len(drawn[0]) == reports[0]["num_samples"] == 3
    assert (reports[0]["metrics"]["duplicates"], reports[0]["metrics"]["ambiguous_prompts"]) == (2, 1)


def test_adapter_over_a_quantized_base(tmp_path):
    """The untrained adapter changes nothing, so an NF4 base with it and without it shows the same."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = build_model(hidden_size=64, intermediate_size=64)
    model.save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(adapter)
    nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    options = {"dataset": Dataset.from_list(ROWS), "output_dir": tmp_path, "dataset_name": "rows", "device": "cpu"}
    plain, tuned = (inspect_samples(Run(str(base), folder, nf4), **options) for folder in (None, adapter))
    assert plain["samples"] == tuned["samples"]
    assert plain["metrics"]["nll"] != report_of(base, ROWS, tmp_path)["metrics"]["nll"]


def test_token_scores_leave_the_model_as_it_was():
    """Padded labels (1, 5), two of them supervised: log-probabilities of full logits, 0 elsewhere."""
    model = build_model()
    ids = torch.tensor([[5, 6, 7, 8, 0]])
    labels = torch.tensor([[-100, -100, 7, 8, -100]])
    log_probs, mask = token_scores(model, {"input_ids": ids, "labels": labels, "attention_mask": ids.sign()})
    expected = model(ids).logits.log_softmax(-1)[0, [1, 2], [7, 8]]
    assert log_probs[mask].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert mask.tolist() == [[False, True, True, False]]
    assert log_probs[~mask].tolist() == [0, 0]
    assert not log_probs.requires_grad


def test_token_texts_of_characters_in_pieces():
    tokenizer = build_tokenizer()
    text = "αβ 漢字 🧬 a" * 9
    texts = token_texts(tokenizer(text)["input_ids"], tokenizer)
    assert "".join(texts) == text
    assert len(texts) == len(text.encode())


def test_supervised_tokens_are_those_of_training(base, tmp_path):
    """A conversation is supervised whole; a template without marks of turns raises ValueError."""
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    (sample,) = report_of(base, [{"messages": turns}], tmp_path)["samples"]
    # "<bos>user:ab<eos><bos>assistant:cd<eos>": 1 + 5 + 2 + 1 + 1 + 10 + 2 + 1 tokens, the first has no prediction
    assert (sample["supervised"], sample["length"]) == (22, 23)
    (sample,) = report_of(base, ROWS[:1], tmp_path, config={"completion_only_loss": False})["samples"]
    assert sample["supervised"] == sample["length"] - 1
    with pytest.raises(ValueError, match="template"):
        report_of(base, [{"messages": turns}], tmp_path, config={"assistant_only_loss": True})


def test_page_is_escaped_and_self_contained(base, tmp_path):
    evil = "</b><script>document.title='run'</script><img src=x onerror=alert(1)>"
    rows = [{"id": evil, "source": evil, "prompt": evil, "completion": evil}]
    report_of(base, rows, tmp_path, config={"group_size": 4})
    text = (tmp_path / "index.html").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "default-src 'none'" in text
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert ' weak"' in text


def test_command_line(base, tmp_path, caplog):
    data = tmp_path / "qa.csv"
    data.write_text("q,a,id\nwhat is a,aaaa,x\nwhat is b,bbbb,y\n")
    out = tmp_path / "out"
    options = ["--dataset_name", str(data), "--prompt_column", "q", "--completion_columns", "a", "--device", "cpu"]
    command = ["inspect", "--model_name_or_path", str(base), *options, "--output_dir", str(out)]
    assert main([*command, "--group_size", "2", "--no-token_weighting"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert (report["objective"]["group_size"], report["objective"]["token_weighting"]) == (2, False)
    assert [sample["id"] for sample in report["samples"]] == ["x", "y"]
    assert "samples in which the window acts" in caplog.text
    assert f"Open {out / 'index.html'}" in caplog.text


@pytest.mark.parametrize("demo", [False, True])
def test_defaults_are_those_of_training(demo, base, tmp_path, monkeypatch):
    """The shipped sets of up to 9 genes with full names; the window, and without a model the exponent of the demo."""
    monkeypatch.setattr("bft_trl.models.demo_model", lambda: DemoModel(str(base), "tiny"))
    options = [] if demo else ["--model_name_or_path", str(base)]
    assert main(["inspect", *options, "--num_samples", "2", "--device", "cpu", "--output_dir", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    _, _, args, _ = parse(options)
    assert report["objective"] == args.objective()
    assert (report["max_length"], report["metrics"]["rows"]) == (args.max_length, 615)


def test_bad_input_ends_before_the_model_is_loaded(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bft_trl.inspection.inspection.load_run", lambda *args, **kwargs: pytest.fail("model loaded"))
    data = tmp_path / "rows.csv"
    data.write_text("prompt,completion\na,b\nc,\n")
    command = ["inspect", "--dataset_name", str(data), "--output_dir", str(tmp_path / "out")]
    model = ["--model_name_or_path", str(base)]
    for options, words in (
        (model, "no text in column 'completion' of row 1: None"),
        ([*model, "--num_samples", "0"], "`num_samples=0` must be 1 or more"),
        ([*model, "--max_length", "0"], "`max_length=0`"),
        ([*model, "--seed", "-1"], "`seed=-1`"),
        ([*model, "--group_size", "0"], "`group_size=0`"),
        ([*model, "--dataset_split", "test"], "`dataset_split='test'` is not in"),
        ([*model, "--dataset_name", "absent.csv"], "`dataset_name='absent.csv'`: no such file"),
        ([*model, "--prompt_column", "q"], "must both name columns"),
        (["--adapter", "absent"], "`adapter='absent'` has no adapter_config.json"),
    ):
        assert main([*command, *options]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


def test_eaft_is_not_shown(base, tmp_path, monkeypatch):
    monkeypatch.setattr("bft_trl.inspection.inspection.load_run", lambda *args, **kwargs: pytest.fail("model loaded"))
    with pytest.raises(ValueError, match="`loss_type='eaft'` weighs by entropies"):
        report_of(base, ROWS, tmp_path, config={"loss_type": "eaft"})


ZERO = ("without_target", "not_finite", "cut_supervised", "duplicates", "ambiguous_prompts")
FINE = dict.fromkeys(ZERO, 0) | {"samples": 100, "rows": 100, "uncut": 100, "ends": 100, "windowed": 50}
FINE |= {"near_zero_fraction": 0.1, "token_weight": 0.5, "group_confidence": 0.4, "sample_weight": 0.6}
FINE |= {"median_length": 300.0}
BFT = {
    "token_weight_power": 1.0,
    "min_token_weight": 0.0,
    "loss_type": "bft",
    "bft_version": "v1",
    "token_weighting": True,
    "sample_weighting": True,
    "group_size": 256,
}


@pytest.mark.parametrize(
    ("metrics", "objective", "codes", "words"),
    [
        ({}, {}, "nothing", "No problem found"),
        ({"windowed": 4}, {}, "window_never_acts", "Only 4% .*`group_size=256`.*median answer has 300"),
        ({"windowed": 5}, {}, "nothing", ""),
        ({"windowed": 0}, {"loss_type": "nll"}, "nothing", ""),
        ({"windowed": 0}, {"sample_weighting": False}, "nothing", ""),
        ({"near_zero_fraction": 0.3}, {}, "signal_vanishes", "30% .*0.500.*`token_weight_power=0.25`, a floor"),
        ({"near_zero_fraction": 0.3}, {"loss_type": "dft"}, "signal_vanishes", "Try `token_weight_power=0.25`, or"),
        ({"near_zero_fraction": 0.3}, {"token_weight_power": 0.2}, "signal_vanishes", "Try a floor .*, or a base"),
        (
            {"near_zero_fraction": 0.3},
            {"token_weight_power": 0.2, "min_token_weight": 0.1},
            "signal_vanishes",
            "Try a base model",
        ),
        ({"near_zero_fraction": 0.3}, {"token_weighting": False}, "nothing", ""),
        ({"near_zero_fraction": None, "group_confidence": None}, {}, "nothing", ""),
        ({"cut_supervised": 2}, {}, "cut", "2 of 100"),
        ({"ends": 0}, {}, "end_of_turn", "100 of 100"),
        ({"group_confidence": 0.95}, {}, "known", "0.95.*0.60"),
        ({"ambiguous_prompts": 2, "duplicates": 7, "ends": 90}, {}, "end_of_turn duplicates ambiguous", "10 of 100"),
        ({"duplicates": 7, "not_finite": 1}, {}, "not_finite duplicates", "1 samples"),
    ],
)
def test_advice_by_hand(metrics, objective, codes, words):
    """Errors come first; `words` are of the first advice."""
    found = advice(FINE | metrics, BFT | objective, max_length=512)
    assert [entry["code"] for entry in found] == codes.split()
    assert re.search(words, found[0]["text"])


def test_end_of_turn_that_is_never_supervised(base, tmp_path):
    """Rows of tokens without an end: the labels are the user's own."""
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}] * 3
    report = report_of(base, rows, tmp_path)
    assert report["advice"][0]["code"] == "end_of_turn"
    assert report["samples"][0]["supervised"] == 3


def test_samples_without_a_finite_loss(base, tmp_path):
    broken_model().save_pretrained(tmp_path / "broken")
    build_tokenizer().save_pretrained(tmp_path / "broken")
    rows = [{"prompt": "a", "completion": "aza"}, {"prompt": "a", "completion": "aaa"}]
    report = report_of(tmp_path / "broken", rows, tmp_path / "out")
    assert report["metrics"]["not_finite"] == 1
    assert report["advice"][0]["code"] == "not_finite"
    assert "NaN" not in Path(tmp_path / "out" / "report.json").read_text()
