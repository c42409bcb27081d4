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


def plain(name: str) -> str:
    """A name that matplotlib does not take for a formula."""
    return (name if len(name) <= 44 else f"{name[:43]}…").replace("$", r"\$")
