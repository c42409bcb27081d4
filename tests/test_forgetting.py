"""`bft-trl eval --forgetting_tasks` on a model whose every answer is known."""

import json
import shutil

import pytest
import torch
from conftest import build_model, build_tokenizer
from peft import LoraConfig, get_peft_model

from bft_trl.cli.main import main

# The right answers of twelve documents. The base says "a" to everything, the adapter "b".
GENERAL = "aaaaaaaabbbb"
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
    answers = {"known_general": GENERAL, "known_domain": DOMAIN}
    for name in answers:
        (root / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name))
    (root / "tasks" / "rows.py").write_text(
        "".join(ROWS.format(name=name, answers=given) for name, given in answers.items())
    )
    return root


def eval_command(world, out, *extra):
    return [
        *("eval", "--adapter", str(world / "adapter"), "--tasks", "known_domain", "--output_dir", str(out)),
        *("--include_path", str(world / "tasks"), "--device", "cpu", "--batch_size", "8"),
        *extra,
    ]


def rows_of(out):
    return json.loads((out / "comparison.json").read_text())["rows"]


def test_forgetting_by_hand(world, tmp_path, caplog):
    """Of 12 answers the base has 8, the adapter the other 4: -4/12. McNemar: 8 lost, 4 won, p = 2 P(X <= 4), X of 12

    fair coins: 2 (1 + 12 + 66 + 220 + 495) / 4096 = 1588/4096.
    """
    caplog.set_level("INFO")
    out = tmp_path / "out"
    assert main(eval_command(world, out, "--forgetting-tasks", "known_general")) == 0
    (row,) = rows_of(out / "forgetting")
    assert (row["task"], row["metric"], row["run"], row["n"]) == ("known_general", "acc", "tuned", 12)
    assert (row["baseline_score"], row["score"]) == pytest.approx((8 / 12, 4 / 12))
    assert row["difference"] == pytest.approx(-4 / 12)
    assert row["p"] == pytest.approx(1588 / 4096)
    assert row["low"] < -4 / 12 < row["high"]
    line = f"known_general, acc: base 0.667, tuned 0.333, change -0.333 ({row['low']:+.3f} to {row['high']:+.3f})"
    assert line in caplog.messages
    # Of the domain task's "abbb" the adapter has three; its folder can be compared.
    assert main(eval_command(world, tmp_path / "base", "--base_only")) == 0
    compared = ["compare", f"tuned={out}", f"base={tmp_path / 'base'}", "--baseline", "base", "--resamples", "99"]
    assert main([*compared, "--output_dir", str(tmp_path / "compared")]) == 0
    (row,) = rows_of(tmp_path / "compared")
    assert (row["task"], row["baseline_score"], row["score"]) == ("known_domain", 0.25, 0.75)


def test_only_what_changed_is_evaluated_again(world, tmp_path, caplog):
    caplog.set_level("INFO")
    adapter = shutil.copytree(world / "adapter", tmp_path / "adapter")
    flags = ["--adapter", str(adapter), "--forgetting_tasks", "known_general", "--forgetting_limit", "10"]
    command = eval_command(world, tmp_path / "out", *flags)
    assert main(command) == 0
    (row,) = rows_of(tmp_path / "out" / "forgetting")
    assert (row["n"], row["baseline_score"], row["score"]) == pytest.approx((10, 0.8, 0.2))
    caplog.clear()
    assert main(command) == 0
    assert caplog.text.count("has the results of this evaluation") == 3
    # Nothing runs before the folder of the general tasks is found to be of another evaluation.
    shutil.rmtree(tmp_path / "out" / "forgetting" / "base")
    (tmp_path / "out" / "settings.json").unlink()
    assert main([*command, "--forgetting_limit", "3"]) == 2
    assert not (tmp_path / "out" / "settings.json").exists()
    assert main(command) == 0
    # Another adapter on the same base, as a later checkpoint is.
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80?")
    assert main(command) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--forgetting_tasks", " , "], "`tasks` is empty"),
        (["--forgetting_tasks", "known_general", "--base-only"], "it needs `adapter`, not `base_only`"),
        (["--forgetting_tasks", "bft_medqa", "--data_dir", "/nowhere"], "`forgetting_tasks`: bft_medqa: "),
        (["--forgetting_limit", "3"], "`forgetting_limit` needs `forgetting_tasks`"),
        (["--forgetting_tasks", "known_general", "--forgetting_limit", "-1"], "`limit=-1` must be a number"),
        (["--limit", "-1"], "`limit=-1` must be a number"),
        (["--limit", "0"], "`limit=0` must be a number"),
        (["--limit", "1.5"], "`limit=1.5` must be a number"),
        (["--batch_size", "x"], "`batch_size='x'` must be 1 or more, or 'auto'"),
        (["--batch_size", "0"], "`batch_size='0'` must be 1 or more"),
        (["--num_fewshot", "-1"], "`num_fewshot=-1` must be 0 or more"),
    ],
)
def test_bad_options_stop_before_anything_runs(world, tmp_path, capsys, flags, words):
    assert main(eval_command(world, tmp_path / "out", *flags)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "settings.json").exists()
