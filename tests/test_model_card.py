"""The model card: names that are complete, escaped and without paths of the machine."""

import ast
import sys

from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from bft_trl import BFTTrainer
from bft_trl.runs import peak_memory
from bft_trl.training.model_card import DEMO_MODEL, add_results

# Would set the title of the page, or close a table cell or a code span.
IMAGE = "<img src=x onerror=document.title='ran'>"
LINK = "[x](javascript:document.title='ran') `y` | ![z](http:z) &lt;b>"
SUMMARY = {
    "model": "org/model",
    "eval_nll_before": 3.0,
    "eval_nll_after": 2.5,
    "kept_step": 16,
    "steps": 24,
    "seconds": 90.0,
    "peak_memory": {"host_gib": 3.4},
    "names": [{"reference": "a", "before": "b", "after": "c"}],
}


def written(tmp_path, base, *, name=None, dataset_name=None):
    """Returns the card of a trainer whose model was loaded from `base`."""
    model = build_model()
    model.config._name_or_path = str(base)
    out = tmp_path / (name or "run")
    rows = Dataset.from_list(sample_rows(4))
    trainer = BFTTrainer(model, build_config(out), None, rows, processing_class=build_tokenizer())
    trainer.create_model_card(model_name=name, dataset_name=dataset_name)
    return ModelCard.load(out / "README.md")


def test_base_of_the_demo_is_its_hub_id(tmp_path):
    base = tmp_path / "cache" / "SmolLM2-135M-Instruct-b179c9523d0e"
    base.mkdir(parents=True)
    card = written(tmp_path, base)
    assert card.data.base_model == DEMO_MODEL
    assert f"fine-tuned version of [{DEMO_MODEL}](https://huggingface.co/{DEMO_MODEL})" in card.text
    assert str(tmp_path) not in card.content
    assert "time machine" not in card.text
    assert 'question = "Which biological process do the human genes' in card.text
    assert card.data.model_name == "run"
    assert "None" not in card.content


def test_base_from_the_hub(tmp_path):
    card = written(tmp_path, "org/model", dataset_name="org/data")
    assert (card.data.base_model, card.data.datasets) == ("org/model", "org/data")
    assert "[org/data](https://huggingface.co/datasets/org/data)" in card.text


def test_local_model_and_data_have_no_link_and_no_path(tmp_path):
    base, data = tmp_path / "models" / "mine", tmp_path / "private" / "data.jsonl"
    base.mkdir(parents=True)
    data.parent.mkdir()
    data.touch()
    card = written(tmp_path, base, dataset_name=str(data))
    assert "fine-tuned version of `mine` on the `data.jsonl` dataset" in card.text
    assert card.data.base_model is None
    assert card.data.get("datasets") is None
    assert str(tmp_path) not in card.content


def test_names_are_escaped(tmp_path):
    base = tmp_path / f"base of {LINK}"
    base.mkdir()
    card = written(tmp_path, base, name=IMAGE + '"); print("ran")#`', dataset_name=LINK)
    html = MarkdownIt("commonmark").render(card.text)
    assert "<img src=x" not in html
    assert "javascript:" not in [part.split('"')[0] for part in html.split('href="')[1:]]
    (line,) = [line for line in card.text.splitlines() if line.startswith("generator = ")]
    (call,) = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)]
    assert {option.arg for option in call.keywords} == {"model", "device_map"}


def test_results_are_escaped(tmp_path):
    (tmp_path / "README.md").write_text("# Card\n")
    names = [{"reference": IMAGE, "before": LINK, "after": "c\x1b]0;ran\x07"}]
    results = add_results(tmp_path, SUMMARY | {"model": IMAGE, "names": names})
    html = MarkdownIt("commonmark").enable("table").render((tmp_path / "README.md").read_text())
    assert "<img src=x" not in html
    assert "href" not in html
    assert "\x07" not in results
    assert html.count("<td>") == 3


def test_results_without_evaluation(tmp_path):
    (tmp_path / "README.md").write_text("# Card\n")
    results = add_results(tmp_path, SUMMARY | {"eval_nll_before": None, "eval_nll_after": None, "names": []})
    assert results.splitlines() == [
        "Base model: org/model.",
        "Training with its evaluations took 1.5 minutes.",
        "Peak memory: 3.4 GiB (host).",
    ]


def test_memory_on_windows(monkeypatch):
    """The standard library has no `resource` there."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", "win32")
    assert "host_gib" not in peak_memory()
