"""Both tasks from the command line to the page, and bad input that leaves nothing behind."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bft_trl.cli.main import main

VECTORS = ("base", "bft")
KINDS = dict.fromkeys(VECTORS, "model") | dict.fromkeys(("random", "shuffled", "degree", "go"), "baseline")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(60)]
    for name in VECTORS:
        vectors = rng.standard_normal((60, 3)).astype(np.float32)
        pd.DataFrame({"gene": genes, "vector": list(vectors)}).to_parquet(folder / f"{name}.parquet")
    for split, (low, high) in {"train": (0, 30), "valid": (30, 45), "test": (45, 60)}.items():
        drawn = rng.integers(low, high, (120, 2))
        rows = [(genes[a], genes[b], int(label)) for (a, b), label in zip(drawn, rng.integers(0, 2, 120), strict=True)]
        pairs = pd.DataFrame(rows, columns=["gene_a", "gene_b", "label"]).drop_duplicates(["gene_a", "gene_b"])
        pairs.to_csv(folder / f"{split}.csv", index=False)
    sets = pd.DataFrame({"id": ["S1", "S2"], "name": ["one", "two"], "genes": [genes[:20], genes[40:55]]})
    sets.to_parquet(folder / "sets.parquet")
    names = np.repeat(["NT", *genes[:6]], 30)
    expression = np.log1p(rng.poisson(4, (len(names), 12)))
    expression[names == "G1", 3] += 2  # significant
    cells = anndata.AnnData(expression, obs=pd.DataFrame({"guide": names}), var=pd.DataFrame(index=genes[:12]))
    cells.write_h5ad(folder / "cells.h5ad")
    return folder


def run(command, folder, output_dir, *more):
    vectors = [str(folder / f"{name}.parquet") for name in VECTORS]
    return main([command, "--output_dir", str(output_dir), "--vectors", *vectors, *more])


def interactions(folder, output_dir, *more):
    splits = [part for name in ("train", "valid", "test") for part in (f"--{name}", str(folder / f"{name}.csv"))]
    return run("interactions", folder, output_dir, *splits, "--gene_sets", str(folder / "sets.parquet"), *more)


def perturbation(folder, output_dir, *more):
    data = ["--data", str(folder / "cells.h5ad"), "--perturbation_column", "guide", "--control", "NT"]
    return run("perturbation", folder, output_dir, *data, *more)


def results(folder):
    """The metrics, after a check that they are the means of the scores, and the settings."""
    scores = pd.read_parquet(folder / "scores.parquet")
    assert not scores.drop(columns="score").duplicated().any()
    metrics = {(row["model"], row["metric"]): row for row in json.loads((folder / "metrics.json").read_text())}
    means = scores.groupby(["model", "metric"])["score"].mean()
    for key, mean in means.items():
        assert metrics[key]["value"] == pytest.approx(mean)
        if metrics[key]["low"] is not None:
            assert metrics[key]["low"] <= mean <= metrics[key]["high"]
    assert set(metrics) == set(means.index)
    return metrics, json.loads((folder / "settings.json").read_text())


def test_interactions_from_the_command_line(world, tmp_path):
    assert interactions(world, tmp_path, "--resamples", "199", "--baseline", "base") == 0
    metrics, settings = results(tmp_path)
    models = settings["models"]
    assert {name: model["kind"] for name, model in models.items()} == KINDS
    assert models["base"]["coverage"] == 1.0
    page = (tmp_path / "index.html").read_text()
    assert "Comparison with base" in page
    assert "<svg" in page
    tests = pd.read_parquet(tmp_path / "tests.parquet")
    assert len(tests) == 2 * (1 + 2 * 4)  # two metrics; one pair of vector sets, and each against four controls
    row = tests[(tests["metric"] == "auroc") & (tests["name"] == "base") & (tests["against"] == "go")].iloc[0]
    difference = metrics["base", "auroc"]["value"] - metrics["go", "auroc"]["value"]
    assert row["difference"] == pytest.approx(difference)
    assert perturbation(world, tmp_path) == 2  # a folder has the results of one task


def test_perturbation_from_the_command_line(world, tmp_path):
    assert perturbation(world, tmp_path) == 0
    metrics, settings = results(tmp_path)
    controls = {name for name, model in settings["models"].items() if model["kind"] == "baseline"}
    assert controls == {"no_change", "training_mean", "random", "shuffled"}
    keys = {"pearson_delta", "pearson_delta_top20", "mse", "mae", "sign_accuracy", "discrimination"}
    assert {metric for model, metric in metrics if model == "bft"} == keys
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert (table["metric"] == "mse").sum() == 6 * (2 + 2 + 5 + 5)  # perturbations; sets, controls, draws
    mse = table[table["metric"] == "mse"].groupby(["model", "unit"])["score"].mean()
    tests = pd.read_parquet(tmp_path / "tests.parquet")
    row = tests[(tests["metric"] == "mse") & (tests["name"] == "bft") & (tests["against"] == "training_mean")].iloc[0]
    differences = (mse["bft"] - mse["training_mean"]).to_numpy()
    assert row["difference"] == pytest.approx(differences.mean())
    # scipy's t-test, with the variance of the mean times 1 + 6/5: a predictor is fitted to five perturbations.
    plain = stats.ttest_1samp(differences, 0)
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(plain.statistic) / np.sqrt(1 + 6 / 5), 5))
    width = (row["high"] - row["low"]) / 2
    assert width == pytest.approx((plain.confidence_interval().high - differences.mean()) * np.sqrt(1 + 6 / 5))
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    assert len(predictions) == 6 * 12


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        (interactions, ["--baseline", "sft"], "`baseline='sft'` is none of ['base', 'bft', 'random'"),
        (interactions, ["--resamples", "9"], "`n_resamples=9` must be at least 99"),
        (perturbation, ["--raw_counts"], "X contains numbers that are not counts"),
    ],
)
def test_bad_options_are_errors_before_anything_is_computed(world, tmp_path, capsys, command, more, message):
    assert command(world, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("[!.]*"))  # a lock file may remain
