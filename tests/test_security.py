"""Tokens are not in files, and an address names no file outside the cache."""

import logging

import pytest
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset

from bft_trl import BFTConfig, BFTTrainer
from bft_trl.data.download import fetch

TOKEN = "hf_" + "PlantedTokenOfNobody" + "0123456789"


@pytest.mark.parametrize(
    "path", ["..", "a/..", "a/../../evil", "%2e%2e%2fevil", "..%2fevil", "a\\..\\evil", "", "?a=../b"]
)
def test_url_stays_in_cache_folder(path, tmp_path, monkeypatch):
    """`pooch` writes to the name and the folder that it is given."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("pooch.retrieve", lambda url, *, fname, path, **options: (path / fname).write_text(url))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    cache = tmp_path / "bft_trl" / "downloads"
    cache.mkdir(parents=True)
    file = fetch(f"https://host/{path}")
    assert file.resolve().parent == cache.resolve()
    assert {found for found in tmp_path.rglob("*") if found.is_file()} == {file}


def holding(folder, token=TOKEN):
    """Files under `folder` with the token in them, or in a member: torch.save writes archives that are not packed."""
    return [path for path in folder.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


def test_no_file_of_a_training_run_holds_the_token(tmp_path, monkeypatch, caplog, capsys):
    """With the token as an argument and in the environment, as for a run that pushes to the Hub at its end."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    rows = Dataset.from_list(sample_rows(8))
    args = build_config(
        tmp_path / "run",
        hub_token=TOKEN,
        report_to="tensorboard",
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer = BFTTrainer(build_model(), args, None, rows, rows, processing_class=build_tokenizer())
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    trainer.save_state()
    (tmp_path / "args.json").write_text(args.to_json_string())
    (tmp_path / "args.txt").write_text(f"{args} {args!r} {args.to_sanitized_dict()}")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "objective.json", "README.md"} <= {path.name for path in written}
    assert any("tfevents" in path.name for path in written)
    assert holding(tmp_path) == []
    assert TOKEN not in caplog.text + "".join(capsys.readouterr())
    # It is there for the push all the same, and a planted file is found.
    assert trainer.args.hub_token == TOKEN
    (tmp_path / "planted.bin").write_bytes(b"\0\1" + TOKEN.encode() + b"\2")
    assert holding(tmp_path) == [tmp_path / "planted.bin"]


def test_a_token_among_the_models_arguments_raises(tmp_path):
    for name in ("token", "use_auth_token"):
        with pytest.raises(ValueError, match=f"`model_init_kwargs` holds '{name}'") as caught:
            BFTConfig(str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={name: TOKEN, "revision": "main"})
        assert TOKEN not in str(caught.value)
    BFTConfig(str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={"revision": "main"})
