"""Files that are written whole or not at all, by one run at a time: a reader sees the old file or the new one."""

import errno
import json
import logging
import os
import platform
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# No room, or no disk: errors in which libraries name no file.
_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO") if hasattr(errno, name)}
# CRC-32 of files that have no checksum inside.
CHECKSUMS = "checksums.json"
# What this process holds by `exclusive`: a lock is not asked for twice, as from a command and from what it calls.
_held: set[Path] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, of the same suffix, that takes its place when the block ends without error.

    What a killed process left of such a file is removed. A full disk is an OSError that names the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.stem}.{_host()}-{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.errno not in _FULL:
            raise
        raise OSError(
            f"{path.parent} cannot be written to ({os.strerror(error.errno)}); what was there is as it was. Make "
            "room, or name another place."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_all(*paths: Path) -> Iterator[list[Path]]:
    """As [`replacing`], for files that belong together: older ones go first, so that old and new are never mixed.

    They take their places in the given order; the one without which the others are not looked at should be the last.
    """
    with ExitStack() as stack:
        temporaries = [stack.enter_context(replacing(path)) for path in reversed(paths)]
        yield temporaries[::-1]
        for path in paths:
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder, where a file is to be written.")
        for path in paths:
            path.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder` whose files take the places of older ones when the block ends without error.

    Each is whole, and old and new are never mixed; files of other names stay. They come in the reverse order of their
    names: samples before results, weights before the configuration without which nobody looks for them.
    """
    temporary = folder / ".unfinished"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
        for name in files:
            (folder / name).unlink(missing_ok=True)
        for name in reversed(files):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(out: Path, *, name: str = "out") -> None:
    """Raises ValueError where `out`, the argument `name`, cannot be a folder to write into; makes nothing."""
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                raise ValueError(f"`{name}={str(out)!r}`: {place} is a file; name a folder.")
            if not os.access(place, os.W_OK):
                raise ValueError(f"`{name}={str(out)!r}`: {place} cannot be written to; name another folder.")
            return


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes files that belong together, see [`replacing_all`]: all are on the disk before the first is replaced."""
    with replacing_all(*files) as temporaries:
        for temporary, content in zip(temporaries, files.values(), strict=True):
            temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def record_checksums(folder: Path, paths: Iterable[Path]) -> None:
    """Writes the CRC-32 of files under `folder` into its [`CHECKSUMS`]."""
    found = {str(path.relative_to(folder)): _crc32(path) for path in sorted(paths)}
    write_text(folder / CHECKSUMS, json.dumps(found, indent=2) + "\n")


def changed_file(folder: Path) -> str | None:
    """A file that is not what [`record_checksums`] found, or is missing; None where all are."""
    try:
        recorded = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return next((name for name, known in recorded.items() if _crc32(folder / name) != known), None)
    except (ValueError, AttributeError):
        return CHECKSUMS
    except FileNotFoundError as error:
        return Path(error.filename).name


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


@contextmanager
def exclusive(out: Path, *, name: str = "out") -> Iterator[None]:
    """Keeps other processes from writing to `out`, the argument `name`, while the block runs.

    A folder is made where it is missing and locked itself; a file (one that exists, or a name that ends in .parquet)
    by a hidden file beside it, so that another in its folder can be written meanwhile. The kernel gives the lock back
    when the process dies. Folders that were made and stay empty are removed.

    Raises ValueError where another process has it, or where there can be no such folder.
    """
    is_file = out.is_file() or out.suffix == ".parquet"
    folder = out.parent if is_file else out
    place = out.resolve()
    if place in _held:
        yield
        return
    check_folder(folder, name=name)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder, f".{out.stem}.lock" if is_file else None, f"`{name}={str(out)!r}`"):
            _held.add(place)
            try:
                yield
            finally:
                _held.discard(place)
    finally:
        for path in made:
            with suppress(OSError):  # there is something in it
                path.rmdir()


@contextmanager
def _locked(folder: Path, file: str | None, argument: str) -> Iterator[None]:
    """Holds the lock of a folder, or of a hidden file in it that is removed afterwards."""
    if fcntl is None:
        yield
        return
    path = folder / file if file else folder
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT if file else os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ValueError(
                f"{argument}: another process is writing there. Wait for its end, or choose another name."
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that no other run writes there.", path, error)
            break
        # The one that held it before may have removed it since it was opened.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if file:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files for `path` of processes of this machine that are no more."""
    before, after = f".{path.stem}.{_host()}-", f".tmp{path.suffix}"
    for entry in os.scandir(path.parent):
        pid = entry.name.removeprefix(before).removesuffix(after)
        if entry.name == f"{before}{pid}{after}" and pid.isdecimal() and not _alive(int(pid)):
            Path(entry.path).unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _host() -> str:
    """Eight digits for this machine: the same process number on another one says nothing."""
    return f"{zlib.crc32(platform.node().encode()):08x}"
