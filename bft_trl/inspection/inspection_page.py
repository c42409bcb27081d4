"""The page of an inspection: samples with their tokens in colour, distributions, advice."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bft_trl.comparison.drawing import plot_style, saved
from bft_trl.comparison.templates import environment, inline_svg

_WEAKEST = 10
# What a pointer shows by hovering, a finger by touching. The page allows this script, by its hash, and no other.
_SCRIPT = """
document.addEventListener("click", (event) => {
  const token = event.target.closest("b.t");
  if (token) document.getElementById("told").textContent = token.textContent.trim() + ": " + token.title;
});
"""


def inspection_page(report: Mapping[str, Any]) -> str:
    """The report of `bft_trl.inspection.inspection` as one HTML file; every text of data and model is escaped."""
    from markupsafe import Markup

    samples = [dict(sample) | _shown(sample) for sample in report["samples"]]
    weakest = sorted(
        (sample for sample in samples if sample.get("group_confidence") is not None),
        key=lambda sample: sample["group_confidence"],
    )
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    model = report["model"]
    context = dict(report) | {
        "samples": samples,
        "name": " with adapter ".join(Path(part).name for part in (model["model"], model["adapter"]) if part),
        "weakest": weakest[:_WEAKEST],
        "summary": summary(report["figures"]),
        "figures_drawn": [
            inline_svg(_histogram(name, values, report["objective"]["group_size"]).decode())
            for name, values in report["figures"]["distributions"].items()
        ],
        "script": Markup(_SCRIPT),
        "script_hash": f"sha256-{digest}",
    }
    return environment(autoescape=True).get_template("inspection.html.j2").render(context)


def summary(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures over all samples as names and texts, for the page and the terminal."""
    windows = figures["windows"]
    total = sum(windows.values()) or 1
    targets = figures["samples"] - figures["without_target"]
    return [
        ("supervised tokens", f"{figures['supervised_tokens']:,} of {figures['tokens']:,} ({_share(figures)})"),
        ("unweighted nll", _said(figures["nll"], "nats a token")),
        ("mean token confidence", _said(figures["token_confidence"])),
        ("mean token weight", _said(figures["token_weight"])),
        ("token weights under 0.01", _percent(figures["near_zero_share"])),
        ("mean group confidence", _said(figures["group_confidence"])),
        ("mean sample weight", _said(figures["sample_weight"])),
        ("effective samples", _said(figures["effective_samples"], f"of {targets}")),
        ("samples in which the window acts", f"{figures['windowed']} of {targets}"),
        ("windows", ", ".join(f"{name} {count / total:.0%}" for name, count in windows.items())),
        ("samples that max_length cuts", f"{figures['cut']} of {figures['samples']}"),
        ("uncut samples with an end-of-turn token", f"{figures['ends']} of {figures['uncut']}"),
        ("rows that repeat an earlier one", f"{figures['duplicates']} of {figures['rows']}"),
    ]


def _said(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3g} {unit}".strip()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _share(figures: Mapping[str, Any]) -> str:
    return _percent(figures["supervised_share"])


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a sample as the template shows them, and the text of its weakest window."""
    first, end = sample.get("weakest", (0, 0))
    marked = sample.get("windowed", False)
    shown: list[dict[str, Any]] = []
    window: list[str] = []
    for part in sample["parts"]:
        if not part["supervised"]:
            shown.append({"supervised": False, "text": part["texts"][0]})
            continue
        tokens = []
        last = part["first"] + len(part["texts"]) - 1
        for place, text in enumerate(part["texts"], start=part["first"]):
            inside = first <= place < end
            if inside:
                window.append(text)
            c, w = (sample[name][place] if name in sample else None for name in ("probs", "weights"))
            tokens.append(
                {
                    "text": text,
                    "c": _bin(c),
                    "w": _bin(w),
                    "title": f"confidence {_said(c)}, weight {_said(w)}",
                    "opens": marked and inside and place == max(first, part["first"]),
                    "closes": marked and inside and place == min(end - 1, last),
                }
            )
        shown.append({"supervised": True, "tokens": tokens})
    return {"shown": shown, "window_text": "".join(window)}


def _bin(value: float | None) -> int:
    return 0 if value is None else min(int(value * 10), 9)


def _histogram(name: str, values: Mapping[str, Sequence[float]], group_size: int) -> bytes:
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(3, 2), layout="constrained")
        axis = figure.subplots()
        axis.stairs(values["counts"], values["edges"], fill=True, color="#7a9cc6")
        if name == "supervised tokens":
            axis.axvline(group_size, color="#a34a00", linewidth=1)
            axis.text(group_size, max(values["counts"]), " window", color="#a34a00", va="top", fontsize=7)
        axis.set(title=name, ylabel="tokens" if name.startswith("token") else "samples")
        axis.spines[["top", "right"]].set_visible(False)
        return saved(figure, "svg")
