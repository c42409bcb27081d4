"""Escapes texts from names, files and data for Markdown."""

import re

_SPECIAL = re.compile(r"([\\`*\[\]|])")


def text(value: object) -> str:
    """Returns a text escaped for a line, a heading or a table cell."""
    return _SPECIAL.sub(r"\\\1", _line(value).replace("&", "&amp;").replace("<", "&lt;"))


def code(value: object) -> str:
    """Returns a code span. In a table, "|" must still be escaped."""
    line = _line(value) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{space}{line}{space}{fence}"


def code_block(value: str) -> str:
    """Returns a code block with a fence that is longer than any in `value`."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", value)), default=0))
    return f"{fence}\n{value}\n{fence}"


def _line(value: object) -> str:
    """Returns one line, with control characters replaced."""
    line = " ".join(str(value).splitlines()).replace("\t", " ")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
