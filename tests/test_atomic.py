"""One run at a time in a folder, and what killed runs left of temporary files goes."""

import logging
import os
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset

from bft_trl import BFTTrainer
from bft_trl import io as atomic
from bft_trl.cli.main import main
from bft_trl.io import lock, atomic_file, replacing_all, atomic_folder, write_files


@contextmanager
def held_by_another(out):
    """Another process that writes to `out`; killed, not ended, at the end of the block."""
    code = (
        "import sys, pathlib; from bft_trl.io import lock\n"
        "with lock(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "\n"
    try:
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def gmt(tmp_path):
    file = tmp_path / "sets.gmt"
    file.write_text("\n".join(f"T {i}\td\t" + "\t".join(f"G{i}{x}" for x in "ABC") for i in range(9)))
    return file


def test_a_second_command_is_refused_while_the_first_writes(gmt, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["data", "gene-sets", "--gmt", str(gmt), "--names-only", "--eval-sets", "2", "--out", str(out)]
    with held_by_another(out):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"`out={str(out)!r}`: another process is writing there. Wait for its end, or choose another" in said
        assert not list(out.iterdir())
    assert main(command) == 0  # the kernel gave the lock back
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "eval.parquet", "train.parquet"]


def test_files_of_one_folder_are_locked_one_by_one(tmp_path, capsys):
    (tmp_path / "genes.txt").write_text("TP53\n")
    command = ["profiles", "--genes", str(tmp_path / "genes.txt"), "--symbols", "--out"]
    with held_by_another(tmp_path / "o" / "a.parquet"):
        assert main([*command, str(tmp_path / "o" / "a.parquet")]) == 2
        assert "a.parquet'`: another process is writing there" in capsys.readouterr().err
        assert main([*command, str(tmp_path / "o" / "b.parquet")]) == 0
    assert main([*command, str(tmp_path / "o" / "a.parquet")]) == 0
    left = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert left == ["a.json", "a.parquet", "b.json", "b.parquet"]


def test_training_holds_its_folder_and_may_train_twice(tmp_path):
    run = BFTTrainer(
        build_model(),
        args=build_config(tmp_path / "run", max_steps=1),
        train_dataset=Dataset.from_list(sample_rows(8)),
        processing_class=build_tokenizer(),
    )
    with (
        held_by_another(tmp_path / "run"),
        pytest.raises(ValueError, match=r"`output_dir=.*another process is writing"),
    ):
        run.train()
    with lock(tmp_path / "run"):
        run.train()
        run.train()
    with held_by_another(tmp_path / "run"):  # it has given it back
        pass


@pytest.mark.parametrize("name", ["a/b", "a/b.parquet"])
def test_no_empty_folder_stays(name, tmp_path):
    (tmp_path / "before").mkdir()
    with suppress(KeyError), lock(tmp_path / "new" / name):
        assert (tmp_path / "new" / "a").is_dir()
        raise KeyError
    with lock(tmp_path / "before"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["before"]
    with lock(tmp_path / "new" / name):
        (tmp_path / "new" / "something").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["before", "new", "something"]


def test_a_refused_command_leaves_no_folder(tmp_path, capsys):
    command = ["compare", str(tmp_path / "a"), "--baseline", "a", "--out", str(tmp_path / "x" / "y")]
    assert main(command) == 2
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refused(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(atomic.fcntl, "flock", refused)
    with caplog.at_level(logging.WARNING), lock(tmp_path / "out"):
        assert "out cannot be locked" in caplog.text
    monkeypatch.setattr(atomic, "fcntl", None)  # Windows
    with lock(tmp_path / "out"):
        pass


def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path):
    """The number of a process that has ended stands for a killed one; this one is alive."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = atomic._host()
    dead = tmp_path / f".a.{host}-{ended.pid}.tmp.json"
    others = [
        tmp_path / f".a.{host}-{os.getppid()}.tmp.json",  # alive
        tmp_path / f".a.{host}-{ended.pid}.tmp.csv",  # of another file
        tmp_path / f".ab.{host}-{ended.pid}.tmp.json",
        tmp_path / f".a.{'0' * 8}-{ended.pid}.tmp.json",  # of another machine
    ]
    for path in (dead, *others):
        path.touch()
    with atomic_file(tmp_path / "a.json") as temporary:
        temporary.write_text("{}")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", *others])


def test_a_set_is_old_or_new_and_nothing_is_replaced_by_a_failure(tmp_path):
    old = {tmp_path / name: f"old {name}".encode() for name in "abc"}
    write_files(old)
    with suppress(KeyError), replacing_all(*old) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        raise KeyError
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old
    (tmp_path / "d").mkdir()
    with pytest.raises(IsADirectoryError, match="d is a folder, where a file is to be written"):
        write_files(dict.fromkeys([*old, tmp_path / "d"], b"new"))
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == old


def test_the_last_of_a_set_comes_last(tmp_path, monkeypatch):
    """After each step of putting new files in the place of old ones there are only old ones, or only new ones."""
    paths = [tmp_path / name for name in "abc"]
    write_files(dict.fromkeys(paths, b"old"))
    seen = []
    for action in ("unlink", "replace"):
        done = getattr(type(tmp_path), action)

        def watched(self, *args, done=done, **kwargs):
            result = done(self, *args, **kwargs)
            seen.append({path.name: path.read_bytes() for path in paths if path.exists()})
            return result

        monkeypatch.setattr(type(tmp_path), action, watched)
    write_files(dict.fromkeys(paths, b"new"))
    assert all(len(set(state.values())) <= 1 for state in seen)
    assert {"a": b"new", "b": b"new"} in seen
    assert next(state for state in seen if b"new" in state.values()) == {"a": b"new"}


def test_a_folder_that_is_replaced_keeps_other_files(tmp_path):
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "half").touch()  # of a killed run
    (tmp_path / "own").write_text("own")
    (tmp_path / "a").write_text("old")
    with suppress(KeyError), atomic_folder(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old"
    with atomic_folder(tmp_path) as temporary:
        (temporary / "sub").mkdir()
        for name in ("a", "sub/b"):
            (temporary / name).write_text("new")
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"own": "own", "a": "new", "sub/b": "new"}
