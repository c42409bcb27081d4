"""`bft-trl compare` on folders that are written here as lm-eval and `bft-trl score` write them."""

import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from bft_trl.cli.main import main
from bft_trl.comparison.compare import compare
from bft_trl.comparison.published import PUBLISHED
from bft_trl.comparison.runs import differences, load_runs
from bft_trl.evaluation.scores import read_settings, write_scores

FILES = ["comparison.csv", "comparison.json", "forest.png", "forest.svg", "index.html"]


def digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def choice_documents(n):
    return [
        {
            "id": str(i),
            "question": f"Which {i}?",
            "labels": list("ABCD"),
            "options": ["w"] * 4,
            "answer": "ABCD"[i % 4],
        }
        for i in range(n)
    ]


def gene_set_documents(n):
    names = [f"regulation of process {i}" for i in range(n)]
    return [{"id": f"GO:{i}", "name": name, "genes": ["TP53"], "source": "go"} for i, name in enumerate(names)]


def write_lm_eval(
    folder,
    tasks,
    *,
    model="org__model",
    date="2026-01-02T03-04-05.6",
    prompts=lambda doc: doc,
    responses=lambda doc: "Process: x",
    limited=False,
    filters=("none",),
    **overrides,
):
    """An output folder of lm-eval 0.4.13 with the keys that it has; `tasks`: name to (documents, metric to scores).

    Under the second of several filters the scores are 1 minus those of the first.
    """
    place = folder / model
    place.mkdir(parents=True, exist_ok=True)
    scorer = {"scorer_version": "3", "encoder_fingerprint": None, "background_fingerprint": None, "encoder": "none"}
    results = {
        "results": {task: {} for task in tasks},
        "configs": {
            task: {
                "output_type": "generate_until",
                "generation_kwargs": {"max_gen_toks": 8},
                "metadata": {"version": 1.0} | (scorer if "gene_sets" in task else {}),
            }
            for task in tasks
        },
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {
            task: {"original": len(documents) + limited, "effective": len(documents)}
            for task, (documents, _) in tasks.items()
        },
        "lm_eval_version": "0.4.13",
        "chat_template_sha": "aa",
        "system_instruction_sha": None,
    } | overrides
    (place / f"results_{date}.json").write_text(json.dumps(results))
    for task, (documents, metrics) in tasks.items():
        lines = []
        for i, document in enumerate(documents):
            for k, name in enumerate(filters):
                sample = {"doc_id": i, "doc": document, "filter": name, "metrics": list(metrics)}
                sample |= {"doc_hash": digest(document), "prompt_hash": digest(prompts(document))}
                sample |= {"target": "x", "filtered_resps": [responses(document)]}
                lines.append(json.dumps(sample | {m: abs(k - float(scores[i])) for m, scores in metrics.items()}))
        (place / f"samples_{task}_{date}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path):
    """base: right on the first 10 of 40; good: on the first 20; same: as base. Names likewise."""
    documents, sets = choice_documents(40), gene_set_documents(12)
    place = np.arange(40)
    answers = {"base": place < 10, "good": place < 20, "same": place < 10}
    names = {"base": np.arange(12) / 20, "good": np.arange(12) / 20 + 0.2, "same": np.arange(12) / 20}
    return {
        name: write_lm_eval(
            tmp_path / name,
            {
                "bft_medqa": (documents, {"acc": answers[name]}),
                "bft_gene_sets_go": (sets, {"rouge1": names[name], "rougeL": names[name] / 2}),
            },
        )
        for name in answers
    }


def row_of(result, **wanted):
    (found,) = (row for row in result["rows"] if all(row[key] == value for key, value in wanted.items()))
    return found


def test_a_comparison_by_hand(runs, tmp_path):
    """good is right on 10 documents more and wrong on none: p = 2 / 2^10, and of 6 tests it is times 6 at most."""
    out = tmp_path / "out"
    command = ["compare", *(str(runs[name]) for name in ("base", "good", "same")), "--baseline", "base"]
    assert main([*command, "--output_dir", str(out), "--resamples", "999"]) == 0
    assert sorted(path.name for path in out.glob("[!.]*")) == FILES
    result = json.loads((out / "comparison.json").read_text())
    assert (result["baseline"], result["runs"]) == ("base", ["good", "same"])
    assert len(result["rows"]) == 6
    acc = row_of(result, run="good", task="bft_medqa")
    assert (acc["n"], acc["score"], acc["baseline_score"], acc["difference"]) == (40, 0.5, 0.25, 0.25)
    assert acc["p"] == pytest.approx(2 / 2**10)
    assert acc["test"] == "McNemar, exact"
    assert acc["low"] < 0.25 < acc["high"]
    assert (acc["n_seeds"], acc["seed_sd"]) == (1, None)
    # every set gains 0.2: of 2^12 ways to sign the differences two are as far from 0; more than 999, so sampled
    rouge = row_of(result, run="good", metric="rouge1")
    assert rouge["difference"] == pytest.approx(0.2)
    assert rouge["p"] <= 0.01
    assert rouge["test"] == "permutation, paired"
    for row in result["rows"]:
        if row["run"] == "same":
            assert (row["p"], row["p_holm"], row["low"], row["high"]) == (1, 1, 0, 0)
        assert row["p"] <= row["p_holm"] <= 1
    smallest = min(result["rows"], key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 6 * smallest["p"]))
    table = pd.read_csv(out / "comparison.csv", float_precision="round_trip")
    assert table["difference"].tolist() == [row["difference"] for row in result["rows"]]


def test_the_order_of_documents_does_not_matter(tmp_path):
    documents = choice_documents(20)
    right = np.arange(20) % 3 == 0
    write_lm_eval(tmp_path / "a", {"bft_medqa": (documents, {"acc": right})})
    write_lm_eval(tmp_path / "b", {"bft_medqa": (documents[::-1], {"acc": right[::-1]})})
    result = compare([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "a"), tmp_path / "o", n_resamples=99)
    assert row_of(result, run="b")["p"] == 1
    assert row_of(result, run="b")["difference"] == 0


def test_baselines_and_published_results(runs, tmp_path):
    """Chance is 1/4, and so is always 'A'. On names that all begin with 'regulation of process' and a number of their

    own, another set's name shares 3 of 4 words: ROUGE-1 is .75.
    """
    result = compare([str(runs["base"]), str(runs["good"])], "base", tmp_path / "o", n_resamples=99)
    baselines = {(row["task"], row["name"], row["metric"]): row["value"] for row in result["reference_rows"]}
    assert baselines["bft_medqa", "baseline: chance", "acc"] == 0.25
    assert baselines["bft_medqa", "baseline: most frequent answer", "acc"] == 0.25
    assert baselines["bft_gene_sets_go", "baseline: another set's name", "rouge1"] == pytest.approx(0.75)
    published = [row for row in result["reference_rows"] if row["kind"] == "published, not re-run"]
    geneagent = [row for row in published if row["name"] == "GeneAgent" and row["metric"] == "similarity"]
    assert [row["value"] for row in geneagent] == [0.705]  # of the task at hand, not of NeST and MSigDB
    assert all("10.1038/s41592-025-02748-6" in row["source"] for row in published)
    page = (tmp_path / "o" / "index.html").read_text()
    assert "published, not re-run" in page
    assert page.count("GeneAgent") >= 7
    # base is right in a quarter of the cases, as chance is; good in half
    assert "<li>bft_medqa, acc: base (0.250); baseline: chance 0.250</li>" in page


def test_published_results_are_those_of_the_paper():
    """Copied from the table of the protocol, by hand."""
    published = {(f.task, f.name[:5], f.metric): (f.value, f.spread) for f in PUBLISHED}
    assert published["bft_gene_sets_msigdb", "GPT-4", "rougeL"] == (0.239, 0.038)
    assert published["bft_gene_sets_msigdb", "GeneA", "rougeL"] == (0.310, 0.047)
    assert published["all", "GPT-4", "sets with percentile >= 98"] == (598, None)
    assert published["all", "GeneA", "sets with similarity > 0.9"] == (170, None)
    assert not any(task in ("bft_gene_sets_go", "bft_gene_sets_nest") and "rouge" in m for task, _, m in published)


def test_a_comparison_is_reproducible(runs, tmp_path):
    specs = [str(runs["base"]), str(runs["good"])]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        compare(specs, "base", tmp_path / name, seed=seed, n_resamples=199)
    read = {name: [(tmp_path / name / file).read_bytes() for file in FILES] for name in "abc"}
    assert read["a"] == read["b"] != read["c"]


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_are_averaged_per_document(tmp_path):
    """Two seeds right on 4 and on 6 of 10: mean .5, spread sqrt(.02), and the test is no longer one of yes and no."""
    documents = choice_documents(10)
    for name, right in (("base", 2), ("s0", 4), ("s1", 6)):
        write_lm_eval(tmp_path / name, {"bft_medqa": (documents, {"acc": np.arange(10) < right})})
    spec = f"bft={tmp_path / 's0'},{tmp_path / 's1'}"
    row = row_of(compare([spec], str(tmp_path / "base"), tmp_path / "o", n_resamples=99), run="bft")
    assert (row["score"], row["n_seeds"], row["test"]) == (0.5, 2, "permutation, paired")
    assert row["seed_sd"] == pytest.approx(0.02**0.5)
    # differences: two of 0, two of 1, two of 1/2, four of 0: 0.3; of 2^4 signs two are as far from 0
    assert row["difference"] == pytest.approx(0.3)
    assert "one seed" not in (tmp_path / "o" / "forest.svg").read_text()
    other = row_of(compare([str(tmp_path / "base")], spec, tmp_path / "p", n_resamples=99), run="base")
    assert (other["baseline_n_seeds"], other["baseline_seed_sd"]) == (2, pytest.approx(0.02**0.5))
    assert "2, sd 0.141" in (tmp_path / "p" / "index.html").read_text()


def test_intervals_over_seeds_and_documents(tmp_path):
    """Two seeds right on 4 and 6, two on 2 and 4 of 10; a third run has one seed.

    Differences: four of 1/2, six of 0, so v_d = (1 - .4) / 9 / 10 = 1/150. v_s = .02 / 2 of each method. In each the
    noise is 4 x .4^2 + 16 x .1^2 = .8, so v_e = .8 / 9 / 20 = 1/225. se^2 = 1/150 + 2 (1/100 - 1/225) = (2/15)^2.
    """
    documents = choice_documents(10)
    for name, right in (("s0", 4), ("s1", 6), ("b0", 2), ("b1", 4), ("one", 5)):
        write_lm_eval(tmp_path / name, {"bft_medqa": (documents, {"acc": np.arange(10) < right})})
    bft, sft = f"bft={tmp_path / 's0'},{tmp_path / 's1'}", f"sft={tmp_path / 'b0'},{tmp_path / 'b1'}"
    result = compare([bft, sft, str(tmp_path / "one")], "sft", tmp_path / "o")
    row, one = row_of(result, run="bft"), row_of(result, run="one")
    assert (row["interval_of"], one["interval_of"]) == ("seeds and documents", "documents")
    assert row["test"] == "hierarchical bootstrap over seeds and documents"
    assert one["test"] == "permutation, paired"
    assert row["difference"] == pytest.approx(0.2)
    df = (4 / 225) ** 2 / ((1 / 150) ** 2 / 9 + 2 / 100**2)
    assert row["high"] - row["low"] == pytest.approx(2 * t.ppf(0.975, df) * 2 / 15, rel=0.1)
    assert row["smallest_difference"] == pytest.approx(t.ppf(0.975, df) * 2 / 15 * 2.80158 / 1.95996, rel=0.1)
    assert (row["n_seeds"], row["baseline_n_seeds"], one["n_seeds"]) == (2, 2, 1)
    page, drawing = ((tmp_path / "o" / name).read_text() for name in ("index.html", "forest.svg"))
    assert "<td>seeds and documents</td>" in page
    assert "<td>documents</td>" in page
    assert "interval over documents (squares: seeds and documents)" in drawing
    for specs, words in (([bft], "interval over seeds and documents."), ([str(tmp_path / "one")], "over documents.")):
        compare(specs, sft, tmp_path / "p", n_resamples=99)
        assert words in (tmp_path / "p" / "forest.svg").read_text()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{base},{good}", "is not PATH, NAME=PATH or NAME=PATH,PATH"),
        ("x={base},{base}", "must name different folders"),
        ("={base}", "is not PATH, NAME=PATH or NAME=PATH,PATH"),
        ("{base}/no", "has neither scores.parquet nor"),
        ("x={base},", "is not PATH, NAME=PATH or NAME=PATH,PATH"),
        ("good={good}", "two runs have the name 'good'"),
    ],
)
def test_bad_run_names(spec, words, runs, tmp_path, capsys):
    spec = spec.format(**runs)
    command = ["compare", str(runs["good"]), spec, "--baseline", str(runs["same"])]
    assert main([*command, "--output_dir", str(tmp_path / "o")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o" / "comparison.json").exists()


def test_bad_baselines(runs, tmp_path):
    with pytest.raises(
        ValueError, match=r"`baseline='x'` is neither one of the runs \('base'\), a folder nor a recorded system"
    ):
        compare([str(runs["base"])], "x", tmp_path / "o")
    with pytest.raises(ValueError, match="nothing to compare with the baseline"):
        compare([str(runs["base"])], "base", tmp_path / "o")
    with pytest.raises(ValueError, match="`n_resamples=1`"):
        compare([str(runs["base"]), str(runs["good"])], "base", tmp_path / "o", n_resamples=1)
    assert not (tmp_path / "o").exists()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {"bft_medqa": 2.0}}, "version (2.0, baseline 1.0)"),
        ({"n-shot": {"bft_medqa": 5}}, "num_fewshot (5, baseline 0)"),
        ({"chat_template_sha": "bb"}, "chat_template (bb, baseline aa)"),
        ({"chat_template_sha": None}, "chat_template (None, baseline aa)"),
        ({"system_instruction_sha": "cc"}, "system_instruction (cc, baseline None)"),
        ({"lm_eval_version": "0.4.9"}, "lm_eval_version (0.4.9, baseline 0.4.13)"),
        ({"prompts": lambda document: "other"}, "the prompt of 4 of 4 documents"),
        (
            {"configs": {"bft_medqa": {"output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 9}}}},
            "generation_kwargs ({'max_gen_toks': 9}, baseline {'max_gen_toks': 8})",
        ),
    ],
)
def test_unequal_settings_raise(change, words, tmp_path):
    tasks = {"bft_medqa": (choice_documents(4), {"acc": np.ones(4)})}
    write_lm_eval(tmp_path / "base", tasks)
    write_lm_eval(tmp_path / "run", tasks, **change)
    with pytest.raises(ValueError, match=re.escape(f"bft_medqa: 'run' differs from 'base' in {words}")):
        compare([str(tmp_path / "run")], str(tmp_path / "base"), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_other_documents_raise(tmp_path):
    for name, n in (("base", 6), ("run", 4)):
        write_lm_eval(tmp_path / name, {"bft_medqa": (choice_documents(n), {"acc": np.ones(n)})})
    words = "in documents (4, baseline 6; 2 only in the baseline, 0 only in the run)"
    with pytest.raises(ValueError, match=re.escape(words)):
        compare([str(tmp_path / "run")], str(tmp_path / "base"), tmp_path / "o")


def test_tasks_that_only_one_has_are_left_out_and_named(runs, tmp_path, caplog):
    write_lm_eval(tmp_path / "less", {"bft_medqa": (choice_documents(40), {"acc": np.ones(40)})})
    result = compare([str(runs["base"]), str(tmp_path / "less")], "base", tmp_path / "o", n_resamples=99)
    assert {row["task"] for row in result["rows"]} == {"bft_medqa"}
    assert result["not_compared"] == {"less": ["bft_gene_sets_go"]}
    assert "'less' or the baseline has no scores: bft_gene_sets_go" in caplog.text
    write_lm_eval(tmp_path / "none", {"other": (choice_documents(4), {"acc": np.ones(4)})})
    with pytest.raises(ValueError, match="No run shares a task with the baseline 'base'"):
        compare([str(tmp_path / "none")], str(runs["base"]), tmp_path / "p")


def test_seeds_of_different_settings_raise(runs, tmp_path):
    tasks = {"bft_medqa": (choice_documents(40), {"acc": np.ones(40)})}
    tasks["bft_gene_sets_go"] = (gene_set_documents(12), {"rouge1": np.ones(12), "rougeL": np.ones(12)})
    write_lm_eval(tmp_path / "five", tasks, **{"n-shot": {"bft_medqa": 5, "bft_gene_sets_go": 0}})
    with pytest.raises(ValueError, match="`bft`: its runs are not of one method: bft_medqa"):
        compare([f"bft={runs['good']},{tmp_path / 'five'}"], str(runs["base"]), tmp_path / "o")


# --- broken folders --------------------------------------------------------------------------------------------------


def broken(folder, kind):
    (results,) = folder.rglob("results_*.json")
    samples = next(folder.rglob("samples_bft_medqa_*.jsonl"))
    if kind == "cut results":
        results.write_text(results.read_text()[:50])
    elif kind == "no samples":
        samples.unlink()
    elif kind == "cut samples":
        samples.write_text(samples.read_text()[:-30])
    elif kind == "fewer samples":
        samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:-1]))
    elif kind == "old":
        results.write_text(json.dumps({"results": {}, "config": {}}))
    elif kind == "two models":
        write_lm_eval(folder, {"other": (choice_documents(4), {"acc": np.zeros(4)})}, model="other")
    elif kind == "empty":
        results.unlink()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut results", r"results_.*: not a complete result of lm-eval"),
        ("no samples", "Run lm-eval with --log_samples"),
        ("cut samples", r"results_.*: not a complete result of lm-eval"),
        ("fewer samples", "has not all documents"),
        ("old", r"not a complete result of lm-eval .*KeyError"),
        ("two models", "has results of several models"),
        ("empty", "has neither scores.parquet nor lm-eval's results_"),
    ],
)
def test_broken_folders_raise_clear_errors(kind, words, runs, tmp_path, capsys):
    broken(runs["good"], kind)
    command = ["compare", str(runs["good"]), "--baseline", str(runs["base"]), "--output_dir", str(tmp_path / "o")]
    assert main(command) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "o" / "comparison.json").exists()


def test_line_ends_inside_texts_do_not_split_samples(tmp_path):
    """lm-eval writes them as they are."""
    write_lm_eval(tmp_path / "a", {"other": ([{"question": "a\u2028b\x85c"}], {"acc": [1]})})
    file = next(tmp_path.rglob("samples_other_*.jsonl"))
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False) + "\n")
    assert load_runs(tmp_path / "a")[0].unit_scores("other", "acc").tolist() == [1]


def test_one_document_has_no_significant_difference(tmp_path):
    for name, score in (("a", 0.2), ("b", 0.9)):
        write_lm_eval(tmp_path / name, {"other": (choice_documents(1), {"f1": [score]})})
    result = compare([str(tmp_path / "a")], str(tmp_path / "b"), tmp_path / "o", n_resamples=99)
    assert (row_of(result, run="a")["p"], row_of(result, run="a")["smallest_difference"]) == (1, None)


def test_a_task_that_was_run_again_counts_as_run_last(runs):
    tasks = {"bft_medqa": (choice_documents(40), {"acc": np.zeros(40)})}
    write_lm_eval(runs["good"], tasks, date="2026-02-02T03-04-05.6")
    run = load_runs(runs["good"])[0]
    assert run.unit_scores("bft_medqa", "acc").sum() == 0
    assert run.unit_scores("bft_gene_sets_go", "rougeL").sum() > 0


def test_equal_documents_are_told_apart(tmp_path):
    documents = [{"question": "same"}] * 3
    write_lm_eval(tmp_path / "a", {"other": (documents, {"acc": [1, 0, 1]})})
    run = load_runs(tmp_path / "a")[0]
    assert run.unit_scores("other", "acc").to_dict() == {"0": 1, "1": 0, "2": 1}
    assert differences(run, run) == []


def test_every_filter_is_compared(tmp_path):
    """The second filter has 1 minus the scores of the first: what one gains the other loses."""
    documents = choice_documents(20)
    for name, right in (("base", 5), ("run", 15)):
        tasks = {"gsm8k": (documents, {"exact_match": np.arange(20) < right})}
        write_lm_eval(tmp_path / name, tasks, filters=("strict-match", "flexible-extract"))
    result = compare([str(tmp_path / "run")], str(tmp_path / "base"), tmp_path / "o", n_resamples=99)
    found = {row["metric"]: row["difference"] for row in result["rows"]}
    assert found == {"exact_match[strict-match]": 0.5, "exact_match[flexible-extract]": -0.5}


def test_rouge_of_other_tasks_is_compared(tmp_path):
    """As lm-eval's meqsum: rougeL on documents without a name, NaN for an empty answer, tuples for corpus metrics."""
    documents = [{"id": str(i), "CHQ": f"Long {i}?", "Summary": "Short?"} for i in range(6)]
    for name, gain in (("base", 0.0), ("run", 0.25)):
        scores = {"rougeL": np.full(6, 0.5) + gain, "bleurt": [0.1] * 5 + [float("nan")]}
        write_lm_eval(tmp_path / name, {"meqsum": (documents, scores)})
    result = compare([str(tmp_path / "run")], str(tmp_path / "base"), tmp_path / "o", n_resamples=99)
    (row,) = result["rows"]
    assert (row["metric"], row["difference"]) == ("rougeL", 0.25)
    assert result["not_compared"] == {"run": ["meqsum, bleurt (1 of 6 without a number)"]}
    assert result["reference_rows"] == []


# --- recorded answers ------------------------------------------------------------------------------------------------


def scored(tmp_path, name, answers, *extra):
    documents = gene_set_documents(12)
    references, predictions = tmp_path / "references.jsonl", tmp_path / f"{name}.jsonl"
    references.write_text("\n".join(json.dumps(document) for document in documents))
    rows = [{"id": d["id"], "predicted_name": answers(d["name"]), "model": name} for d in documents]
    predictions.write_text("\n".join(json.dumps(row) for row in rows))
    command = ["score", "--predictions", str(predictions), "--references", str(references)]
    assert main([*command, "--output_dir", str(tmp_path / f"scores-{name}"), *extra]) == 0
    return tmp_path / f"scores-{name}"


def test_recorded_answers_compare_with_a_task(runs, tmp_path):
    """The task of a model is found by its documents; half of each name right is better than .275 on average."""
    recorded = scored(tmp_path, "gpt", lambda name: name, "--baselines")
    lm_eval = [str(runs["base"]), str(recorded)]
    result = compare(lm_eval, "base", tmp_path / "o", n_resamples=99)
    row = row_of(result, run="gpt", metric="rouge1")
    assert (row["task"], row["score"], row["baseline_score"]) == ("bft_gene_sets_go", 1, pytest.approx(5.5 / 20))
    assert result["not_compared"]["gpt"] == ["bft_gene_sets_go, answer_rate", "bft_gene_sets_go, rouge2", "bft_medqa"]
    names = [
        row["name"] for row in result["reference_rows"] if row["kind"] == "baseline" and row["metric"] == "rouge1"
    ]
    assert len(names) == len(set(names)) == 4
    other = compare([str(recorded), str(runs["base"])], str(recorded), tmp_path / "p", n_resamples=99)
    assert row_of(other, run="base", metric="rouge1")["difference"] == pytest.approx(5.5 / 20 - 1)
    two = compare(
        [str(recorded), str(scored(tmp_path, "poor", lambda name: "x"))], str(recorded), tmp_path / "q", n_resamples=99
    )
    assert row_of(two, run="poor", metric="rougeL")["difference"] == -1
    assert {row["task"] for row in two["rows"]} == {"gene_sets"}


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("encoder_fingerprint", "0123", "encoder_fingerprint (0123, baseline None)"),
        ("scorer_version", "2", "scorer_version (2, baseline 3)"),
    ],
)
def test_another_scorer_raises(setting, value, words, tmp_path):
    a, b = (scored(tmp_path, name, lambda name: name) for name in ("a", "b"))
    settings = read_settings(b)
    settings["tasks"]["gene_sets"][setting] = value
    (b / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=re.escape(words)):
        compare([str(b)], str(a), tmp_path / "o")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("scores.parquet", b"PAR1", "its scores.parquet or settings.json cannot be read"),
        ("settings.json", b"{", "its scores.parquet or settings.json cannot be read"),
    ],
)
def test_broken_scores_raise_clear_errors(file, content, words, tmp_path):
    a, b = (scored(tmp_path, name, lambda name: name) for name in ("a", "b"))
    (b / file).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        compare([str(b)], str(a), tmp_path / "o")


# --- the results format ----------------------------------------------------------------------------------------------


def test_any_folder_in_the_results_format_is_compared(tmp_path):
    """Two models and a control with two seeds; of an error the lower one is better.

    Per unit the run's means over the seeds are 1, 2, 3, the baseline's 2, 4, 6; the control is between them.
    """
    values = {"ours": ([0, 2, 3], [2, 2, 3]), "theirs": ([2, 4, 6], [2, 4, 6]), "control": ([2, 3, 4], [2, 3, 4])}
    rows = [
        {"task": "t", "metric": "error", "unit": unit, "model": model, "seed": seed, "score": score}
        for model, seeds in values.items()
        for seed, scores in enumerate(seeds)
        for unit, score in zip("abc", scores, strict=True)
    ]
    task = {"version": 1, "higher_is_better": {"error": False}}
    settings = {"tasks": {"t": task}, "models": {"ours": {}, "theirs": {}, "control": {"kind": "control"}}}
    write_scores(tmp_path / "r", pd.DataFrame(rows), settings)
    with pytest.raises(ValueError, match="has several models: add it to the runs and name one of 'ours', 'theirs'"):
        compare([str(tmp_path / "r")], str(tmp_path / "r"), tmp_path / "o")
    result = compare([str(tmp_path / "r")], "theirs", tmp_path / "o", n_resamples=99)
    (row,) = result["rows"]
    assert (row["run"], row["n"], row["score"], row["difference"]) == ("ours", 3, 2, -2)
    assert (row["n_seeds"], row["seed_sd"]) == (2, pytest.approx(abs(5 / 3 - 7 / 3) / 2**0.5))
    (control,) = result["reference_rows"]
    assert (control["name"], control["value"]) == ("control", 3)
    assert "<li>t, error: theirs (4); control 3</li>" in (tmp_path / "o" / "index.html").read_text()
    table = pd.read_parquet(tmp_path / "r" / "scores.parquet")
    assert table.dtypes.astype(str).to_dict() == {
        **dict.fromkeys(["task", "metric", "unit", "model"], "object"),
        "seed": "int32",
        "score": "float64",
    }
    pd.concat([table, table]).to_parquet(tmp_path / "r" / "scores.parquet")
    with pytest.raises(ValueError, match="repeated rows"):
        load_runs(tmp_path / "r")
