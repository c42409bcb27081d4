"""Every task and group runs in lm-eval with a tiny model: by `bft-trl eval`, by plain lm-eval, and from a wheel."""

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
from test_leaderboard import LEADERBOARD

from bft_trl.cli.main import main
from bft_trl.evaluation.runner import tasks_path
from bft_trl.evaluation.scores import read_scores
from bft_trl.models import read_run
from bft_trl.prompts import gene_set_prompt

ROOT = Path(__file__).parents[1]
GROUPS = "bft_medical,bft_medical_gen,bft_medxpertqa,bft_medxpertqa_gen,bft_gene_sets,bft_gene_sets_described"
MEDICAL = ["bft_medqa", "bft_medmcqa", "bft_pubmedqa", "bft_mmlu_medical"]
GENE_SETS = [f"bft_gene_sets_{form}{name}" for form in ("", "described_") for name in ("go", "nest", "msigdb")]
CHOICE = [*MEDICAL, "bft_medxpertqa"]
TASKS = [*CHOICE, *(f"{name}_gen" for name in CHOICE), *GENE_SETS]


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
    tables["medxpertqa_sampled_text"] = [
        {"id": f"Text-{i}", "question": f"Which sign {i}?\nAnswer Choices: (A) sign 0 (B) ...", "label": ["AJ"[i]]}
        | {"options": [{"letter": letter, "content": f"sign {k}"} for k, letter in enumerate("ABCDEFGHIJ")]}
        for i in range(2)
    ]
    for name in ("go", "nest", "msigdb"):
        tables[f"gene_sets_{name}"] = [
            {"id": f"{name}:{i}", "name": ["dna repair", "cell cycle"][i], "genes": ["TP53", "ATM"][: i + 1]}
            | {"source": name}
            for i in range(2)
        ]
    tables["go_background_terms"] = [{"id": str(i), "name": name} for i, name in enumerate(("dna", "cell", "cycle"))]
    tables["gene_names"] = [{"symbol": "TP53", "name": "tumor protein p53"}]
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


NAMES = ["rouge1", "rouge2", "rougeL", "similarity", "percentile", "answer_rate"]


def expected_metrics(task, *, encoder=True):
    if task in GENE_SETS:
        return {m for m in NAMES if encoder or m not in ("similarity", "percentile")}
    return {"acc"} if task in CHOICE else {"acc", "readable"}


def results_of(out):
    (file,) = out.rglob("results*.json")
    return json.loads(file.read_text())


def check_results(results, tasks=TASKS, *, encoder=True):
    for task in tasks:
        found = {
            key.split(",")[0] for key in results["results"][task] if key.endswith(",none") and "stderr" not in key
        }
        assert found == expected_metrics(task, encoder=encoder)
        assert results["n-samples"][task] == {"original": 2, "effective": 2}
        assert results["versions"][task] == (2.0 if "gene_sets" in task else 1.0)


def eval_command(world, out, *extra, tasks=GROUPS):
    return [
        *("eval", "--adapter", str(world / "adapter"), "--tasks", tasks, "--output_dir", str(out)),
        *("--data_dir", str(world / "data"), "--encoder", str(world / "encoder")),
        *("--gen_kwargs", "max_gen_toks=8", "--batch_size", "4", "--device", "cpu"),
        *extra,
    ]


def test_all_groups_run_from_the_repository(world, tmp_path):
    assert main(eval_command(world, tmp_path / "o", "--system_instruction", "Keep this secret: token=x")) == 0
    results = results_of(tmp_path / "o")
    check_results(results)
    assert set(results["groups"]) == {"bft_medical", "bft_medical_gen"}
    accuracies = [results["results"][task]["acc,none"] for task in MEDICAL]
    assert results["groups"]["bft_medical"]["acc,none"] == pytest.approx(sum(accuracies) / 4)
    assert results["config"]["model_args"]["peft"] == str(world / "adapter")
    metadata = results["configs"]["bft_gene_sets_go"]["metadata"]
    assert len(metadata["encoder_fingerprint"]) == len(metadata["background_fingerprint"]) == 16
    assert not list((tmp_path / "o").glob(".answers*"))
    # The scores per document have lm-eval's means, and baselines on the same documents.
    scores, settings = read_scores(tmp_path / "o")
    models = scores.groupby(["task", "model", "metric"], sort=False)["score"].mean()
    for task in TASKS:
        found = models[task, str(world / "adapter")]
        assert found.to_dict() == pytest.approx({m: results["results"][task][f"{m},none"] for m in found.index})
        assert set(found.index) == expected_metrics(task)
        assert settings["tasks"][task]["chat_template"]
        assert settings["tasks"][task]["higher_is_better"]["acc" if task not in GENE_SETS else "rouge1"] is True
    assert models["bft_medqa", "baseline: chance", "acc"] == 0.25
    assert models["bft_medxpertqa", "baseline: chance", "acc"] == pytest.approx(0.1)
    names = models["bft_gene_sets_go", "baseline: another set's name"]
    assert set(names.index) == {*NAMES} - {"answer_rate"}
    assert settings["models"]["baseline: chance"] == {"kind": "baseline"}
    assert len(settings["models"][str(world / "adapter")]["adapter_hash"]) == 16
    # What the model reads: the training prompt in the chat template, and "Answer:" as its beginning.
    lines = [json.loads(line) for line in (tmp_path / "o" / "samples.jsonl").read_text().splitlines()]
    prompts = {(line["task"], line["doc_id"]): line["arguments"][0][0] for line in lines}
    assert prompts["bft_pubmedqa", 1] == (
        "<bos>system:Keep this secret: token=x<eos><bos>user:We asked.\nIt did.\n\nDoes it help 1?\n\n"
        'Write "Answer: <yes, no or maybe>" and nothing else.<eos><bos>assistant:Answer:'
    )
    signs = "".join(f"{letter}. sign {k}\n" for k, letter in enumerate("ABCDEFGHIJ"))
    assert f"<bos>user:Which sign 1?\n\n{signs}\nWrite" in prompts["bft_medxpertqa", 1]
    reasoned = prompts["bft_medqa_gen", 0]
    assert 'A. cause 0\nB. cause 1\nC. cause 2\nD. cause 3\n\nThink step by step, then write "Answer:' in reasoned
    described = "and nothing else.\n\nGenes:\nTP53: tumor protein p53\nATM<eos><bos>assistant:"
    assert prompts["bft_gene_sets_described_go", 1].endswith(described)
    assert prompts["bft_gene_sets_go", 0].endswith(f"<bos>user:{gene_set_prompt(['TP53'])}<eos><bos>assistant:")


def test_plain_lm_eval_runs_our_tasks_and_is_compared(world, tmp_path):
    """As a leaderboard would: one call, an unquantized base with peft=, no encoder. The scores are those of ours."""
    tasks = [*MEDICAL, "bft_medqa_gen", "bft_gene_sets_go"]
    metadata = {"data_dir": str(world / "data"), "encoder": "none"}
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "4"),
        *("--model_args", f"pretrained={world / 'base'},peft={world / 'adapter'},tokenizer={world / 'adapter'}"),
        *("--tasks", ",".join(tasks), "--include_path", str(ROOT / "eval_tasks"), "--gen_kwargs", "max_gen_toks=8"),
        *("--metadata", json.dumps(metadata), "--apply_chat_template"),
        *("--log_samples", "--output_path", str(tmp_path / "plain")),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    check_results(results_of(tmp_path / "plain"), tasks, encoder=False)
    assert "similarity and percentile are left out" in done.stderr
    assert main(eval_command(world, tmp_path / "ours", "--encoder", "none", tasks=",".join(tasks))) == 0
    runs = [str(tmp_path / "ours"), str(tmp_path / "plain"), "--baseline", "plain", "--resamples", "99"]
    assert main(["compare", *runs, "--output_dir", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert {(row["task"], row["metric"]) for row in rows} == {
        (task, metric) for task in tasks for metric in expected_metrics(task, encoder=False)
    }
    assert all(row["difference"] == 0 for row in rows)


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
    assert (site / "bft_trl" / "comparison" / "documents.js").is_file()
    assert (site / "bft_trl" / "evaluation" / "recorded.parquet").is_file()
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
    assert not [word for word in ("Warning", "Failed to load", "pip install") if word in done.stderr]


def test_a_missing_file_leaves_out_its_task_only(world, tmp_path, caplog):
    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data" / "medqa_test.parquet").unlink()
    (tmp_path / "data" / "go_background_terms.parquet").unlink()
    command = eval_command(world, tmp_path / "out", "--data_dir", str(tmp_path / "data"))
    command = [*command, "--tasks", "bft_medical,bft_gene_sets_go"]
    assert main(command) == 1
    results = results_of(tmp_path / "out")
    assert set(results["results"]) == set(MEDICAL) - {"bft_medqa"}
    assert not results.get("groups")  # the average of three is not that of four
    assert caplog.text.count("Left out bft_medqa: ") == 1
    assert "Without bft_medqa, bft_gene_sets_go: see above" in caplog.text
    assert '"none" to leave percentiles out' in caplog.text
    caplog.clear()
    assert main([*command, "--allow_missing"]) == 0  # the finished evaluation, and what it lacks
    assert main([*command, "--allow_missing", "--overwrite_output_dir"]) == 0
    assert caplog.text.count("Left out bft_medqa: ") == 2  # once by each


def test_described_sets_need_the_names_of_genes(world, tmp_path, capsys):
    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data" / "gene_names.parquet").unlink()
    options = ["--data_dir", str(tmp_path / "data"), "--tasks", "bft_gene_sets_described"]
    assert main([*eval_command(world, tmp_path / "out"), *options]) == 2
    # Once, for three tasks.
    assert (
        f"data: `data_dir='{tmp_path / 'data'}'` has no gene_names.parquet or .tsv with symbol and name.\n"
        in capsys.readouterr().err
    )


def test_described_sets_are_not_compared_with_symbols(world, tmp_path, caplog, capsys):
    for name in ("go", "described_go"):
        assert main(eval_command(world, tmp_path / name, tasks=f"bft_gene_sets_{name}")) == 0
    command = ["compare", str(tmp_path / "described_go"), "--baseline", str(tmp_path / "go"), "--output_dir"]
    for options in ([], ["--common_documents"]):
        assert main([*command, str(tmp_path / "comparison"), *options]) == 2
        assert "No run shares a task with the baseline 'go', which has ['bft_gene_sets_go']" in capsys.readouterr().err
    assert "bft_gene_sets_described_go, bft_gene_sets_go" in caplog.text

    # Recorded answers to the same sets, which take the name of a run's task.
    sets = pd.read_parquet(world / "data" / "gene_sets_go.parquet").assign(predicted_name="dna repair")
    sets[["id", "predicted_name"]].to_csv(tmp_path / "answers.csv", index=False)
    options = ["--encoder", str(world / "encoder")]
    options += ["--background", str(world / "data" / "go_background_terms.parquet")]
    score = [
        "score",
        "--predictions",
        str(tmp_path / "answers.csv"),
        *options,
        "--output_dir",
        str(tmp_path / "agent"),
    ]
    assert main([*score, "--references", str(world / "data" / "gene_sets_go.parquet")]) == 0
    command = ["compare", *(str(tmp_path / name) for name in ("go", "described_go")), "--baseline"]
    assert main([*command, str(tmp_path / "agent"), "--output_dir", str(tmp_path / "comparison")]) == 2
    assert "'described_go' differs from 'go' in the prompt of 2 of 2 documents" in capsys.readouterr().err
    assert not (tmp_path / "comparison" / "comparison.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data_dir", "{tmp}/empty"], "None of the tasks has its data"),
        (["--data_dir", "{tmp}/empty", "--allow_missing"], "None of the tasks has its data"),
        (["--output_dir", "{tmp}/file"], "is a file"),
        (["--encoder", "{tmp}/no", "--tasks", "bft_gene_sets_go"], "`encoder="),
        (["--tasks", "bft_medqua"], "lm-eval knows no 'bft_medqua'"),
        (["--tasks", " , "], "`tasks` is empty"),
        (["--device", "nowhere"], "`device='nowhere'`"),
        (["--adapter", "{tmp}/empty"], "has no adapter_config.json"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(world, tmp_path, capsys, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    assert main([*eval_command(world, tmp_path / "out", tasks="bft_medqa"), *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("bft-trl: error: ")
    assert words in error
    assert not (tmp_path / "out" / "settings.json").exists()


def test_another_evaluation_is_not_replaced_silently(world, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    command = eval_command(world, tmp_path, tasks="bft_medqa")
    assert main(command) == 0
    first = (tmp_path / "settings.json").read_bytes()
    assert main([*command, "--batch_size", "1"]) == 0  # the same evaluation is not repeated
    assert "has the results of this evaluation" in caplog.text
    assert main([*command, "--limit", "1"]) == 2
    assert "has the results of another evaluation" in capsys.readouterr().err
    assert (tmp_path / "settings.json").read_bytes() == first
    assert main([*command, "--limit", "1", "--overwrite-output-dir"]) == 0
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1


def test_a_stopped_evaluation_goes_on_from_its_answers(world, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    calls = []
    generate = HFLM._model_generate

    def stop_at_third(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_generate", stop_at_third)
    command = [*eval_command(world, tmp_path / "o", tasks="bft_medqa_gen,bft_medmcqa_gen"), "--batch_size", "1"]
    assert main(command) == 130
    assert not (tmp_path / "o" / "settings.json").exists()
    assert main(command) == 0
    assert len(calls) == 2 + 1 + 2  # four documents, two of them before the stop
    assert main([*command, "--output_dir", str(tmp_path / "whole")]) == 0
    for file in ("scores.parquet", "samples.jsonl"):
        assert (tmp_path / "o" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_base_is_quantized_as_in_training(world, tmp_path, monkeypatch):
    import bitsandbytes
    from lm_eval.models.huggingface import HFLM

    adapter = tmp_path / "adapter"
    shutil.copytree(world / "adapter", adapter)
    nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (adapter / "base_model.json").write_text(json.dumps({"quantization": nf4}))
    seen = []
    forward = HFLM._model_call

    def recorded(self, *args, **kwargs):
        seen.extend(module for module in self._model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_call", recorded)
    command = eval_command(world, tmp_path / "out", "--adapter", str(adapter), tasks="bft_medqa")
    assert main(command) == 0
    assert seen[0].weight.quant_type == "nf4"
    seen.clear()
    assert main([*command, "--no-load-in-4bit", "--output_dir", str(tmp_path / "plain")]) == 0
    assert not seen


def test_what_a_run_folder_says(world, tmp_path):
    run = read_run(None, world / "adapter")
    assert (run.base, run.tokenizer, run.quantization) == (str(world / "base"), str(world / "adapter"), None)
    assert run.apply_chat_template
    assert read_run(str(world / "base"), load_in_4bit=True).quantization["bnb_4bit_quant_type"] == "nf4"
    assert not read_run(None, world / "adapter", apply_chat_template=False).apply_chat_template
    base = read_run(None, world / "adapter", base_only=True)
    assert (base.adapter, base.base, base.tokenizer) == (None, run.base, run.tokenizer)
    with pytest.raises(ValueError, match="`base_only=True` needs `adapter`"):
        read_run(str(world / "base"), base_only=True)
    with pytest.raises(ValueError, match="Name a base model with `model_name_or_path`"):
        read_run(None)
    with pytest.raises(ValueError, match="is an adapter: name it with `adapter`"):
        read_run(str(world / "adapter"))
    with pytest.raises(ValueError, match=r"`model_name_or_path=.*its tokenizer"):
        read_run(str(tmp_path))
    shutil.copytree(world / "adapter", tmp_path / "cut")
    (tmp_path / "cut" / "base_model.json").write_text('{"quant')
    with pytest.raises(ValueError, match="`adapter=.*cannot be loaded"):
        read_run(None, tmp_path / "cut")


def test_every_task_file_is_tested_and_described():
    assert {path.stem for path in tasks_path().rglob("bft_*.yaml")} == {*TASKS, *LEADERBOARD}
    for family in ("medical", "leaderboard", "gene_sets"):
        text = (tasks_path() / family / "README.md").read_text()
        files = {path.stem for path in (tasks_path() / family).glob("bft_*.yaml")}
        assert "## Changelog" in text
        assert all(f"`{name}`" in text for name in files if not name.endswith("_gen"))
