"""What `bft-trl inspect` shows is what the loss sees: figures by the twin, texts, advice, and what it refuses."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import reference
import torch
from conftest import build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from bft_trl.cli.main import main
from bft_trl.inspection.advice import advice
from bft_trl.inspection.inspection import _token_texts, inspect_samples
from bft_trl.inspection.windows import window_kind, window_kinds
from bft_trl.models import Run

ROWS = [row | {"id": f"row-{number}", "source": "go"} for number, row in enumerate(sample_rows(5, seed=7))]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def report_of(base, rows, out, **options):
    return inspect_samples(
        Run(str(base)), Dataset.from_list(rows), out, dataset_name="rows", device="cpu", **{"n": 50} | options
    )


def target_probs(row, max_length=1024):
    """Probabilities of the answer's tokens, from full logits in float64."""
    tokenizer = build_tokenizer()
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = [*prompt, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id][:max_length]
    log_probs = build_model()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [log_probs[place - 1, ids[place]].exp().item() for place in range(len(prompt), len(ids))]


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        ({"group_size": 8}, {"group_size": 8}),
        ({"group_size": 6, "bft_version": "v3"}, {"group_size": 6, "version": "v3"}),
        ({"confidence_gamma": 2.0, "min_token_weight": 0.3}, {"gamma": 2.0, "floor": 0.3}),
    ],
)
def test_samples_equal_the_twin(objective, rule, base, tmp_path):
    report = report_of(base, ROWS, tmp_path, config=objective)
    assert [sample["id"] for sample in report["samples"]] == [row["id"] for row in ROWS]
    for sample, row in zip(report["samples"], ROWS, strict=True):
        probs = target_probs(row)
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
    figures = report["figures"]
    everything = [value for row in ROWS for value in target_probs(row)]
    assert figures["token_confidence"] == pytest.approx(sum(everything) / len(everything), rel=2e-3)
    assert figures["supervised_tokens"] == len(everything)
    assert sum(figures["distributions"]["token confidence"]["counts"]) == len(everything)
    assert json.loads((tmp_path / "report.json").read_text()) == report


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_baselines_show_their_own_weights(loss_type, base, tmp_path):
    for sample in report_of(base, ROWS, tmp_path, config={"loss_type": loss_type})["samples"]:
        assert sample["weights"] == ([1] * sample["supervised"] if loss_type == "nll" else sample["probs"])
        assert sample["sample_weight"] == 1


def test_what_max_length_cuts_is_counted(base, tmp_path):
    """Prompt of 4 and answer of 6 with its end: 8 tokens lose 3 supervised ones, with 4 nothing is left to learn."""
    rows = [{"prompt": "abcd", "completion": "abcdef"}, {"prompt": "a", "completion": "b"}]
    first, second = report_of(base, rows, tmp_path, max_length=8)["samples"]
    assert (first["length"], first["cut"], first["cut_supervised"], first["supervised"]) == (11, 3, 3, 4)
    assert first["probs"] == pytest.approx(target_probs(rows[0], 8), rel=2e-3)
    assert not first["ends"]
    assert (second["cut"], second["ends"]) == (0, True)
    report = report_of(base, rows, tmp_path, max_length=4)
    assert report["samples"][0]["supervised"] == 0
    assert "nll" not in report["samples"][0]
    codes = {entry["code"]: entry for entry in report["advice"]}
    assert "1 of 2 samples have no supervised token" in codes["nothing_supervised"]["text"]
    assert codes["nothing_supervised"]["level"] == "warning"
    report = report_of(base, rows[:1], tmp_path, max_length=4)
    assert report["advice"][0] | {"text": ""} == {"level": "error", "code": "nothing_supervised", "text": ""}


def test_repeated_rows_are_looked_for_everywhere(base, tmp_path):
    rows = [*ROWS, ROWS[0], ROWS[0] | {"completion": "other"}, ROWS[1] | {"id": "new name"}]
    report = report_of(base, rows, tmp_path, n=1)
    assert report["n"] == 1
    assert (report["figures"]["duplicates"], report["figures"]["ambiguous_prompts"]) == (2, 1)


def test_rows_are_drawn_by_seed(base, tmp_path):
    drawn = [[s["row"] for s in report_of(base, ROWS, tmp_path, n=3, seed=seed)["samples"]] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert drawn[2] != drawn[0]


def test_adapter_over_a_quantized_base(tmp_path):
    """The untrained adapter changes nothing, so an NF4 base with it and without it shows the same."""
    model = build_model(hidden_size=64, intermediate_size=64)
    model.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    lora = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    lora.save_pretrained(tmp_path / "adapter")
    nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    rows = Dataset.from_list(ROWS)
    reports = [
        inspect_samples(
            Run(str(tmp_path / "base"), adapter, nf4), rows, tmp_path / "out", dataset_name="rows", device="cpu"
        )
        for adapter in (None, tmp_path / "adapter")
    ]
    assert reports[0]["samples"] == reports[1]["samples"]
    whole = report_of(tmp_path / "base", ROWS, tmp_path / "out")
    assert whole["figures"]["nll"] != reports[0]["figures"]["nll"]  # quantized weights are others


def test_token_texts_of_characters_in_pieces():
    tokenizer = build_tokenizer()
    text = "αβ 漢字 🧬 a" * 9
    texts = _token_texts(tokenizer(text)["input_ids"], tokenizer)
    assert "".join(texts) == text
    assert len(texts) == len(text.encode())


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


def test_what_is_supervised_is_as_in_training(base, tmp_path):
    """A conversation is supervised whole; where the template marks no turns, asking for them is refused in words."""
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    (sample,) = report_of(base, [{"messages": turns}], tmp_path)["samples"]
    # "<bos>user:ab<eos><bos>assistant:cd<eos>": 1 + 5 + 2 + 1 + 1 + 10 + 2 + 1 tokens, the first has no prediction
    assert (sample["supervised"], sample["length"]) == (22, 23)
    (sample,) = report_of(base, ROWS[:1], tmp_path, config={"completion_only_loss": False})["samples"]
    assert sample["supervised"] == sample["length"] - 1
    with pytest.raises(ValueError, match="template"):
        report_of(base, [{"messages": turns}], tmp_path, config={"assistant_only_loss": True})


def test_page_escapes_and_asks_for_nothing(base, tmp_path):
    evil = "</b><script>document.title='run'</script><img src=x onerror=alert(1)>"
    rows = [{"id": evil, "source": evil, "prompt": evil, "completion": evil}]
    report_of(base, rows, tmp_path, config={"group_size": 4})
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1  # ours, which the policy allows by its hash
    assert "img" not in page.tags
    assert "onerror" not in page.attributes
    assert "document.title='run'" in page.text  # as a text
    assert "default-src 'none'" in text
    assert "http" not in text.replace('http-equiv="', "").replace("http://www.w3.org/", "").replace(
        "https://matplotlib.org/", ""
    ).replace("http://purl.org/", "").replace("http://creativecommons.org/", "")
    assert "confidence " in text
    assert 'class="weak"' in text


def test_command_line(base, tmp_path, caplog):
    data = tmp_path / "qa.csv"
    data.write_text("q,a,id\nwhat is a,aaaa,x\nwhat is b,bbbb,y\n")
    out = tmp_path / "out"
    options = ["--dataset", str(data), "--prompt-column", "q", "--completion-columns", "a", "--device", "cpu"]
    assert main(["inspect", "--model", str(base), *options, "--out", str(out), "--group-size", "2"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["objective"]["group_size"] == 2
    assert [sample["id"] for sample in report["samples"]] == ["x", "y"]
    assert "samples in which the window acts" in caplog.text
    assert f"Open {out / 'index.html'}" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n", "0"], "`n=0` must be 1 or more"),
        (["--max-length", "0"], "`max_length=0`"),
        (["--seed", "-1"], "`seed=-1`"),
        (["--group-size", "0"], "`group_size=0`"),
        (["--split", "test"], "`split='test'` is not in"),
        (["--dataset", "absent.csv"], "`dataset_name='absent.csv'`: no such file"),
        (["--prompt-column", "q"], "must both name columns"),
        (["--adapter", "absent"], "`adapter='absent'` has no adapter_config.json"),
    ],
)
def test_bad_input_is_refused_before_the_model(options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bft_trl.inspection.inspection.load_run", lambda *args, **kwargs: pytest.fail("model loaded"))
    data = tmp_path / "rows.csv"
    data.write_text("prompt,completion\na,b\n")
    out = tmp_path / "out"
    base = [] if "--adapter" in options else ["--model", "x"]
    monkeypatch.setattr("bft_trl.models._has_chat_template", lambda name: False)
    assert main(["inspect", *base, "--dataset", str(data), "--out", str(out), *options]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())


def test_windows_by_hand():
    """Low is under .2. One low of four is sparse; two of four, or a run of eight, is dense."""
    assert window_kind([0.2, 0.9, 1.0, 0.5]) == "sure"
    assert window_kind([0.1, 0.9, 1.0, 0.5]) == "sparse-low"
    assert window_kind([0.1, 0.9, 0.19, 0.5]) == "dense-low"
    assert window_kind([0.9] * 20 + [0.1] * 7) == "sparse-low"
    assert window_kind([0.9] * 20 + [0.1] * 8) == "dense-low"
    assert window_kinds([0.1, 0.9, 0.9, 0.9, 0.1], group_size=4) == {"sure": 0, "sparse-low": 1, "dense-low": 1}
    assert window_kinds([], group_size=4) == {"sure": 0, "sparse-low": 0, "dense-low": 0}


FINE = {
    "samples": 100,
    "rows": 100,
    "without_target": 0,
    "not_finite": 0,
    "cut_supervised": 0,
    "uncut": 100,
    "ends": 100,
    "near_zero_share": 0.1,
    "token_weight": 0.5,
    "group_confidence": 0.4,
    "sample_weight": 0.6,
    "windowed": 50,
    "median_length": 300.0,
    "duplicates": 0,
    "ambiguous_prompts": 0,
}
BFT = {"loss_type": "bft", "bft_version": "v1", "token_weighting": True, "sample_weighting": True, "group_size": 256}


@pytest.mark.parametrize(
    ("figures", "objective", "found"),
    [
        ({}, {}, [("note", "nothing", "")]),
        ({"windowed": 4}, {}, [("warning", "window_never_acts", "4 of 100 .*`group_size=256`.*median answer 300")]),
        ({"windowed": 5}, {}, [("note", "nothing", "")]),
        ({"windowed": 0}, {"loss_type": "nll"}, [("note", "nothing", "")]),
        ({"windowed": 0}, {"sample_weighting": False}, [("note", "nothing", "")]),
        ({"near_zero_share": 0.3}, {}, [("warning", "signal_vanishes", "30% .*0.500.*`bft_version='v3'` or a floor")]),
        ({"near_zero_share": 0.3}, {"bft_version": "v3"}, [("warning", "signal_vanishes", "Try a floor")]),
        ({"near_zero_share": 0.3}, {"loss_type": "dft"}, [("warning", "signal_vanishes", "`loss_type='bft'` with")]),
        ({"near_zero_share": 0.3}, {"token_weighting": False}, [("note", "nothing", "")]),
        ({"without_target": 3}, {}, [("warning", "nothing_supervised", "3 of 100")]),
        ({"cut_supervised": 2}, {}, [("warning", "cut", "2 of 100")]),
        ({"ends": 0}, {}, [("error", "end_of_turn", "100 of 100")]),
        ({"ends": 90}, {}, [("warning", "end_of_turn", "10 of 100")]),
        ({"duplicates": 7}, {}, [("warning", "duplicates", "7 of all 100")]),
        ({"group_confidence": 0.95}, {}, [("note", "known", "0.95.*0.60")]),
        ({"not_finite": 1}, {}, [("error", "not_finite", "1 samples")]),
        (
            {"ambiguous_prompts": 2, "duplicates": 1, "ends": 0},
            {},
            [("error", "end_of_turn", ""), ("warning", "duplicates", ""), ("note", "ambiguous", "2 prompts")],
        ),
    ],
)
def test_advice_by_hand(figures, objective, found):
    import re

    given = advice(FINE | figures, BFT | objective, max_length=512)
    assert [(entry["level"], entry["code"]) for entry in given] == [(level, code) for level, code, _ in found]
    for entry, (_, _, words) in zip(given, found, strict=True):
        assert re.search(words, entry["text"])


def test_end_of_turn_that_is_never_supervised(base, tmp_path):
    """Rows of tokens without an end: the labels are the user's own."""
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}] * 3
    report = report_of(base, rows, tmp_path)
    assert report["advice"][0]["code"] == "end_of_turn"
    assert report["samples"][0]["supervised"] == 3


def test_samples_without_a_finite_loss_are_said(base, tmp_path):
    model = build_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[build_tokenizer()("z")["input_ids"][0]] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    build_tokenizer().save_pretrained(tmp_path / "broken")
    rows = [{"prompt": "a", "completion": "aza"}, {"prompt": "a", "completion": "aaa"}]
    report = report_of(tmp_path / "broken", rows, tmp_path / "out")
    assert report["figures"]["not_finite"] == 1
    assert report["advice"][0]["code"] == "not_finite"
    assert "NaN" not in Path(tmp_path / "out" / "report.json").read_text()
