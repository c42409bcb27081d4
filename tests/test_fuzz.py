"""Damaged files: a reader gives a result or an error that names the file, in time, and never a wrong row unnoticed."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import PLANTED, READERS

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
    counts = {reader: 2 if reader in SLOW else 6 for reader in READERS if reader not in MODELS}
    return counts, read_damaged(tmp_path_factory.mktemp("few"), counts)


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader not in MODELS])
def test_a_few_damaged_files(few, reader):
    counts, found = few
    assert not faults(found[reader])
    assert len(found[reader]) == counts[reader]


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        ("raises KeyError", "KeyError: 'a'"),
        ("names no file", "ValueError without the file"),
        ("forgets rows", "a cut file gave another result"),
        ("ends the process", "the process ended with -6"),
    ],
)
def test_planted_faults_are_seen(tmp_path, reader, why):
    assert reader in PLANTED
    assert why in faults(read_damaged(tmp_path, {reader: 20})[reader])


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
