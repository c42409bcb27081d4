"""`bft-trl eval --panel` on a model whose every answer is known, with lm-eval tasks of two folders' own."""

import functools
import html.parser
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer
from peft import LoraConfig, get_peft_model

from bft_trl.cli.main import main
from bft_trl.evaluation import forgetting
from bft_trl.evaluation.forgetting import evaluate_panel
from bft_trl.evaluation.runner import check_flags
from bft_trl.models import read_run

# The right answers of twelve documents. The base says "a" to everything, the adapter "b".
PANEL = "aaaaaaaabbbb"
DOMAIN = "abbb"
TASK = """\
task: {name}
custom_dataset: !function rows.{name}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: right
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""
ROWS = """\
from datasets import Dataset


def {name}(**kwargs):
    rows = [{{"question": f"Which {{i}}?", "right": "ab".index(right)}} for i, right in enumerate({answers!r})]
    return {{"test": Dataset.from_list(rows)}}


"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base whose hidden state is the same everywhere and whose head then says "a"; an adapter that adds to "b"."""
    root = tmp_path_factory.mktemp("forgetting")
    tokenizer = build_tokenizer()
    model = build_model(
        tie_word_embeddings=False, max_position_embeddings=512, hidden_size=64, intermediate_size=64
    )  # as wide as a block of NF4
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "ab")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)  # layers that add nothing
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[a, 0] = 1.0
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    model.name_or_path = model.config._name_or_path = str(root / "base")
    adapted = get_peft_model(
        model, LoraConfig(r=1, lora_alpha=1, target_modules=["lm_head"], task_type="CAUSAL_LM"), "default"
    )
    with torch.no_grad():
        head = adapted.base_model.model.lm_head
        head.lora_A["default"].weight.copy_(torch.eye(1, head.in_features))
        head.lora_B["default"].weight.zero_()[b] = 2.0
    adapted.save_pretrained(root / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(root / "adapter")
    (root / "adapter" / "base_model.json").write_text('{"quantization": null}')
    (root / "tasks").mkdir()
    answers = {"known_panel": PANEL, "known_domain": DOMAIN}
    for name in answers:
        (root / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name))
    (root / "tasks" / "rows.py").write_text(
        "".join(ROWS.format(name=name, answers=given) for name, given in answers.items())
    )
    return root


@pytest.fixture(autouse=True)
def only_local_tasks(monkeypatch):
    """Without lm-eval's 14,000 tasks, whose files take eight seconds to read, each time."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(TaskManager, "__init__", functools.partialmethod(TaskManager.__init__, include_defaults=False))


def without_panel(world, out):
    return [
        *("eval", "--adapter", str(world / "adapter"), "--tasks", "known_domain", "--out", str(out)),
        *("--include_path", str(world / "tasks"), "--device", "cpu", "--batch_size", "8"),
    ]


def texts(page):
    found = []
    parser = html.parser.HTMLParser()
    parser.handle_data = found.append
    parser.feed(page)
    return found


def test_the_panel_by_hand(world, tmp_path, caplog):
    """Of 12 answers the base has 8, the adapter the other 4: -4/12. McNemar: 8 lost, 4 won, p = 2 P(X <= 4), X of 12

    fair coins: 2 (1 + 12 + 66 + 220 + 495) / 4096 = 1588/4096.
    """
    caplog.set_level("INFO")
    out = tmp_path / "out"
    assert main([*without_panel(world, out), "--panel", "known_panel"]) == 0
    result = json.loads((out / "forgetting" / "comparison.json").read_text())
    (row,) = result["rows"]
    assert (row["task"], row["metric"], row["run"], row["n"]) == ("known_panel", "acc", "tuned", 12)
    assert (row["baseline_score"], row["score"]) == pytest.approx((8 / 12, 4 / 12))
    assert row["difference"] == pytest.approx(-4 / 12)
    assert row["p"] == pytest.approx(1588 / 4096)
    assert row["low"] < -4 / 12 < row["high"]
    line = f"known_panel, acc: base 0.667, tuned 0.333, change -0.333 ({row['low']:+.3f} to {row['high']:+.3f})"
    assert line in caplog.messages
    assert {"known_panel", "tuned", "0.333", "-0.333"} <= set(texts((out / "forgetting" / "index.html").read_text()))
    # The domain task beside it: of "abbb" the adapter has three, and its folder can be compared as ever.
    (results,) = (file for file in out.rglob("results_*.json") if "panel" not in file.relative_to(out).parts)
    assert json.loads(results.read_text())["results"]["known_domain"]["acc,none"] == 0.75
    compared = ["compare", f"tuned={out}", f"base={tmp_path / 'base'}", "--baseline", "base", "--resamples", "99"]
    assert main([*without_panel(world, tmp_path / "base"), "--base-only"]) == 0
    assert main([*compared, "--out", str(tmp_path / "compared")]) == 0
    (row,) = json.loads((tmp_path / "compared" / "comparison.json").read_text())["rows"]
    assert (row["task"], row["baseline_score"], row["score"]) == ("known_domain", 0.25, 0.75)


def panel(world, adapter, out, **options):
    run = read_run(None, adapter)
    flags = ["--include_path", str(world / "tasks"), "--device", "cpu"]
    return evaluate_panel(run, ["known_panel"], out, passed_on=flags, **options)


def test_what_lies_there_is_reused_and_what_changed_is_not(world, tmp_path, monkeypatch, caplog):
    """Which of the two are evaluated, by what changed since: "b" for the base, "t" for the adapter."""
    caplog.set_level("INFO")
    adapter = shutil.copytree(world / "adapter", tmp_path / "adapter")
    evaluated = []

    def recorded(run, tasks, out, *, metadata, passed_on):
        evaluated.append("b" if run.adapter is None else "t")
        out.mkdir()
        (out / "flags").write_text(" ".join(passed_on))

    monkeypatch.setattr(forgetting, "evaluate", recorded)
    monkeypatch.setattr(forgetting, "compare", lambda runs, baseline, out: {"runs": runs, "baseline": baseline})

    def again(**options):
        evaluated.clear()
        result = panel(world, adapter, tmp_path / "out", **options)
        assert result["baseline"] == "base"
        return "".join(evaluated), [Path(run.partition("=")[2]) for run in result["runs"]]

    assert again()[0] == "bt"
    assert ": reused" not in caplog.text
    unchanged, folders = again()
    assert unchanged == ""
    assert "Panel, base: reused" in caplog.text
    assert [folder.parent.name for folder in folders] == ["base", "tuned"]
    # Another adapter on the same base, as a later checkpoint is.
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80?")
    assert again()[0] == "t"
    made, folders = again(limit=5)
    assert made == "bt"
    assert all((folder / "flags").read_text().endswith(" --limit 5") for folder in folders)
    assert again()[0] == ""
    assert again(metadata={"encoder": "none"})[0] == "bt"
    # Another chat template asks in other words; another quantization answers otherwise; so does another task.
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}:")
    assert again()[0] == "bt"
    (adapter / "base_model.json").write_text('{"quantization": {"quant_method": "bitsandbytes"}}')
    assert again()[0] == "bt"
    base = world / "base" / "model.safetensors"
    whole = base.read_bytes()
    base.write_bytes(whole + b" ")
    assert again()[0] == "bt"
    base.write_bytes(whole)
    task = world / "tasks" / "known_panel.yaml"
    text = task.read_text()
    task.write_text(text + "# changed\n")
    assert again()[0] == "bt"
    task.write_text(text)
    # Nothing but whole folders is left.
    assert not [path for path in (tmp_path / "out" / "panel").rglob("*") if path.name.startswith(".")]


def test_a_panel_that_was_cut_short_is_not_reused(world, tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        args[2].mkdir()
        (args[2] / "results_half.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(forgetting, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        panel(world, world / "adapter", tmp_path)
    assert list((tmp_path / "panel" / "base").iterdir()) == []


def test_a_quantized_base_is_loaded_as_in_training_both_times(world, tmp_path):
    """lm-eval takes a model's name once in a process, and here it is needed twice. Weights of 0 stay what they are."""
    nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    adapter = shutil.copytree(world / "adapter", tmp_path / "adapter")
    (adapter / "base_model.json").write_text(json.dumps({"quantization": nf4}))
    (row,) = panel(world, adapter, tmp_path / "out", limit=10)["rows"]
    assert (row["n"], row["baseline_score"], row["score"]) == pytest.approx((10, 0.8, 0.2))
    models = [json.loads(file.read_text())["config"]["model"] for file in tmp_path.rglob("results_*.json")]
    assert models == ["bft-quantized"] * 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--panel", "hellaswagg"], "`panel`: lm-eval knows no 'hellaswagg'"),
        (["--panel", "nowhere/task.yaml"], "`panel`: lm-eval knows no 'nowhere/task.yaml'"),
        (["--panel", " , "], "`panel` names no task"),
        (["--panel-limit", "0"], "`panel_limit=0` must be 1 or more"),
        (["--base-only"], "`panel` shows what an adapter changed in its base: it needs `adapter`"),
        (["--use_cache", "x"], "`--use_cache` does not go with `panel`"),
        (["--use_c=x"], "`--use_cache` does not go with `panel`"),
        (["-c", "x"], "`--use_cache` does not go with `panel`"),
        (["--samples", "{}"], "`--samples` does not go with `panel`"),
        (["--predict_only"], "`--predict_only` does not go with `panel`"),
        (["--panel", "bft_medqa", "--data-dir", "/nowhere"], "`panel`: bft_medqa: "),
    ],
)
def test_refusals_before_anything_runs(world, tmp_path, capsys, flags, words):
    assert main([*without_panel(world, tmp_path / "out"), "--panel", "known_panel", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_reached_stop_before_anything_runs(world, tmp_path, capsys):
    task = world / "tasks" / "unreachable.yaml"
    task.write_text(
        TASK.format(name="unreachable").replace(
            "custom_dataset: !function rows.unreachable", "dataset_path: nobody/none"
        )
    )
    assert main([*without_panel(world, tmp_path / "out"), "--panel", "known_panel,unreachable"]) == 2
    task.unlink()
    assert "`panel`: the data of its tasks cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_panel_needs_an_adapter(world, tmp_path, capsys):
    call = ["eval", "--model", str(world / "base"), "--tasks", "known_domain", "--out", str(tmp_path / "out")]
    assert main([*call, "--panel", "known_panel"]) == 2
    assert "it needs `adapter`" in capsys.readouterr().err
    assert main([*call, "--panel-limit", "3"]) == 2
    assert "`panel_limit` needs `panel`" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--model_args", "-a", "--model_a", "--output_path=x", "-o", "-ox", "--log_s"])
def test_flags_that_are_ours_are_refused_in_every_spelling(flag):
    with pytest.raises(ValueError, match="is set by `bft-trl eval` itself"):
        check_flags([flag, "x"])


def test_other_flags_pass():
    check_flags(["--limit", "200", "-b", "8", "--gen_kwargs", "max_gen_toks=48,eos_token=</s>", "--num_fewshot", "-1"])
    check_flags(["--metadata", '{"tokenizer": "gpt2", "pad_token": "x"}', "--wandb_args", "project=mine"])
