"""Damaged files: a reader gives a result or an error that names the file, in time, and never a wrong row unnoticed."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuzzing import PLANTED, READERS
from scipy.sparse import csr_matrix

from bft_trl.biology.cells import _READ_ALL as READ_ALL
from bft_trl.biology.cells import read_anndata
from bft_trl.data.tables import ids_as_text

# Half a second and more for one reading: a process of its own, or a model that is loaded.
SLOW = {"cells sparse", "cells dense"}
MODELS = {"run folder", "whole run", "encoder"}


def read_damaged(folder: Path, counts: dict[str, int], *, first: int = 0) -> dict[str, list[dict]]:
    """What came of each reading, by reader; the last one of a process that ended is a fault."""
    spans = [f"{reader}={first}:{count}" for reader, count in counts.items()]
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("fuzzing.py"), folder, *spans]
    process = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = {reader: [] for reader in counts}
    for line, after in zip(lines, [*lines[1:], {}], strict=True):
        if "outcome" in line:
            found[line["reader"]].append(line)
        elif "outcome" not in after:
            why = f"the process ended with {process.returncode}: {process.stderr[-2000:]}"
            found[line["reader"]].append(line | {"outcome": "fault", "why": why})
    assert lines, process.stderr
    return found


def faults(outcomes: list[dict]) -> str:
    """Reader, seed and damage of each fault: `python tests/fuzzing.py FOLDER READER=SEED:1` does it again."""
    return "\n".join(json.dumps(outcome) for outcome in outcomes if outcome["outcome"] == "fault")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The first seeds of each reader, in one process."""
    counts = {reader: 2 if reader in SLOW else 5 for reader in READERS if reader not in MODELS}
    return counts, read_damaged(tmp_path_factory.mktemp("few"), counts)


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader not in MODELS])
def test_a_few_damaged_files(few, reader):
    counts, found = few
    assert not faults(found[reader])
    assert len(found[reader]) == counts[reader]


def test_planted_faults_are_seen(tmp_path):
    planted = {
        "raises KeyError": "KeyError: 'a'",
        "names no file": "ValueError without the file",
        "forgets rows": "a cut file gave another result",
        "ends the process": "the process ended with -6",
    }
    assert planted.keys() < PLANTED.keys()
    found = read_damaged(tmp_path, dict.fromkeys(planted, 20))
    for reader, why in planted.items():
        assert why in faults(found[reader])


@pytest.mark.long
def test_a_reader_without_end_is_seen(tmp_path):
    assert "TooLongError: more than 20 s" in faults(read_damaged(tmp_path, {"reads for ever": 1})["reads for ever"])


@pytest.mark.long
@pytest.mark.parametrize("reader", READERS)
def test_many_damaged_files(tmp_path, reader, capsys):
    """12,000 and more in all, others each time."""
    count = 120 if reader in SLOW | MODELS else 280
    found = read_damaged(tmp_path, {reader: count}, first=random.SystemRandom().randrange(10**9))[reader]
    with capsys.disabled():
        sys.stdout.write(f"\n{reader}: {dict(Counter(outcome['outcome'] for outcome in found))} ")
    assert not faults(found)
    assert len(found) == count
    if reader != "kept vectors":  # what is damaged is made anew
        assert sum(outcome["outcome"] == "error" for outcome in found) > count / 20


# --- what was found by it, one by one --------------------------------------------------------------------------------


def test_ids_that_are_lists_are_refused():
    with pytest.raises(ValueError, match=r"t\.json: 'gene' must be texts or numbers; found '\[1\]'"):
        ids_as_text(pd.Series(["a", [1]], name="gene"), where="t.json")


def test_cells_whose_indices_lie_outside_are_refused(tmp_path):
    """scipy does not look at them, and its products read beyond the matrix."""
    anndata, h5py = pytest.importorskip("anndata"), pytest.importorskip("h5py")
    path = tmp_path / "cells.h5ad"
    anndata.AnnData(csr_matrix(np.eye(4, dtype=np.float32))).write_h5ad(path)
    assert read_anndata(path).shape == (4, 4)
    with h5py.File(path, "r+") as file:
        file["X/indices"][2] = 10**6
    with pytest.raises(ValueError, match=r"cells\.h5ad: cannot be read as h5ad"):
        read_anndata(path)


def test_a_file_that_ends_the_reading_process_is_an_error(tmp_path, monkeypatch):
    """As HDF5 does with some damaged files: by a signal."""
    path = tmp_path / "cells.h5ad"
    path.write_bytes(b"x")
    endless = READ_ALL.split("def read")[0].replace("int(sys.argv[2])", "1") + "while True: pass"
    monkeypatch.setattr("bft_trl.biology.cells._READ_ALL", "import os; os.abort()")
    with pytest.raises(ValueError, match=r"cells\.h5ad: .* HDF5 did not survive"):
        read_anndata(path)
    monkeypatch.setattr("bft_trl.biology.cells._READ_ALL", endless)
    with pytest.raises(ValueError, match=r"cells\.h5ad: .* HDF5 did not survive"):
        read_anndata(path)
