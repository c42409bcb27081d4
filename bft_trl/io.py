"""Files that are complete under their final name, one writer per folder, and the last complete checkpoint of a run."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from filelock import FileLock, Timeout


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path`, of the same suffix, that replaces it if the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes several files. All are complete before the first one replaces an older file, in the given order."""
    with ExitStack() as stack:
        # The stack closes the files in reverse order.
        for path, content in reversed([*files.items()]):
            stack.enter_context(atomic_file(path)).write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_files({path: text.encode()})


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder whose files are moved into `folder` if the block ends without error.

    Files of other names stay in `folder`. A kill while the files are moved leaves each of them complete, in the old or
    in the new version.
    """
    temporary = folder / ".unfinished"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises FileNotFoundError, or ValueError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be a JSON object, not {str(value)[:40]!r}.")
    return value


def check_folder(folder: Path, *, name: str = "output_dir") -> None:
    """Raises ValueError if `folder`, the argument `name`, cannot be written to. It creates no folder."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"`{name}={str(folder)!r}`: {existing} is a file. Name a folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"`{name}={str(folder)!r}`: {existing} is not writable. Name another folder.")


@contextmanager
def lock(path: Path, *, name: str = "output_dir") -> Iterator[None]:
    """Keeps other processes of this machine from writing to `path`, the argument `name`.

    The lock is a file in the temporary folder of the system, so that a command that fails leaves nothing at `path`.
    Raises ValueError if another process holds the lock.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    try:
        # A singleton is reentrant: a command and a function that it calls may both ask for the lock.
        with FileLock(Path(gettempdir()) / f"bft_trl-{digest}.lock", timeout=0, is_singleton=True):
            yield
    except Timeout as error:
        raise ValueError(
            f"`{name}={str(path)!r}`: another process is writing there. Wait until it ends, or name another place."
        ) from error


def missing_part(checkpoint: Path) -> str | None:
    """Returns what a checkpoint folder lacks, or None for a complete one.

    transformers writes trainer_state.json last, so a save that was killed has no (complete) trainer_state.json.
    """
    from safetensors import SafetensorError, safe_open

    if not checkpoint.is_dir():
        return "it is no folder"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it has no trainer_state.json, which is written last"
    except ValueError:
        return "its trainer_state.json is cut short"
    for path in sorted(checkpoint.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError):
            return f"its {path.relative_to(checkpoint)} is cut short or damaged"
    return None


def checkpoints(output_dir: Path) -> list[Path]:
    """Returns the folders `checkpoint-<step>` of a run, highest step first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def last_complete_checkpoint(output_dir: Path) -> tuple[Path, dict[Path, str]]:
    """Returns the complete checkpoint with the highest step, and the newer incomplete ones with what each lacks.

    Raises ValueError if there is none.
    """
    skipped: dict[Path, str] = {}
    for path in checkpoints(output_dir):
        reason = missing_part(path)
        if reason is None:
            return path, skipped
        skipped[path] = reason
    raise ValueError(
        f"`resume_from_checkpoint=True`, but `output_dir={str(output_dir)!r}` holds no complete checkpoint"
        + "".join(f"; {folder}: {reason}" for folder, reason in skipped.items())
        + ". Start without `resume_from_checkpoint`, or name the right `output_dir`."
    )
