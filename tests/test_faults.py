"""A full disk and a folder that cannot be written to: a clear error, what was there stays, nothing is half written."""

import ctypes
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import jobs
import pytest
from test_kills import folder_of


def full_disk(name: str, base: str, share: float) -> list[str]:
    """No file may grow beyond a share of the largest result; over older results too. Runs in the zygote."""
    folder, job = Path(base), jobs.JOBS[name]
    whole = jobs.new_root(name, folder)
    assert jobs.run(name, folder / "world", whole).code == 0
    largest = max(path.stat().st_size for path in jobs.visible(whole))
    said = []
    for start in [None, jobs.older_results(name, folder / "world", folder)][: 1 + job.older]:
        root = jobs.new_root(name, folder, start)

        def limited(root: Path = root) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest * share), resource.RLIM_INFINITY))
            return job(folder / "world", root)

        said.append(check_fault(name, folder, root, jobs.in_child(limited, root), whole, start))
    return said


def full_file_system(name: str, base: str, shares: list[float]) -> list[str]:
    """The disk itself is full, at several places. Runs in the zygote, as root."""
    folder = Path(base)
    whole = jobs.new_root(name, folder)
    assert jobs.run(name, folder / "world", whole).code == 0
    needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in whole.rglob("*") if path.is_file())
    said = []
    for share in shares:
        root = jobs.new_root(name, folder)
        with mounted(root, f"size={max(int(needed * share) // 4096, 1) * 4096}"):
            ended = jobs.run(name, folder / "world", root)
            if ended.code == 0:  # what it could not keep is a cache
                found, wanted = (
                    {path: held for path, held in jobs.contents(place).items() if not path.startswith("home/")}
                    for place in (root, whole)
                )
                assert found == wanted
                continue
            said.append(check_fault(name, folder, root, ended, whole, None, again=False))
            subprocess.run(["mount", "-o", "remount,size=64m", str(root)], check=True)
            finish(name, folder, root, whole)
    assert said, "the disk was never full"
    return said


def read_only(name: str, base: str) -> list[str]:
    """A folder without the right to write, for root too. Runs in the zygote."""
    folder, job = Path(base), jobs.JOBS[name]
    whole = jobs.new_root(name, folder)
    assert jobs.run(name, folder / "world", whole).code == 0
    said = []
    for start in [None, jobs.older_results(name, folder / "world", folder)][: 1 + job.older]:
        root = jobs.new_root(name, folder, start)
        places = [root, *(path for path in root.rglob("*") if path.is_dir())]
        for place in places:
            place.chmod(0o555)

        def restricted(root: Path = root) -> int:
            as_others()
            return job(folder / "world", root)

        ended = jobs.in_child(restricted, root)
        for place in places:
            place.chmod(0o755)
        said.append(check_fault(name, folder, root, ended, whole, start))
    return said


def check_fault(
    name: str, folder: Path, root: Path, ended: jobs.Ended, whole: Path, older: Path | None, *, again: bool = True
) -> str:
    """A clear error; what was there is there still; the same command does its work when the fault is gone."""
    last = (ended.said.strip().splitlines() or [""])[-1]
    if name == "train":  # a script: Python says what was raised
        assert ended.code == 99, ended.said
        assert str(root) in last, ended.said[-1500:]
        assert last.startswith(("OSError", "ValueError")), ended.said
    else:
        assert ended.code == 2, (ended.code, ended.said)
        assert "bft-trl: error: " in ended.said
        assert str(root) in ended.said.split("bft-trl: error: ")[1], ended.said
    assert "Traceback" not in ended.said or name == "train", ended.said
    left = jobs.contents(root)
    before = jobs.contents(older) if older else {}
    kept = {path: held for path, held in before.items() if not path.startswith(jobs.JOBS[name].store)}
    assert {path: left.get(path) for path in kept} == kept, "older results are gone"
    new = {path for path in left if path not in before and not path.startswith("home/")}
    stored = {path for path in new if jobs.re.match(jobs.JOBS[name].store, path)}
    assert new == stored, f"{new - stored} were written by a run that failed"
    assert not jobs.leftovers(root)
    if again:
        finish(name, folder, root, whole)
    return last


def finish(name: str, folder: Path, root: Path, whole: Path) -> None:
    ended = jobs.run(name, folder / "world", root)
    assert ended.code == 0, ended.said
    found, wanted = jobs.contents(root), jobs.contents(whole)
    assert {path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path)} == set()


@contextmanager
def mounted(place: Path, options: str):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def as_others() -> None:
    """Takes from root the right to write where the permissions say no (CAP_DAC_OVERRIDE)."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for word in (0, 1):  # effective and permitted
        data[word] &= ~(1 << 1)
    assert libc.capset(header, data) == 0


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.mark.parametrize("name", ["check", "profiles"])
def test_files_cannot_grow(zygote, name):
    zygote.call("test_faults", "full_disk", name=name, base=str(folder_of(zygote, name, "full")), share=0.5)


@pytest.mark.parametrize("name", ["check", "profiles"])
def test_a_folder_cannot_be_written_to(zygote, name):
    zygote.call("test_faults", "read_only", name=name, base=str(folder_of(zygote, name, "read")))


@pytest.mark.long
@pytest.mark.parametrize("name", jobs.JOBS)
def test_files_of_every_command_cannot_grow(zygote, name):
    for share in (0.1, 0.5, 0.9):
        folder = folder_of(zygote, name, f"full{share}")
        for said in zygote.call("test_faults", "full_disk", name=name, base=str(folder), share=share):
            jobs.sys.stdout.write(f"{name}: {said}\n")


@pytest.mark.long
@pytest.mark.parametrize("name", jobs.JOBS)
def test_the_folder_of_every_command_cannot_be_written_to(zygote, name):
    for said in zygote.call("test_faults", "read_only", name=name, base=str(folder_of(zygote, name, "read-long"))):
        jobs.sys.stdout.write(f"{name}: {said}\n")


@pytest.mark.long
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
@pytest.mark.parametrize("name", jobs.JOBS)
def test_the_disk_of_every_command_is_full(zygote, name):
    folder = folder_of(zygote, name, "disk")
    for said in zygote.call("test_faults", "full_file_system", name=name, base=str(folder), shares=[0.1, 0.5, 0.9]):
        jobs.sys.stdout.write(f"{name}: {said}\n")
