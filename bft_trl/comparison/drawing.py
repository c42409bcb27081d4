"""What all plots share: a style that gives the same file for the same figures, and names that are no formulas."""

from io import BytesIO
from typing import Any


def plot_style(size: int = 8) -> Any:
    """A context for drawing: text in an SVG stays text, and ids in it do not depend on chance."""
    import matplotlib

    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bft_trl", "font.size": size})


def saved(figure: Any, kind: str) -> bytes:
    """The figure as "png" or "svg"; a matplotlib figure made without pyplot."""
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def plain(name: str, *, longest: int = 44) -> str:
    """A name in one line that matplotlib takes neither for a formula nor, in a legend, for one to leave out."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(name))
    shown = shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
    return (f" {shown}" if shown.startswith("_") else shown).replace("$", r"\$")
