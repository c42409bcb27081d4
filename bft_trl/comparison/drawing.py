"""Style of all plots, their rendering to bytes, and escaped names."""

from io import BytesIO
from typing import Any


def plot_style(size: int = 8) -> Any:
    """Returns a matplotlib context in which text in an SVG stays text, and its ids are reproducible."""
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bft_trl", "font.size": size})


def saved(figure: Any, kind: str) -> bytes:
    """Returns a matplotlib figure, made without pyplot, as "png" or "svg"."""
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def plain(name: str, *, longest: int = 44) -> str:
    """Returns a name in one line, escaped so that matplotlib reads no formula and keeps it in a legend."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(name))
    shown = shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
    return (f" {shown}" if shown.startswith("_") else shown).replace("$", r"\$")
