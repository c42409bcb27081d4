"""Files that are written whole or not at all: a reader sees the old file or the new one, never a part."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, of the same suffix, that takes its place when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    """Writes files that belong together: all are on the disk before the first one takes its place."""
    with ExitStack() as stack:
        for path, content in files.items():
            stack.enter_context(replacing(path)).write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
