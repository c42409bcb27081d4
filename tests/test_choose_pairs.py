"""examples/choose_pairs.py: parts without common genes, with equally many pairs of both labels."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import choose_pairs


def table(rows):
    return pd.DataFrame(rows, columns=["gene_a", "gene_b", "label"])


def test_densest_by_hand():
    """A, B and C have pairs of both labels; D has one positive pair and is removed first, then E with two."""
    pairs = table([("A", "B", 1), ("A", "C", 0), ("B", "C", 1), ("A", "D", 1), ("B", "E", 1), ("C", "E", 1)])
    pairs.loc[len(pairs)] = ["A", "B", 0]
    pairs.loc[len(pairs)] = ["B", "C", 0]
    pairs.loc[len(pairs)] = ["A", "C", 1]
    assert choose_pairs.densest_genes(pairs, 4) == ["A", "B", "C", "E"]
    assert choose_pairs.densest_genes(pairs, 3) == ["A", "B", "C"]
    with pytest.raises(ValueError, match="has 5 genes to choose from, fewer than 6"):
        choose_pairs.densest_genes(pairs, 6)


@pytest.mark.parametrize("everything", [False, True])
def test_parts_share_no_gene(tmp_path, monkeypatch, everything):
    rng = np.random.default_rng(0)
    for part, first in (("train", 0), ("test", 100)):
        drawn = first + rng.integers(0, 60, (1700, 2))
        rows = [(f"G{min(a, b)}", f"G{max(a, b)}", int(rng.random() < 0.4)) for a, b in drawn if a != b]
        table(rows).drop_duplicates(["gene_a", "gene_b"]).to_parquet(tmp_path / f"{part}_all.parquet")
    command = ["choose_pairs.py", "--train", str(tmp_path / "train_all.parquet"), "--output_dir", str(tmp_path)]
    command += ["--test", str(tmp_path / "test_all.parquet"), "--genes", "25", "15", "20", *["--all"] * everything]
    monkeypatch.setattr(sys, "argv", command)
    choose_pairs.main()
    genes = {}
    for part in ("train", "valid", "test"):
        pairs = pd.read_parquet(tmp_path / f"{part}.parquet")
        genes[part] = {*pairs["gene_a"], *pairs["gene_b"]}
        if not everything:
            assert pairs["label"].mean() == 0.5
    assert not genes["train"] & genes["valid"]
    assert not (genes["train"] | genes["valid"]) & genes["test"]
    expected = {"train": 54, "valid": 6, "test": 60} if everything else {"train": 25, "valid": 15, "test": 20}
    assert {part: len(found) for part, found in genes.items()} == expected
