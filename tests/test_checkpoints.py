"""Nothing is lost when a run is killed, and a checkpoint says what it was trained with."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_sample_log import logged
from transformers.trainer_utils import get_last_checkpoint

from bft_trl import BFTTrainer
from bft_trl.io import last_complete_checkpoint, missing_part

RUN = {
    "per_device_train_batch_size": 2,
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 1e-2,
    "log_samples": True,
}


def adapter_run(folder, callbacks=None, **config):
    """LoRA with dropout, AdamW and shuffling: all that a resumed run must find again."""
    return BFTTrainer(
        build_model(),
        args=build_config(folder, **RUN | config),
        train_dataset=Dataset.from_list(sample_rows(8)),
        eval_dataset=Dataset.from_list(sample_rows(4, seed=5)),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.2),
        callbacks=callbacks,
    )


def adapter_of(folder):
    return load_file(Path(folder) / "checkpoint-6" / "adapter_model.safetensors")


def empty_checkpoint(folder, weights="model.safetensors"):
    """All that a checkpoint must have, with nothing in it."""
    (folder / weights).parent.mkdir(parents=True)
    save_file({}, folder / weights)
    torch.save({}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text("{}")


def kill_at(folder, moment):
    """Runs this file as a script that kills itself with SIGKILL at `moment`, see main()."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, __file__, str(folder), moment], env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize(
    "moment",
    [
        "step-5",
        "save-4-half-state",
        *(pytest.param(f"save-4-{part}", marks=pytest.mark.long) for part in ("weights", "optimizer", "state")),
    ],
)
def test_killed_run_resumes_to_the_same_weights_and_sample_log(moment, tmp_path, caplog):
    whole = adapter_run(tmp_path / "whole")
    whole.train()
    killed = tmp_path / "killed"
    kill_at(killed, moment)
    used = "checkpoint-4" if moment == "step-5" else "checkpoint-2"
    adapter_run(killed).train(resume_from_checkpoint=True)
    assert f"Resuming from {killed / used}" in caplog.text
    # With only the newest folder by number, transformers would have taken the half-written one.
    assert ("Skipped the incomplete checkpoint" in caplog.text) == (used == "checkpoint-2")
    for name, tensor in adapter_of(tmp_path / "whole").items():
        assert torch.equal(tensor, adapter_of(killed)[name]), name
    pd.testing.assert_frame_equal(logged(tmp_path / "whole"), logged(killed))


def test_overwriting_an_older_run_leaves_no_mixture(tmp_path):
    """A run killed while it writes over an older run's checkpoint-4 must not leave its weights with the old state."""
    adapter_run(tmp_path, max_steps=4, seed=1).train()
    assert missing_part(tmp_path / "checkpoint-4") is None
    kill_at(tmp_path, "save-4-optimizer")
    assert missing_part(tmp_path / "checkpoint-4") == "it has no trainer_state.json, which is written last"
    assert last_complete_checkpoint(tmp_path)[0].name == "checkpoint-2"
    assert get_last_checkpoint(tmp_path).endswith("checkpoint-4")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "no trainer_state.json"),
        (lambda folder: (folder / "trainer_state.json").write_text('{"best'), "cut short"),
        (lambda folder: cut(folder / "model.safetensors"), "its model.safetensors is cut short or damaged"),
    ],
)
def test_missing_parts(damage, reason, tmp_path):
    folder = tmp_path / "checkpoint-3"
    empty_checkpoint(folder)
    assert missing_part(folder) is None
    damage(folder)
    assert reason in missing_part(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    adapter_run(folder, max_steps=4).train()
    return folder


def test_a_finished_run_is_not_trained_further(two_checkpoints, tmp_path):
    """transformers 5.23 trains a fifth step from a checkpoint that has all four."""
    shutil.copytree(two_checkpoints, tmp_path / "run")
    run = adapter_run(tmp_path / "run", max_steps=4)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 4
    weights = load_file(tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors")
    for name, tensor in get_peft_model_state_dict(run.model).items():
        assert torch.equal(tensor, weights[name]), name


def test_resume_from_what_is_no_checkpoint(tmp_path):
    run = adapter_run(tmp_path)
    with pytest.raises(ValueError, match="holds no complete checkpoint.*Start without"):
        run.train(resume_from_checkpoint=True)
    for folder, reason in ((tmp_path, "no trainer_state.json"), (tmp_path / "absent", "it is no folder")):
        with pytest.raises(ValueError, match=f"not a complete checkpoint: .*{reason}"):
            run.train(resume_from_checkpoint=str(folder))


def test_writing_over_an_earlier_run_logs_a_warning(tmp_path, caplog):
    adapter_run(tmp_path, max_steps=2).train()
    assert "earlier run" not in caplog.text
    adapter_run(tmp_path, max_steps=2).train()
    assert "has checkpoints of an earlier run" in caplog.text


def test_resume_with_another_objective_raises(tmp_path):
    adapter_run(tmp_path, max_steps=2).train()
    with pytest.raises(ValueError, match="group_size was 8, is 16.*another `output_dir`"):
        adapter_run(tmp_path, group_size=16).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="loss_type was 'bft', is 'nll'"):
        adapter_run(tmp_path, loss_type="nll").train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_checkpoints_of_other_kinds_are_complete(tmp_path):
    """A named adapter; with FSDP and a full state dict accelerate writes pytorch_model_fsdp.bin and optimizer.bin."""
    empty_checkpoint(tmp_path / "named", weights="bio/adapter_model.safetensors")
    empty_checkpoint(tmp_path / "fsdp", weights="pytorch_model_fsdp.bin")
    (tmp_path / "fsdp" / "optimizer.pt").rename(tmp_path / "fsdp" / "optimizer.bin")
    assert missing_part(tmp_path / "named") is missing_part(tmp_path / "fsdp") is None


def test_checkpoints_of_save_only_model_resume(tmp_path):
    adapter_run(tmp_path, max_steps=4, save_only_model=True).train()
    run = adapter_run(tmp_path)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 6


def test_saving_into_a_checkpoint_keeps_it_complete(tmp_path):
    run = adapter_run(tmp_path, max_steps=2)
    run.train()
    run.save_model(str(tmp_path / "checkpoint-2"))
    assert missing_part(tmp_path / "checkpoint-2") is None


def test_a_model_with_quantization_settings_as_a_dict_is_saved(tmp_path):
    run = adapter_run(tmp_path, max_steps=1)
    run.accelerator.unwrap_model(run.model).config.quantization_config = {"quant_method": "x"}
    run.save_model()
    assert json.loads((tmp_path / "base_model.json").read_text()) == {"quantization": {"quant_method": "x"}}


def test_save_total_limit_keeps_the_last_checkpoint(tmp_path):
    """Also where an earlier one has the lower nll: the run can resume from its end."""
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.3, "lr_scheduler_type": "constant"}
    run = adapter_run(tmp_path, save_total_limit=1, **evaluation)
    run.train()
    nll = [entry["eval_nll"] for entry in run.state.log_history if "eval_nll" in entry]
    assert nll[-1] > min(nll)
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_numbers_are_compared_as_numbers(tmp_path):
    for step in (2, 10):
        empty_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", {})


def test_best_model_is_the_one_with_the_lowest_nll(tmp_path):
    """A learning rate that breaks the model later: the best checkpoint is not the last, and is what is loaded."""
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": False}
    run = adapter_run(tmp_path, learning_rate=0.3, loss_type="nll", lr_scheduler_type="constant", **best)
    run.train()
    nll = {entry["step"]: entry["eval_nll"] for entry in run.state.log_history if "eval_nll" in entry}
    lowest = min(nll, key=nll.get)
    assert len(set(nll.values())) == 3
    assert run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{lowest}")
    assert run.state.best_metric == pytest.approx(nll[lowest])
    assert run.evaluate()["eval_nll"] == pytest.approx(nll[lowest], rel=1e-6)


def test_objective_is_in_checkpoint_and_model_card(tmp_path):
    adapter_run(tmp_path, bft_version="v3", group_size=5, min_token_weight=0.25, max_steps=2).train()
    objective = json.loads((tmp_path / "checkpoint-2" / "objective.json").read_text())
    assert (objective["loss_type"], objective["bft_version"], objective["group_size"]) == ("bft", "v3", 5)
    card = (tmp_path / "README.md").read_text()
    for words in ("| `min_token_weight` | `0.25` |", "arXiv:2511.21075", "trained with BFT", "the authors' v1 code"):
        assert words in card
    assert "None" not in card


@pytest.mark.parametrize(("loss_type", "name"), [("nll", "SFT"), ("dft", "DFT")])
def test_card_of_a_baseline_does_not_claim_bft(loss_type, name, tmp_path):
    adapter_run(tmp_path, loss_type=loss_type, max_steps=2).train()
    card = (tmp_path / "README.md").read_text()
    assert f"trained with {name}" in card
    assert "2511.21075" not in card
    assert "token_weighting" not in card


def main() -> None:
    """Trains in argv[1] and dies at the moment named by argv[2]."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import TrainerState

    folder, moment = sys.argv[1:]
    kind, step, *part = moment.split("-")

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class AtStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if kind == "step" and state.global_step == int(step) - 1:
                die()

    run = adapter_run(folder, callbacks=[AtStep()])
    if kind == "save":
        target = f"checkpoint-{step}"
        save_optimizer, save_state = BFTTrainer._save_optimizer_and_scheduler, TrainerState.save_to_json

        def optimizer(self, output_dir):
            if target in str(output_dir) and part == ["weights"]:
                die()
            save_optimizer(self, output_dir)
            if target in str(output_dir) and part == ["optimizer"]:
                die()

        def state(self, path):
            if target in str(path) and part == ["half", "state"]:
                Path(path).write_text('{"best_metric": nu')
            if target in str(path):
                die()
            save_state(self, path)

        BFTTrainer._save_optimizer_and_scheduler, TrainerState.save_to_json = optimizer, state
    run.train()


if __name__ == "__main__":
    main()
