"""Texts from names, files and data inside Markdown, so that they say what they say and do nothing."""

import re

_SPECIAL = re.compile(r"([\\`*\[\]|])")


def text(value: object) -> str:
    """A text for a line, a heading or a table cell: no markup, no link, no HTML, and no end of the line or cell."""
    return _SPECIAL.sub(r"\\\1", _line(value).replace("&", "&amp;").replace("<", "&lt;"))


def code(value: object) -> str:
    """A code span, fenced by more backticks than follow each other inside it. (In a table its | must be escaped.)"""
    line = _line(value) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{space}{line}{space}{fence}"


def code_block(value: str) -> str:
    """Lines of code between fences that none of them can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", value)), default=0))
    return f"{fence}\n{value}\n{fence}"


def _line(value: object) -> str:
    """In one line, and without the characters by which a terminal is told to do something."""
    line = " ".join(str(value).splitlines()).replace("\t", " ")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
