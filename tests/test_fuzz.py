"""Damaged files: a reader gives a result or an error that names the file, in time, and never a wrong row unnoticed."""

import csv
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from fuzzing import PLANTED, READERS

from bft_trl.data.tables import ids_as_text, read_table, write_parquet

# Half a second and more for one reading: a model is loaded.
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
    counts = dict.fromkeys((reader for reader in READERS if reader not in MODELS), 5)
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
    count = 120 if reader in MODELS else 280
    found = read_damaged(tmp_path, {reader: count}, first=random.SystemRandom().randrange(10**9))[reader]
    with capsys.disabled():
        sys.stdout.write(f"\n{reader}: {dict(Counter(outcome['outcome'] for outcome in found))} ")
    assert not faults(found)
    assert len(found) == count
    if reader != "kept vectors":  # what is damaged is made anew
        assert sum(outcome["outcome"] == "error" for outcome in found) > count / 20


# --- what was found by it, one by one --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,name,genes\n1,a,A\n2,b\n", r"t\.csv: cannot be read as csv: line 3 has 2 columns, the header 3"),
        # pandas would take the first column for an index
        ("id,name,genes\n1,a,A,x\n2,b,B,x\n", r"t\.csv: cannot be read as csv: line 2 has 4 columns, the header 3"),
        # pandas would read "A" where "A\0B" stands
        ("id,name,genes\n1,a,A\0B\n", r"t\.csv: cannot be read as csv: line 2 holds a NUL byte"),
    ],
)
def test_rows_that_pandas_would_mend_are_refused(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(path, ["id"])


def test_long_texts_and_empty_cells_are_read(tmp_path):
    """The csv module has a limit of 131,072 characters, which is not changed for others."""
    path = tmp_path / "t.csv"
    path.write_text(f'id,name\n1,"{"x" * 200_000}"\n\n2,\n')
    limit = csv.field_size_limit()
    assert read_table(path, ["id"])["name"].isna().tolist() == [False, True]
    assert csv.field_size_limit() == limit


def test_a_changed_byte_of_our_parquet_files_is_noticed(tmp_path):
    """Each byte before the footer; those of a page's header that mean nothing may change."""
    path = tmp_path / "t.parquet"
    table = pd.DataFrame({"id": [f"GO:{n}" for n in range(50)]})
    write_parquet(path, table)
    content = path.read_bytes()
    places = range(4, len(content) - int.from_bytes(content[-8:-4], "little") - 8)
    noticed = 0
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert read_table(path, ["id"]).equals(table)
        except ValueError as error:
            assert str(error).startswith(f"{path}: cannot be read as parquet")  # noqa: PT017
            noticed += 1
    assert noticed > 0.8 * len(places)


def test_ids_that_are_lists_are_refused():
    with pytest.raises(ValueError, match=r"t\.json: 'gene' must be texts or numbers; found '\[1\]'"):
        ids_as_text(pd.Series(["a", [1]], name="gene"), where="t.json")
