"""Nothing is lost when a command is killed: what is there is whole, and the same command ends as if it had not been.

Half of the kills are at random moments, half at a random write, of which half again leave a half-written file.
"""

import json
import random
import re
import sys
from pathlib import Path

import jobs
import pytest


def kill(name: str, base: str, kills: int, seed: int) -> dict[str, object]:
    """Kills a job so often, each time followed by a run to the end; counts by what happened. Runs in the zygote."""
    folder, job = Path(base), jobs.JOBS[name]
    older = jobs.older_results(name, folder / "world", folder)
    starts = [None, older] if older else [None]
    whole = [jobs.run(name, folder / "world", jobs.new_root(name, folder, start)) for start in starts]
    assert all(run.code == 0 for run in whole), whole[0].said
    wanted = [jobs.contents(folder / f"{jobs.file_name(name)}-{number}") for number in range(len(starts))]
    before = jobs.contents(older) if older else {}
    assert all(found == wanted[0] for found in wanted), "an older run changes what comes out"
    rng = random.Random(seed)
    counts = {"kills": 0, "at a write": 0, "inside a write": 0, "left something half done": 0, "resumed equal": 0}
    places: set[str] = set()
    trial = 0
    while counts["kills"] < kills:
        start = starts[trial % len(starts)]
        reference = whole[trial % len(starts)]
        root = jobs.new_root(name, folder, start)
        for _ in range(1 + (trial % 3 == 2)):  # some are killed again when they go on
            if counts["kills"] % 2:
                how = {"at_write": rng.randrange(len(reference.writes)), "halved": rng.random() < 0.5}
            else:
                how = {"after": reference.seconds * rng.uniform(0.02, 0.98)}
            ended = jobs.run(name, folder / "world", root, **how)
            if ended.code == 0:  # it was faster
                continue
            where = f"{name}, trial {trial}, {how}, {ended.writes[-1:]}"
            assert ended.code == -9, f"{where}: {ended.said}"
            counts["kills"] += 1
            counts["at a write"] += "at_write" in how
            counts["inside a write"] += how.get("halved", False)
            counts["left something half done"] += bool(jobs.leftovers(root)) or bool(jobs.broken_checkpoints(root))
            places |= {re.sub(r"\d+", "N", path) for _, path in ended.writes[-1:]}
            check_what_is_there(jobs.contents(root), wanted[0], before, store=job.store, where=where)
        again = jobs.run(name, folder / "world", root)
        assert again.code == 0, f"{where}: {again.said}"
        found = jobs.contents(root)
        differing = sorted(path for path in found.keys() | wanted[0].keys() if found.get(path) != wanted[0].get(path))
        assert not differing, f"{where}: {differing}"
        assert not jobs.leftovers(root), f"{where}: {jobs.leftovers(root)}"
        counts["resumed equal"] += 1
        trial += 1
    return counts | {"trials": trial, "places": len(places)}


def check_what_is_there(
    found: dict[str, str], new: dict[str, str], old: dict[str, str], *, store: str, where: str
) -> None:
    """Each final file is the new one or the older one, and outside of a store they are not mixed."""
    of_new, of_old = set(), set()
    for path, content in found.items():
        if re.match(store, path):
            continue
        assert content in (new.get(path), old.get(path)), f"{where}: {path} is neither new nor old"
        if new.get(path) != old.get(path):
            (of_new if content == new.get(path) else of_old).add(path)
    assert not old or not (of_new and of_old), f"{where}: {of_new} are new, {of_old} are old"


def test_what_a_mixture_is():
    new, old = {"a": "1", "b": "1", "c": "0"}, {"a": "0", "b": "0", "c": "0"}
    for found in ({"a": "1", "c": "0"}, {"b": "0", "c": "0"}, {}):
        check_what_is_there(found, new, old, store="(?!)", where="")
    with pytest.raises(AssertionError, match="'a'} are new, {'b'} are old"):
        check_what_is_there({"a": "1", "b": "0"}, new, old, store="(?!)", where="")
    with pytest.raises(AssertionError, match="neither"):
        check_what_is_there({"a": "2"}, new, old, store="(?!)", where="")


@pytest.mark.parametrize("name", ["train", "medical"])
def test_killed_a_few_times(zygote, name):
    assert zygote.call("test_kills", "kill", name=name, base=str(zygote.base), kills=2, seed=0)["kills"] >= 2


@pytest.mark.long
@pytest.mark.parametrize("name", jobs.JOBS)
def test_killed_thirty_times(zygote, name):
    folder = folder_of(zygote, name, "killed")
    counts = zygote.call("test_kills", "kill", name=name, base=str(folder), kills=30, seed=1)
    sys.stdout.write(f"{json.dumps({'job': name} | counts)}\n")


def folder_of(zygote, name, purpose):
    """A folder of its own with the same inputs, so that numbers of runs begin at 0."""
    folder = zygote.base / f"{purpose}-{jobs.file_name(name)}"
    folder.mkdir()
    (folder / "world").symlink_to(zygote.base / "world")
    return folder
