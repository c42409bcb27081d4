"""The sample log: numbers of each sample, in files that survive a kill."""

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet as pq
import pytest
import reference
import torch
from conftest import answer_probs, build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from transformers import TrainerCallback

from bft_trl import BFTTrainer
from bft_trl.training.sample_log import FOLDER, SCHEMA, SampleLog, read_part

ROWS = sample_rows(6, seed=2)
COLUMNS = ["epoch", "step", "row"]


def trainer(folder, evaluation=None, *, rows=ROWS, kind=BFTTrainer, **config):
    return kind(
        build_model(),
        build_config(
            folder,
            **{"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "log_samples": True}
            | config,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=evaluation,
        processing_class=build_tokenizer(),
    )


def logs(folder):
    return sorted(Path(folder, FOLDER).glob("*.parquet"))


def logged(folder):
    return pd.concat([pq.read_table(file).to_pandas() for file in logs(folder)]).sort_values(
        COLUMNS, ignore_index=True
    )


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_log_equals_the_reference(version, tmp_path):
    """Every sample once an epoch; nll, confidence, weight and window from full logits and the loop reference."""
    run = trainer(tmp_path, learning_rate=0.0, bft_version=version)
    run.train()
    table = logged(tmp_path)
    assert sorted(zip(table["epoch"], table["row"], strict=True)) == [(e, row) for e in (0, 1) for row in range(6)]
    assert list(table["step"].value_counts().sort_index()) == [2] * 6
    for record in table.itertuples():
        probs = answer_probs(ROWS[record.row])
        _, weight, confidence, _ = reference.weights(probs, version=version, group_size=8)
        assert record.tokens == len(probs)
        assert record.nll == pytest.approx(-sum(map(math.log, probs)) / len(probs), rel=1e-4)
        assert record.group_confidence == pytest.approx(confidence, rel=1e-4)
        assert record.sample_weight == pytest.approx(weight, rel=1e-4)
        window = probs[record.window_first : record.window_end]
        mean = torch.tensor(window).log().mean().exp() if version == "v1" else torch.tensor(window).mean()
        assert mean.item() == pytest.approx(confidence, rel=1e-4)


def test_packed_documents_are_samples(tmp_path):
    trainer(tmp_path / "rows", learning_rate=0.0, num_train_epochs=1).train()
    trainer(tmp_path / "packed", learning_rate=0.0, num_train_epochs=1, packing=True, max_length=128).train()
    alone, packed = logged(tmp_path / "rows"), logged(tmp_path / "packed")
    by_row = ["row", "tokens", "window_first", "window_end"]
    pd.testing.assert_frame_equal(
        alone.sort_values("row", ignore_index=True)[by_row], packed.sort_values("row", ignore_index=True)[by_row]
    )


def test_weights_of_the_column_are_in_the_log(tmp_path):
    rows = [ROWS[0] | {"weight": 1.0}, ROWS[0] | {"weight": 3.0}]
    trainer(tmp_path, rows=rows, max_steps=1, weight_column="weight").train()
    first, second = logged(tmp_path)["sample_weight"]
    assert second == pytest.approx(3 * first, rel=1e-6)


def test_no_log_by_default(tmp_path):
    trainer(tmp_path, log_samples=False, max_steps=1).train()
    assert not (tmp_path / FOLDER).exists()


def test_a_resumed_run_logs_each_sample_once(tmp_path):
    """From checkpoint 2 of 6 steps: the later samples are seen again, and logged once."""
    saves = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, **saves).train()
    whole = logged(tmp_path)
    trainer(tmp_path, **saves).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    pd.testing.assert_frame_equal(logged(tmp_path), whole)
    trainer(tmp_path, max_steps=1).train()
    assert len(logged(tmp_path)) == 2  # a new run has no rows of the old one
    trainer(tmp_path, max_steps=1, log_samples=False).train()
    assert logs(tmp_path) == []


def test_the_hub_gets_neither_the_log_nor_any_text(tmp_path, monkeypatch):
    """What `push_to_hub` uploads, by the patterns that it gives the Hub's client."""
    uploads = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, **options: uploads.append(options))
    run = trainer(tmp_path, hub_model_id="me/model", hub_token="hf_x")
    run.train()
    run.push_to_hub()
    (upload,) = uploads
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    uploaded = [*filter_repo_objects(names, ignore_patterns=upload["ignore_patterns"])]
    assert any(name.startswith(FOLDER) for name in names)
    assert "model.safetensors" in uploaded
    assert not any(name.endswith(".parquet") for name in uploaded)
    assert all(
        row["completion"] not in part.read_bytes().decode(errors="replace") for row in ROWS for part in logs(tmp_path)
    )


@pytest.mark.parametrize("how", ["best", "callback"])
def test_the_log_is_complete_with_every_kind_of_save(how, tmp_path):
    """What was seen up to a checkpoint is in the log before the checkpoint is complete."""

    class Check(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = control.should_save or how == "callback"

        def on_save(self, args, state, control, **kwargs):
            assert set(logged(tmp_path)["step"]) == set(range(1, state.global_step + 1))

    saves = {"save_strategy": "steps", "save_steps": 100}
    if how == "best":
        saves = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1}
        saves["metric_for_best_model"] = "eval_nll"
    run = trainer(tmp_path, evaluation=Dataset.from_list(ROWS[:2]), **saves)
    run.add_callback(Check())
    run.train()
    assert any(tmp_path.glob("checkpoint-*"))


def test_a_log_within_a_step_loses_no_sample(tmp_path):
    """A subclass that logs a loss in each of 3 micro-batches of 2 steps."""

    class Logging(BFTTrainer):
        def compute_loss(self, *args, **kwargs):
            result = super().compute_loss(*args, **kwargs)
            self.log({"loss": 1.0})
            return result

    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    trainer(tmp_path, kind=Logging, max_steps=2, **cut).train()
    assert len(logged(tmp_path)) == 6


def test_parts_stay_small(tmp_path, monkeypatch):
    """A part is written over until it is full: with room for 4 rows, 12 rows are three parts."""
    monkeypatch.setattr("bft_trl.training.sample_log._ROWS", 4)
    trainer(tmp_path, save_strategy="steps", save_steps=1).train()
    files = sorted(file.name for file in (tmp_path / FOLDER).iterdir())
    assert files == ["part-00000-0.parquet", "part-00001-0.parquet", "part-00002-0.parquet"]
    assert len(logged(tmp_path)) == 12


def test_damaged_parts_are_named(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    (file,) = (tmp_path / FOLDER).iterdir()
    whole = file.read_bytes()
    assert read_part(file).schema == SCHEMA
    for damage in (whole[:-20], b""):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match="part-00000-0.parquet: cannot be read"):
            read_part(file)
    with pytest.raises(ValueError, match="cannot be read"):
        SampleLog(tmp_path).drop_after(1)
    pd.DataFrame({"a": [1]}).to_parquet(file)
    with pytest.raises(ValueError, match="not a part of a sample log"):
        read_part(file)
