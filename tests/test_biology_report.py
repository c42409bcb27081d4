"""Both downstream commands from the command line to the page, and bad input that leaves nothing behind."""

import hashlib
import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_pages import Structure, check_structure

from bft_trl.cli.main import main

HOSTILE = "<script>alert(1)</script>"
CONTROLS = {"random", "shuffled", "identity", "degree", "symbol", "go"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(60)]
    for name in ("base", "bft"):
        vectors = rng.standard_normal((60, 3)).astype(np.float32)
        pd.DataFrame({"gene": genes, "vector": list(vectors)}).to_parquet(folder / f"{name}.parquet")
    for part, (low, high) in {"train": (0, 30), "valid": (30, 45), "test": (45, 60)}.items():
        drawn = rng.integers(low, high, (120, 2))
        rows = [(genes[a], genes[b], int(label)) for (a, b), label in zip(drawn, rng.integers(0, 2, 120), strict=True)]
        pairs = pd.DataFrame(rows, columns=["gene_a", "gene_b", "label"]).drop_duplicates(["gene_a", "gene_b"])
        pairs.to_csv(folder / f"{part}.csv", index=False)
    sets = pd.DataFrame({"id": ["S1", "S2"], "name": [HOSTILE, "$two"], "genes": [genes[:20], genes[40:55]]})
    sets.to_parquet(folder / "sets.parquet")
    names = np.repeat(["NT", *genes[:6]], 30)
    expression = np.log1p(rng.poisson(4, (len(names), 12)))
    cells = anndata.AnnData(expression, obs=pd.DataFrame({"guide": names}), var=pd.DataFrame(index=genes[:12]))
    cells.obs_names = [f"c{i}" for i in range(len(names))]
    cells.write_h5ad(folder / "cells.h5ad")
    return folder


def interactions(folder, out, *more):
    tables = [part for name in ("train", "valid", "test") for part in (f"--{name}", str(folder / f"{name}.csv"))]
    vectors = ["--vectors", str(folder / "base.parquet"), str(folder / "bft.parquet")]
    return main(["interactions", *tables, *vectors, "--out", str(out), "--go", str(folder / "sets.parquet"), *more])


def perturbation(folder, out, *more, data="cells.h5ad"):
    vectors = ["--vectors", str(folder / "base.parquet"), str(folder / "bft.parquet")]
    columns = ["--perturbation-column", "guide", "--control", "NT"] if data.endswith("h5ad") else []
    sets = ["--go", str(folder / "sets.parquet")]
    return main(["perturbation", "--data", str(folder / data), *columns, *vectors, *sets, "--out", str(out), *more])


def check_page(out):
    """One file, without requests, in which every text from data is escaped; plots that are pictures."""
    page = (out / "index.html").read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert all(link.startswith(("#", "data:")) for link in links), links
    for plot in [*out.glob("*.png")]:
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert plot.with_suffix(".svg").read_text().rstrip().endswith("</svg>")
    check_structure(Structure(page))
    assert not list(out.glob(".*"))


def test_interactions_from_the_command_line(world, tmp_path, caplog):
    assert interactions(world, tmp_path, "--resamples", "199", "--baseline", "base") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["vectors"]) == {"base", "bft"}
    assert set(results["controls"]) == CONTROLS
    for figures in [*results["vectors"].values(), *results["controls"].values()]:
        for metric in ("auroc", "average_precision"):
            assert 0 <= figures[metric]["low"] <= figures[metric]["value"] <= figures[metric]["high"] <= 1
        assert 0 <= figures["brier"] <= 1
    assert results["vectors"]["base"]["coverage"] == 1.0
    assert {path.name for path in tmp_path.glob("*.png")} == {"forest.png", "roc.png", "calibration.png", "map.png"}
    check_page(tmp_path)
    inputs = results["data"]["inputs"]
    assert inputs["train"] == {
        "file": "train.csv",
        "sha256": hashlib.sha256((world / "train.csv").read_bytes()).hexdigest()[:16],
    }
    assert set(inputs["vectors"]) == {"base", "bft"}
    tests = pd.read_parquet(tmp_path / "tests.parquet")
    assert len(tests) == 2 * (1 + 2 * 6)  # two metrics; one pair of vector sets, and each against six controls
    # A test is of the figures that stand in the results.
    row = tests[(tests["metric"] == "auroc") & (tests["name"] == "base") & (tests["against"] == "go")].iloc[0]
    values = [results["vectors"]["base"]["auroc"]["value"], results["controls"]["go"]["auroc"]["value"]]
    assert row["difference"] == pytest.approx(values[0] - values[1])
    assert len(pd.read_parquet(tmp_path / "pairs.parquet")) == results["data"]["compared_on"]["test"]
    # Random labels: nothing is to be found.
    assert "differ" in (tmp_path / "comparison.md").read_text()
    assert "Comparison with base" in (tmp_path / "comparison.md").read_text()


def test_perturbation_from_the_command_line(world, tmp_path):
    assert perturbation(world, tmp_path) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["controls"]) == {"no_change", "training_mean", "random", "shuffled"}
    keys = {"pearson_delta", "pearson_delta_top20", "mse", "mae", "discrimination"}
    for figures in [*results["vectors"].values(), *results["controls"].values()]:
        assert keys <= set(figures)
        assert {f"{key}_with_target" for key in keys} <= set(figures)
    check_page(tmp_path)
    # Means over perturbations of what stands in the table, the target gene left out, and the test beside scipy's.
    table = pd.read_parquet(tmp_path / "perturbations.parquet")
    assert len(table) == 6 * 2 * (2 + 2 + 5 + 5)  # perturbations, target left out and kept, sets, controls, draws
    table = table[table["target_gene"] == "left out"].groupby(["name", "perturbation"])["mse"].mean()
    assert results["vectors"]["bft"]["mse"]["value"] == pytest.approx(table["bft"].mean())
    assert results["controls"]["random"]["mse"]["value"] == pytest.approx(table["random"].mean())
    tests = pd.read_parquet(tmp_path / "tests.parquet")
    row = tests[(tests["metric"] == "mse") & (tests["name"] == "bft") & (tests["against"] == "training_mean")].iloc[0]
    differences = (table["bft"] - table["training_mean"]).to_numpy()
    assert row["difference"] == pytest.approx(differences.mean())
    # The t-test of scipy, with the variance of the mean times 1 + 6/5: five perturbations are what a fit has seen.
    plain = stats.ttest_1samp(differences, 0)
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(plain.statistic) / np.sqrt(1 + 6 / 5), 5))
    width = (row["high"] - row["low"]) / 2
    assert width == pytest.approx((plain.confidence_interval().high - differences.mean()) * np.sqrt(1 + 6 / 5))
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    assert len(predictions) == 6 * 12
    assert {"observed", "base", "bft", "training_mean"} <= set(predictions.columns)


def test_stopped_by_hand(monkeypatch, capsys):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("bft_trl.cli.biology._cell_vectors", stopped)
    assert main(["cell-vectors", "--data", "x", "--vectors", "y", "--out", "z"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_a_folder_has_the_results_of_one_task(world, tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"task": "interactions"}')
    assert perturbation(world, tmp_path) == 2
    assert "holds the results of 'interactions'; name another folder for 'perturbation'" in capsys.readouterr().err


def test_perturbation_from_a_table(world, tmp_path):
    rng = np.random.default_rng(0)
    rows = [(f"G{i}", f"G{j}", rng.standard_normal(), rng.random() / 5) for i in range(5) for j in range(8)]
    pd.DataFrame(rows, columns=["perturbation", "gene", "delta", "fdr"]).to_csv(tmp_path / "delta.csv", index=False)
    assert perturbation(world, tmp_path / "out", data=str(tmp_path / "delta.csv")) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "sign_accuracy" in results["vectors"]["base"]


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        (interactions, ["--baseline", "sft"], "`baseline='sft'` is none of ['base', 'bft', 'random'"),
        (interactions, ["--colour-by", "S9"], "`colour_by='S9'` is neither the id nor the name"),
        (interactions, ["--resamples", "9"], "`n_resamples=9` must be 99 or more"),
        (interactions, ["--seed", "-1"], "`seed=-1` must be at least 0"),
        (perturbation, ["--baseline", "sft"], "`baseline='sft'` is none of"),
        (perturbation, ["--control", "none"], "`control='none'`: 0 control cells"),
        (perturbation, ["--folds", "1"], "`folds=1` must be at least 2"),
        (perturbation, ["--counts"], "X holds numbers that are no counts"),
        (perturbation, ["--colour-by", "S9"], "`colour_by='S9'` is neither the id nor the name"),
    ],
)
def test_bad_options_are_named_before_anything_is_done(world, tmp_path, capsys, command, more, message):
    assert command(world, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
