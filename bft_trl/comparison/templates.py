"""The Jinja environment of all pages, and its filters."""

import base64
import hashlib
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from bft_trl.comparison.published import PUBLISHED_KIND


def environment() -> Any:
    """Returns the environment with the templates of this folder, which escape all texts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("bft_trl.comparison", package_path="."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "signed": _signed, "p": _p, "code": _code}
    templates.filters |= {"reference": _reference, "seeds": _seeds}
    templates.globals["script_hash"] = None
    return templates


def script_of(name: str) -> dict[str, Any]:
    """Returns the script of a page and its hash: the page's policy allows this script only."""
    from markupsafe import Markup

    text = files("bft_trl.comparison").joinpath(name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}


def inline_svg(image: str) -> Any:
    """Returns an SVG of matplotlib, which escapes its texts, as markup for a page; without the XML prologue."""
    from markupsafe import Markup

    return Markup(image[image.index("<svg") :] if image else "")


def number(value: float | None) -> str:
    """Returns three decimals below 1.5 (two significant digits below .01), else one decimal; "-" for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 1.5 else f"{value:.1f}".removesuffix(".0")


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '-' if value < 0 else '±'}{number(abs(value))}"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _reference(row: Mapping[str, Any]) -> str:
    """The name of a reference row; those of baselines and oracles begin with their kind."""
    return f"{row['name']} ({row['kind']})" if row["kind"] == PUBLISHED_KIND else row["name"]


def _seeds(entry: Mapping[str, Any]) -> str:
    """Number of seeds, and their standard deviation."""
    return "one" if entry["n_seeds"] == 1 else f"{entry['n_seeds']}, sd {number(entry['seed_sd'])}"


def _code(text: str) -> Any:
    """Text between backticks as code; the rest escaped."""
    from markupsafe import Markup, escape

    parts = [str(escape(part)) for part in text.split("`")]
    return Markup("".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)))
