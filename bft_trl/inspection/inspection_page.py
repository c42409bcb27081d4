"""The page of an inspection: advice, metrics, distributions, and the samples with colored tokens."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from bft_trl.comparison.drawing import plot_style, saved
from bft_trl.comparison.templates import environment, inline_svg
from bft_trl.inspection.summary import summary_rows

_MOST_WEAKEST = 10


def inspection_page(report: Mapping[str, Any]) -> str:
    """Returns the report of `inspect_samples` as a self-contained HTML file, with all texts escaped."""
    samples = [dict(sample) | _shown(sample) for sample in report["samples"]]
    scored = [sample for sample in samples if sample.get("group_confidence") is not None]
    model = report["model"]
    context = dict(report) | {
        "samples": samples,
        "name": " with adapter ".join(Path(part).name for part in (model["model"], model["adapter"]) if part),
        "weakest": sorted(scored, key=lambda sample: sample["group_confidence"])[:_MOST_WEAKEST],
        "summary": summary_rows(report["metrics"]),
        "plots": [
            inline_svg(_histogram(name, values, report["objective"]["group_size"]).decode())
            for name, values in report["metrics"]["distributions"].items()
        ],
    }
    return environment().get_template("inspection.html.j2").render(context)


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parts of a sample for the template, and the text of its window of lowest confidence."""
    first, end = sample.get("window", (0, 0))
    place = count()
    parts = [
        {"tokens": [_token(text, next(place), sample) for text in part["texts"]]}
        if part["supervised"]
        else {"text": part["texts"][0]}
        for part in sample["parts"]
    ]
    texts = [text for part in sample["parts"] if part["supervised"] for text in part["texts"]]
    return {"parts": parts, "window_text": "".join(texts[first:end])}


def _token(text: str, place: int, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Returns text, classes and title of a supervised token: its tenth of confidence (c) and of weight (w)."""
    if "probs" not in sample:  # the loss is not finite
        return {"text": text, "classes": "c0 w0", "title": "no finite loss"}
    confidence, weight = sample["probs"][place], sample["weights"][place]
    first, end = sample["window"]
    classes = f"c{min(int(confidence * 10), 9)} w{min(int(weight * 10), 9)}"
    return {
        "text": text,
        "classes": classes + " weak" * (sample["windowed"] and first <= place < end),
        "title": f"confidence {confidence:.3g}, weight {weight:.3g}",
    }


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
