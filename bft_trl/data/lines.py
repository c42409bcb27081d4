"""Lines of text files, plain or gzipped, with errors that say in which file and line they are."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, cast


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file; gzip is told by the content, not by the suffix.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty file, a line that is not UTF-8, a gzip file that is damaged or ends early.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    number = 0
    with closing(_opened(path)) as lines:
        try:
            # Decoded line by line: a text stream decodes in blocks, and an error would not know its line.
            for number, line in enumerate(lines, 1):
                if b"\0" in line:
                    raise ValueError(f"{path}, line {number}: holds a NUL byte: the file is damaged or no text.")
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: is not UTF-8 text ({error.reason}).") from error
        except EOFError as error:
            raise ValueError(
                f"{path}: is truncated, the gzip file ends after line {number}. Fetch it anew."
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: is truncated or damaged, gzip fails after line {number} ({error}). Fetch it anew."
            ) from error
    if number == 0:
        raise ValueError(f"{path}: is empty.")


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")
