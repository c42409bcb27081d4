"""What all pages share: the templates of this folder, their filters, and plots inside a page."""

import math
from typing import Any

from bft_trl import markdown


def environment(*, autoescape: bool) -> Any:
    """The templates of this folder, with the filters that they use; `script_hash` is of the one script of a page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("bft_trl.comparison", package_path="."),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"number": number, "signed": _signed, "p": _p, "cell": markdown.text, "code": _code}
    templates.filters |= filters
    templates.globals["script_hash"] = None
    return templates


def inline_svg(image: str) -> Any:
    """An SVG of ours for a page: from matplotlib, which escapes its texts; without the prologue that HTML lacks."""
    from markupsafe import Markup

    return Markup(image[image.index("<svg") :] if image else "")


def number(value: float | None) -> str:
    """Three decimals for scores in [0, 1], one for percentiles and counts; a dash where there is none.

    Under .01 two digits that count: errors are that small.
    """
    if value is None or math.isnan(value):
        return "-"
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 1.5 else f"{value:.1f}".removesuffix(".0")


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '-' if value < 0 else '±'}{number(abs(value))}"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _code(text: str) -> Any:
    """What stands between backticks as code; the rest escaped, as everywhere."""
    from markupsafe import Markup, escape

    parts = [str(escape(part)) for part in text.split("`")]
    return Markup("".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)))
