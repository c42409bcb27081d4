"""examples/train.py from end to end, on a tiny model in a folder and small files."""

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import build_model, build_tokenizer, sample_rows

from bft_trl import load_gene_sets
from bft_trl.io import record_checksums
from bft_trl.models import HUB_ID, INSTALL, demo_model, wheel_file

SCRIPT = Path(__file__).parents[1] / "examples" / "train.py"
CONFIGS = sorted((SCRIPT.parent / "configs").glob("*.yaml"))
sys.path.insert(0, str(SCRIPT.parent))

import train  # noqa: E402

SMALL = "--max_steps 2 --eval_steps 2 --save_steps 2 --logging_steps 1 --lora_r 2 --eval_samples 3 --show_samples 2"


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "tiny"
    build_model(hidden_size=64, intermediate_size=64, max_position_embeddings=2048).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def run(*arguments):
    """The script in this process: importing torch and trl anew for every test would take minutes."""
    threads = torch.get_num_threads()
    try:
        train.main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)


def test_qlora_on_a_file_writes_all_that_the_readme_names(model_folder, tmp_path, capsys, caplog):
    """4-bit NF4 on the CPU, LoRA on all linear layers, data from JSON lines with an evaluation part held out."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in sample_rows(12)))
    out = tmp_path / "out"
    arguments = ["--model_name_or_path", model_folder, "--dataset_name", data, "--output_dir", out, *SMALL.split()]
    run(*arguments, "--group_size", 4)
    assert "2 steps see 16 rows, 1.8 times all of the 9 training rows." in capsys.readouterr().out
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "metrics.csv", "training.png"):
        assert (out / name).stat().st_size > 0, name
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics["step"].tolist() == [0, 1, 2]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["objective"]["group_size"] == 4
    assert summary["eval_nll_after"] == pytest.approx(metrics["eval_nll"].dropna().iloc[-1], rel=1e-4)
    assert summary["names"] == []  # these rows name no process
    card = (out / "README.md").read_text()
    assert "| `group_size` | `4` |" in card
    assert "Held-out nll" in card
    # resuming a finished run trains no further, is no error, and leaves its files alone
    written = (out / "summary.json").stat().st_mtime_ns
    run(*arguments, "--group_size", 4, "--resume_from_checkpoint", "True")
    assert "Nothing to resume" in capsys.readouterr().out
    assert (out / "summary.json").stat().st_mtime_ns == written
    run(*arguments, "--group_size", 4, "--resume_from_checkpoint", "True", "--max_steps", 3)
    assert f"Resuming from {out / 'checkpoint-2'}" in caplog.text


def test_shipped_gene_sets_are_the_default_data(model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    run("--model_name_or_path", model_folder, "--output_dir", out, "--load_in_4bit", "False", *SMALL.split())
    assert "1% of the 1200 training rows" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert [row["reference"] for row in summary["names"]] == load_gene_sets("eval")["name"][:2]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_any_question_and_answer_table(suffix, model_folder, tmp_path):
    data = tmp_path / f"qa{suffix}"
    table = pd.DataFrame([{"q": r["prompt"], "why": r["completion"], "a": "yes"} for r in sample_rows(8)])
    table.to_csv(data, index=False) if suffix == ".csv" else table.to_parquet(data)
    columns = ["--prompt_column", "q", "--completion_columns", "why", "a"]
    out = tmp_path / "o"
    common = ["--model_name_or_path", model_folder, "--dataset_name", data, "--output_dir", out, *SMALL.split()]
    common += ["--load_in_4bit", "False"]
    run(*common, *columns)
    with pytest.raises(ValueError, match=r"`prompt_column='question'`.*\['q', 'why', 'a'\]"):
        run(*common, "--prompt_column", "question", *columns[2:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset_name", "absent.jsonl"], "`dataset_name='absent.jsonl'`: no such file"),
        (["--model_name_or_path", "nobody/nothing"], "`model_name_or_path='nobody/nothing'` cannot be loaded"),
        (["--loss_type", "btf"], "invalid choice: 'btf'"),
        (["--group_size", "256a"], "invalid int value: '256a'"),
        (["--group_size", "0"], "`group_size=0`"),
        (["--resume_from_checkpoint", "True"], "holds no complete checkpoint"),
        (["--resume_from_checkpoint", "nowhere"], "`resume_from_checkpoint='nowhere'` is not a complete checkpoint"),
        (["--dataset_train_split", "trian"], "`dataset_train_split='trian'`"),
        (["--eval_samples", "0"], "`eval_samples=0` must be 1 or more"),
        (["--config", "absent.yaml"], "`config='absent.yaml'`: no such file"),
        (["--dataset_name", str(SCRIPT)], "use a .json, .jsonl, .parquet or .csv file"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_error(arguments, words, model_folder, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in sample_rows(6)))
    defaults = {"--model_name_or_path": model_folder, "--dataset_name": data, "--output_dir": tmp_path / "out"}
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    flags = [part for pair in (defaults | given).items() for part in pair]
    with pytest.raises((ValueError, OSError, SystemExit)) as error:
        run(*SMALL.split(), "--load_in_4bit", "False", *flags)
    assert words in str(error.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_bitsandbytes(model_folder, tmp_path, monkeypatch):
    """4-bit asked for without the package: said before anything is loaded."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(ImportError, match="needs bitsandbytes: pip install bitsandbytes, or --load_in_4bit False"):
        run("--model_name_or_path", model_folder, "--output_dir", tmp_path / "o")


def test_interrupt_leaves_a_usable_checkpoint(model_folder, tmp_path, caplog):
    out = tmp_path / "out"
    arguments = ["--model_name_or_path", model_folder, "--output_dir", out, "--load_in_4bit", "False"]
    arguments += [
        *SMALL.split(),
        "--max_steps",
        100_000,
        "--eval_strategy",
        "no",
        "--save_steps",
        100_000,
        "--logging_steps",
        1,
    ]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, str(SCRIPT), *map(str, arguments)], stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while "'loss'" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, (tmp_path / "log").read_text()[-2000:]
    text = (tmp_path / "log").read_text()
    assert "Go on with --resume_from_checkpoint True" in text
    (checkpoint,) = out.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    arguments[arguments.index(100_000)] = step + 1
    run(*arguments, "--resume_from_checkpoint", "True")
    assert f"Resuming from {checkpoint}" in caplog.text


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_recipes_parse(config, tmp_path):
    """Every key is known, and a recipe's comment names its own file."""
    script, args, model = train.parse(["--config", str(config)])
    assert args.output_dir == f"outputs/{config.stem}"
    assert model.load_in_4bit
    assert model.use_peft
    assert f"--config examples/configs/{config.name}" in config.read_text()
    assert script.dataset_name in (None, "FreedomIntelligence/medical-o1-reasoning-SFT")


def test_defaults_depend_on_what_is_given():
    _, demo, _ = train.parse([])
    assert demo.max_steps == train.DEMO["max_steps"]
    _, own_model, model = train.parse(["--model_name_or_path", "some/model"])
    assert (own_model.max_steps, own_model.group_size) == (-1, train.GENE_SETS["group_size"])
    assert own_model.output_dir == "outputs/bft-model"
    assert model.load_in_4bit
    _, own_data, _ = train.parse(["--dataset_name", "some/data", "--model_name_or_path", "some/model"])
    assert (own_data.max_steps, own_data.group_size) == (-1, 256)
    _, baseline, _ = train.parse(["--loss_type", "nll"])
    assert (baseline.output_dir, baseline.max_steps) == ("outputs/nll", train.DEMO["max_steps"])


# --- the demo's model ------------------------------------------------------------------------------------------------


def test_without_the_wheel_it_is_the_hub_id(monkeypatch, tmp_path):
    monkeypatch.setattr("bft_trl.models.WHEEL", "no_such_package")
    assert demo_model(tmp_path).path == HUB_ID
    assert list(tmp_path.iterdir()) == []


def test_without_wheel_and_network_the_error_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setattr("bft_trl.models.WHEEL", "no_such_package")
    monkeypatch.setattr("bft_trl.models.HUB_ID", "nobody/nothing")  # nor in this machine's Hub cache
    with pytest.raises(OSError, match=INSTALL):
        run("--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_wheel_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and then something else")
    monkeypatch.setattr("bft_trl.models.wheel_file", lambda: file)
    with pytest.raises(ValueError, match=r"model\.gguf: damaged, .* pip install"):
        demo_model(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(wheel_file() is None, reason=f"needs the demo's wheel: {INSTALL}")
def test_the_wheel_is_converted_once_and_whole(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = demo_model(tmp_path)
    folder = Path(model.path)
    assert model.source.endswith(folder.name.split("-")[-1] + model.source[-52:])
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.num_parameters() == 134_515_008
    assert not hasattr(loaded.config, "quantization_config")
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    monkeypatch.setattr("bft_trl.models._convert", None)  # a second call must not convert
    assert demo_model(tmp_path) == model


def test_a_damaged_conversion_is_made_again(tmp_path, monkeypatch):
    """Instead of the wheel a file, and of the conversion one small file: what is tested is whether it is made."""
    (tmp_path / "m.gguf").write_bytes(b"gguf")
    made = []

    def convert(file, folder):
        made.append(1)
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"0123456789")
        record_checksums(folder, [folder / "model.safetensors"])

    monkeypatch.setattr("bft_trl.models.wheel_file", lambda: tmp_path / "m.gguf")
    monkeypatch.setattr("bft_trl.models._convert", convert)
    monkeypatch.setattr("bft_trl.models.SHA256", hashlib.sha256(b"gguf").hexdigest())
    weights = Path(demo_model(tmp_path).path) / "model.safetensors"
    demo_model(tmp_path)
    assert len(made) == 1
    damages = [
        lambda: weights.write_bytes(b"0123456780"),
        lambda: weights.write_bytes(b"01234"),
        weights.unlink,
        lambda: (weights.parent / "checksums.json").write_text("{"),
        (weights.parent / "checksums.json").unlink,  # as of an earlier version
    ]
    for count, damage in enumerate(damages, 2):
        damage()
        demo_model(tmp_path)
        assert len(made) == count
        assert weights.read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    "path", sorted((SCRIPT.parent / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_reads_its_configs(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    expected = {
        "single_gpu": "NO",
        "multi_gpu": "MULTI_GPU",
        "fsdp2": "FSDP",
        "zero2": "DEEPSPEED",
        "zero3": "DEEPSPEED",
    }
    assert config.distributed_type.value == expected[path.stem]
    assert config.mixed_precision == "no"
