"""Python files that come with a model run only if the user asks for it."""

import json

import pytest
from conftest import build_model, build_tokenizer

from bft_trl.cli.main import main
from bft_trl.models import Run, load_encoder, load_run, load_tokenizer


@pytest.fixture
def model_with_code(tmp_path, monkeypatch):
    """A base model whose folder holds Python files, which leave a mark where they are run."""
    folder = tmp_path / "base"
    build_model(max_position_embeddings=512).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "planted", "architectures": ["PlantedModel"]}
    config["auto_map"] = {"AutoConfig": "planted.PlantedConfig", "AutoModelForCausalLM": "planted.PlantedModel"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {
        "tokenizer_class": "PlantedTokenizer",
        "auto_map": {"AutoTokenizer": [None, "planted.PlantedTokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "planted.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class PlantedConfig(LlamaConfig):\n    model_type = 'planted'\n"
        "class PlantedModel(LlamaForCausalLM):\n    config_class = PlantedConfig\n"
        "class PlantedTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    # Where transformers copies such files to.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


@pytest.fixture
def command(model_with_code, tmp_path):
    """An evaluation of that model on two documents."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "rows.py").write_text(
        "from datasets import Dataset\n"
        "def rows(**kwargs):\n    return {'test': Dataset.from_list([{'question': 'Which?', 'right': 0}] * 2)}\n"
    )
    (tasks / "planted_task.yaml").write_text(
        "task: planted_task\ncustom_dataset: !function rows.rows\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: ['a', 'b']\n"
        "doc_to_target: right\nmetric_list: [{metric: acc}]\nmetadata: {version: 1.0}\n"
    )
    return [
        *("eval", "--model_name_or_path", str(model_with_code), "--tasks", "planted_task", "--device", "cpu"),
        *("--include_path", str(tasks), "--output_dir", str(tmp_path / "out")),
    ]


def test_a_models_code_runs_only_if_the_user_asks(command, model_with_code, tmp_path, capsys, caplog):
    for flags in ([], ["--no-apply_chat_template"]):
        assert main([*command, *flags]) == 2
        assert "custom code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert main([*command, "--trust_remote_code"]) == 0
    assert (tmp_path / "ran").exists()
    assert f"runs the Python files of {model_with_code}" in caplog.text


def test_nobody_is_asked_at_the_terminal(model_with_code, tmp_path, monkeypatch):
    """transformers would, with fifteen seconds to answer, if `trust_remote_code` were None."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "y")
    for load, argument in ((load_run, Run(str(model_with_code))), (load_tokenizer, Run(str(model_with_code)))):
        with pytest.raises(ValueError, match="custom code"):
            load(argument)
    with pytest.raises(ValueError, match="custom code"):
        load_encoder(str(model_with_code))
    assert questions == []
    assert not (tmp_path / "ran").exists()
