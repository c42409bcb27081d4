"""A comparison as a page: Markdown, and one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from bft_trl.comparison.forest import COMPUTED
from bft_trl.comparison.statistics import ALPHA
from bft_trl.comparison.templates import environment, inline_svg, number

LOWER_IS_BETTER = ("mse", "mae")
# What an interval and a p-value are over, in words.
_OVER = {
    "documents": "on the same documents, with the 95 % bootstrap interval over documents",
    "genes": "on the same pairs, with the 95 % bootstrap interval over genes, because pairs that share a gene are not "
    "independent",
    "perturbations": "on the same perturbations, with the 95 % interval over perturbations, widened because "
    "their predictors were fitted to nearly the same data",
}
_NO_BETTER = "At or under the highest floor, that is, no better than an answer that knows nothing of the question"
_TEST = {
    "documents": "exact McNemar test for scores of 0 and 1, else a paired permutation test",
    "genes": "twice the smaller tail of the same bootstrap",
    "perturbations": "Nadeau and Bengio's corrected t-test",
}


def markdown_page(result: Mapping[str, Any]) -> str:
    """The tables of a comparison as Markdown."""
    return _environment(autoescape=False).get_template("comparison.md.j2").render(_context(result))


def html_page(result: Mapping[str, Any], svg: str, *, figures: Sequence[tuple[str, str]] = ()) -> str:
    """The comparison as HTML with the plots inside it; every text from names, tasks and data is escaped.

    Args:
        result: the comparison.
        svg: the forest plot; "" where there is none.
        figures: titles and SVGs of further plots.
    """
    template = _environment(autoescape=True).get_template("comparison.html.j2")
    return template.render(
        _context(result), plot=inline_svg(svg), figures=[(title, inline_svg(image)) for title, image in figures]
    )


def _context(result: Mapping[str, Any]) -> dict[str, Any]:
    """What both templates show; `below` are the runs that do no better than the highest floor."""
    tasks = []
    below: list[dict[str, Any]] = []
    for task, described in result["tasks"].items():
        metrics: dict[str, dict[str, Any]] = {}
        for row in result["rows"]:
            if row["task"] == task:
                entry = metrics.setdefault(row["metric"], {"rows": [], "baseline": row["baseline_score"]})
                entry |= {"n_seeds": row["baseline_n_seeds"], "seed_sd": row["baseline_seed_sd"]}
                entry["rows"].append(row | {"found": row["p_holm"] < ALPHA})
        references = [row for row in result["reference_rows"] if row["task"] == task]
        below += [
            {"task": task, "metric": metric} | under
            for metric, entry in metrics.items()
            if metric != "named" and (under := _under_a_floor(result, metric, entry, references))
        ]
        tasks.append({"name": task, "metrics": metrics, "references": references} | described)
    everywhere = [row for row in result["reference_rows"] if row["task"] == "all"]
    found = [row for row in result["rows"] if row["p_holm"] < ALPHA]
    over = result.get("over", "documents")
    words = {"unit": {"documents": "documents", "genes": "pairs"}.get(over, over), "interval_of": _OVER[over]}
    words |= {"no_better": _NO_BETTER if over == "documents" else "No better than the best control"}
    words |= {"test_of": _TEST[over], "documents": over == "documents", "pairwise": [], "n_pairwise": 0}
    return (
        dict(result)
        | words
        | {"tasks": tasks, "below": below, "everywhere": everywhere, "found": found, "alpha": ALPHA}
    )


def _under_a_floor(
    result: Mapping[str, Any], metric: str, entry: Mapping[str, Any], references: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    floors = [row for row in references if row["metric"] == metric and row["kind"] == "floor"]
    if not floors:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(floors, key=lambda row: sign * row["value"])
    scores = {row["run"]: row["score"] for row in entry["rows"]}
    if result.get("over", "documents") == "documents":  # elsewhere the baseline may be a control itself
        scores = {result["baseline"]: entry["baseline"]} | scores
    under = [f"{name} ({number(score)})" for name, score in scores.items() if sign * score <= sign * best["value"]]
    return {"floor": best, "runs": under} if under else None


def _reference(row: Mapping[str, Any]) -> str:
    """The name of what stands beside the runs; those of floors and oracles say already that they are."""
    return row["name"] if row["kind"] in COMPUTED else f"{row['name']} ({row['kind']})"


def _seeds(entry: Mapping[str, Any]) -> str:
    """How many seeds, and their spread."""
    return "one" if entry["n_seeds"] == 1 else f"{entry['n_seeds']}, sd {number(entry['seed_sd'])}"


def _environment(*, autoescape: bool) -> Any:
    templates = environment(autoescape=autoescape)
    templates.filters |= {"reference": _reference, "seeds": _seeds}
    return templates
