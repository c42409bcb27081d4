"""Every task and group is instantiated and run by lm-eval with a tiny model: from the repository and from a wheel."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import build_model, build_tokenizer
from peft import LoraConfig, get_peft_model
from test_encoders import build_bert

from bft_trl.cli.main import main
from bft_trl.evaluation.runner import available, tasks_path
from bft_trl.models import read_run
from bft_trl.prompts import gene_set_prompt

ROOT = Path(__file__).parents[1]
MEDICAL = ["bft_medqa", "bft_medmcqa", "bft_pubmedqa", "bft_mmlu_medical"]
GENE_SETS = ["bft_gene_sets_go", "bft_gene_sets_nest", "bft_gene_sets_msigdb"]
TASKS = [*MEDICAL, *(f"{name}_gen" for name in MEDICAL), *GENE_SETS]


def write_data(folder):
    """Two rows of every evaluation set, in the columns that the sets are published with."""
    folder.mkdir()
    tables = {
        "medqa_test": [
            {"id": f"test-{i:05}", "sent1": f"A patient {i} has a fever.", "sent2": "Cause?", "label": i}
            | {f"ending{k}": f"cause {k}" for k in range(4)}
            for i in range(2)
        ],
        "medmcqa_validation": [
            {"id": f"m{i}", "question": f"Which nerve {i}?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": i}
            | {"choice_type": "single", "exp": None, "subject_name": "Anatomy", "topic_name": None}
            for i in range(2)
        ],
        "pubmedqa_test": [
            {"id": str(100 + i), "QUESTION": f"Does it help {i}?", "CONTEXTS": ["We asked.", "It did."]}
            | {"LONG_ANSWER": "It helps.", "final_decision": ["yes", "maybe"][i]}
            for i in range(2)
        ],
        "mmlu_medical_test": [
            {"question": f"What is {i}?", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": i}
            for i in range(2)
        ],
    }
    for name in ("go", "nest", "msigdb"):
        tables[f"gene_sets_{name}"] = [
            {"id": f"{name}:{i}", "name": ["dna repair", "cell cycle"][i], "genes": ["TP53", "ATM"][: i + 1]}
            | {"source": name}
            for i in range(2)
        ]
    tables["go_background_terms"] = [{"id": str(i), "name": name} for i, name in enumerate(("dna", "cell", "cycle"))]
    for name, rows in tables.items():
        pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with data/, a sentence encoder/, a base model and adapter/ on top of it."""
    root = tmp_path_factory.mktemp("world")
    write_data(root / "data")
    build_bert(root / "encoder")
    tokenizer = build_tokenizer()
    # As wide as a block of NF4: bitsandbytes' CPU kernel takes no less.
    model = build_model(max_position_embeddings=2048, hidden_size=64, intermediate_size=64)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    # The adapter knows its base by the folder.
    model.name_or_path = model.config._name_or_path = str(root / "base")
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(root / "adapter")
    tokenizer.save_pretrained(root / "adapter")
    (root / "adapter" / "base_model.json").write_text('{"quantization": null}')
    return root


def results_of(out):
    (file,) = out.rglob("results_*.json")
    return json.loads(file.read_text())


def samples_of(out, task):
    (file,) = out.rglob(f"samples_{task}_2*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def check_results(results, *, encoder=True):
    for task in TASKS:
        expected = ["acc"] if task in MEDICAL else ["acc", "readable"]
        if task in GENE_SETS:
            expected = ["rouge1", "rouge2", "rougeL", "named"] + (["similarity", "percentile"] if encoder else [])
        found = {
            key.split(",")[0] for key in results["results"][task] if key.endswith(",none") and "stderr" not in key
        }
        assert found == set(expected)
        assert results["n-samples"][task] == {"original": 2, "effective": 2}
        assert results["versions"][task] == 1.0
        for metric in expected:
            assert results["results"][task][f"{metric}_stderr,none"] != "N/A"


def eval_command(world, out, *extra, tasks="bft_medical,bft_medical_gen,bft_gene_sets"):
    settings = ["--data-dir", str(world / "data"), "--encoder", str(world / "encoder")]
    passed_on = ["--gen_kwargs", "max_gen_toks=8", "--batch_size", "4", "--device", "cpu"]
    return [
        "eval",
        "--adapter",
        str(world / "adapter"),
        "--tasks",
        tasks,
        "--out",
        str(out),
        *settings,
        *passed_on,
        *extra,
    ]


def test_all_groups_run_from_the_repository(world, tmp_path):
    assert main(eval_command(world, tmp_path)) == 0
    results = results_of(tmp_path)
    check_results(results)
    assert set(results["groups"]) == {"bft_medical", "bft_medical_gen"}
    accuracies = [results["results"][task]["acc,none"] for task in MEDICAL]
    assert results["groups"]["bft_medical"]["acc,none"] == pytest.approx(sum(accuracies) / 4)
    assert results["chat_template_sha"]
    assert results["config"]["model_args"]["peft"] == str(world / "adapter")
    # what the model reads: the training prompt in the chat template, and "Answer:" already begun
    asked = samples_of(tmp_path, "bft_pubmedqa")[1]
    context, continuation = asked["arguments"]["gen_args_2"].values()
    assert context == (
        "<bos>user:We asked.\nIt did.\n\nDoes it help 1?\n\n"
        'Write "Answer: <yes, no or maybe>" and nothing else.<eos><bos>assistant:Answer:'
    )
    assert continuation == " maybe"
    reasoned = samples_of(tmp_path, "bft_medqa_gen")[0]["arguments"]["gen_args_0"]["arg_0"]
    assert 'A. cause 0\nB. cause 1\nC. cause 2\nD. cause 3\n\nThink step by step, then write "Answer:' in reasoned
    named = samples_of(tmp_path, "bft_gene_sets_go")[0]
    assert named["arguments"]["gen_args_0"]["arg_0"] == f"<bos>user:{gene_set_prompt(['TP53'])}<eos><bos>assistant:"
    metadata = results["configs"]["bft_gene_sets_go"]["metadata"]
    assert len(metadata["encoder_fingerprint"]) == len(metadata["background_fingerprint"]) == 16


def test_plain_lm_eval_runs_both_families_with_an_adapter(world, tmp_path):
    """As a leaderboard would: one call, an unquantized base with peft=, no chat template, no encoder."""
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "4"),
        *("--model_args", f"pretrained={world / 'base'},peft={world / 'adapter'}"),
        *("--tasks", ",".join(TASKS), "--include_path", str(ROOT / "eval_tasks"), "--gen_kwargs", "max_gen_toks=8"),
        *("--metadata", json.dumps({"data_dir": str(world / "data"), "encoder": "none"})),
        *("--log_samples", "--output_path", str(tmp_path)),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    check_results(results_of(tmp_path), encoder=False)
    assert "similarity and percentile are left out" in done.stderr
    assert samples_of(tmp_path, "bft_medqa")[0]["arguments"]["gen_args_0"]["arg_0"].endswith("nothing else. Answer:")


def test_all_groups_run_from_a_wheel(world, tmp_path):
    """In a folder of its own, with nothing of the repository on the path."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("bft_trl", "eval_tasks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], check=True, cwd=source, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.suffixes[0] for path in (site / "bft_trl" / "report").glob("*.j2")} == {".html", ".md"}
    shutil.rmtree(source)
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import bft_trl.cli.main\n"
        "from bft_trl.evaluation.runner import tasks_path\n"
        "assert str(tasks_path()).startswith(sys.path[0]); sys.exit(bft_trl.cli.main.main())"
    )
    command = [sys.executable, "-c", code, str(site), *eval_command(world, tmp_path / "out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    check_results(results_of(tmp_path / "out"))


def test_an_adapter_is_compared_with_its_base(world, tmp_path):
    """What lm-eval writes is what `compare` reads: adapter against base, which has the same settings."""
    tasks = "bft_medqa,bft_medmcqa_gen,bft_gene_sets_go"
    assert main(eval_command(world, tmp_path / "tuned", tasks=tasks)) == 0
    assert main(eval_command(world, tmp_path / "base", "--base-only", tasks=tasks)) == 0
    assert "peft" not in results_of(tmp_path / "base")["config"]["model_args"]
    runs = [str(tmp_path / name) for name in ("tuned", "base")]
    assert main(["compare", *runs, "--baseline", "base", "--out", str(tmp_path / "out"), "--resamples", "99"]) == 0
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {(row["task"], row["metric"]) for row in result["rows"]} == {
        *(("bft_medqa", "acc"), ("bft_medmcqa_gen", "acc"), ("bft_medmcqa_gen", "readable")),
        *(("bft_gene_sets_go", m) for m in ("rouge1", "rouge2", "rougeL", "similarity", "percentile", "named")),
    }
    # a new adapter is the base model
    assert all(row["difference"] == 0 for row in result["rows"])
    floors = {row["metric"] for row in result["reference_rows"] if row["kind"] == "floor"}
    assert floors == {"acc", "rouge1", "rouge2", "rougeL", "similarity", "percentile"}


def test_a_missing_file_leaves_out_its_task_only(world, tmp_path, caplog):
    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data" / "medqa_test.parquet").unlink()
    command = eval_command(world, tmp_path / "out", "--data-dir", str(tmp_path / "data"), tasks="bft_medical")
    assert main(command) == 1
    results = results_of(tmp_path / "out")
    assert set(results["results"]) == set(MEDICAL) - {"bft_medqa"}
    assert "groups" not in results  # the average of three is not that of four
    assert "Left out bft_medqa: " in caplog.text
    assert "medqa_test" in caplog.text


def test_all_data_missing_is_an_error(world, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(eval_command(world, tmp_path / "out", "--data-dir", str(tmp_path / "empty"), tasks="bft_medqa")) == 2
    assert "None of the tasks has its data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_no_folder_stops_before_the_work(world, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert main(eval_command(world, tmp_path / "out", tasks="bft_medqa")) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    assert main(eval_command(world, tmp_path / "o", "--output_path", "x", tasks="bft_medqa")) == 2
    assert "`--output_path` is set by" in capsys.readouterr().err


def test_a_missing_background_leaves_out_its_tasks_only(world, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data" / "go_background_terms.parquet").unlink()
    settings = {"data_dir": str(tmp_path / "data"), "encoder": str(world / "encoder")}
    present, missing = available(["bft_medqa", "bft_gene_sets_go"], settings)
    assert present == ["bft_medqa"]
    assert '"none" to leave percentiles out' in missing["bft_gene_sets_go"]
    assert available(["bft_gene_sets_go"], settings | {"background": "none"})[0] == ["bft_gene_sets_go"]


def test_an_unknown_encoder_stops_before_anything_is_loaded(world, tmp_path, capsys):
    command = eval_command(world, tmp_path / "out", "--encoder", str(tmp_path / "no"), tasks="bft_gene_sets_go")
    assert main(command) == 2
    assert "`encoder=" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_base_is_quantized_as_in_training(world, tmp_path, monkeypatch):
    import bitsandbytes
    from lm_eval.models.huggingface import HFLM

    adapter = tmp_path / "adapter"
    shutil.copytree(world / "adapter", adapter)
    nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (adapter / "base_model.json").write_text(json.dumps({"quantization": nf4}))
    seen = []
    create = HFLM._create_model

    def recorded(self, *args, **kwargs):
        create(self, *args, **kwargs)
        seen.extend(module for module in self._model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit))

    monkeypatch.setattr(HFLM, "_create_model", recorded)
    command = eval_command(world, tmp_path / "out", "--adapter", str(adapter), tasks="bft_medqa")
    assert main(command) == 0
    assert seen
    assert seen[0].weight.quant_type == "nf4"
    seen.clear()
    assert main([*command, "--no-load-in-4bit", "--out", str(tmp_path / "plain")]) == 0
    assert not seen


def test_plain_lm_eval_takes_a_base_that_was_saved_in_nf4(world, tmp_path):
    """The way that docs/evaluation.md gives, since `load_in_4bit=True` fails."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(world / "base", quantization_config=nf4).save_pretrained(tmp_path / "nf4")
    AutoTokenizer.from_pretrained(world / "base").save_pretrained(tmp_path / "nf4")
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--tasks", "bft_medqa"),
        *("--model_args", f"pretrained={tmp_path / 'nf4'},peft={world / 'adapter'}"),
        *("--include_path", str(ROOT / "eval_tasks"), "--metadata", json.dumps({"data_dir": str(world / "data")})),
        *("--log_samples", "--output_path", str(tmp_path / "out")),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert results_of(tmp_path / "out")["results"]["bft_medqa"]["sample_len"] == 2


def test_what_the_run_folder_says(world, tmp_path):
    run = read_run(None, world / "adapter")
    assert (run.base, run.tokenizer, run.quantization) == (str(world / "base"), str(world / "adapter"), None)
    assert run.chat_template
    assert read_run(str(world / "base"), None, load_in_4bit=True).quantization["bnb_4bit_quant_type"] == "nf4"
    assert not read_run(None, world / "adapter", chat_template=False).chat_template
    base = read_run(None, world / "adapter", base_only=True)
    assert (base.adapter, base.base, base.tokenizer) == (None, run.base, run.tokenizer)
    with pytest.raises(ValueError, match="`base_only=True` needs `adapter`"):
        read_run(str(world / "base"), None, base_only=True)
    with pytest.raises(ValueError, match="Name a base model with `model`"):
        read_run(None, None)
    shutil.copytree(world / "adapter", tmp_path / "cut")
    (tmp_path / "cut" / "base_model.json").write_text("{}")
    assert read_run(None, tmp_path / "cut").quantization is None
    (tmp_path / "cut" / "base_model.json").write_text('{"quant')
    with pytest.raises(ValueError, match="base_model.json: not JSON"):
        read_run(None, tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match=r"`adapter=.* has no adapter_config.json"):
        read_run(None, tmp_path)
    with pytest.raises(ValueError, match=r"`model=.*tokenizer cannot be loaded"):
        read_run(str(tmp_path), None)


def test_names_of_lm_evals_own_tasks_pass_through(world):
    settings = {"data_dir": str(world / "data"), "encoder": "none"}
    assert available(["hellaswag", "bft_medical"], settings) == (["hellaswag", "bft_medical"], {})


def test_every_task_file_is_tested_and_described():
    files = {path.stem for path in tasks_path().rglob("bft_*.yaml")}
    assert files == set(TASKS)
    for family in ("medical", "gene_sets"):
        text = (tasks_path() / family / "README.md").read_text()
        assert "## Changelog" in text
        assert all(
            f"`{name}`" in text
            for name in TASKS
            if name.removesuffix("_gen") == name
            and name in files
            and (tasks_path() / family / f"{name}.yaml").is_file()
        )
