"""The page of a comparison, one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from typing import Any

from bft_trl.comparison.published import PUBLISHED_KIND
from bft_trl.comparison.statistics import ALPHA
from bft_trl.comparison.templates import environment, inline_svg, number, script_of

LOWER_IS_BETTER = ("mse", "mae")
_NO_SEEDS = "It does not include the variance over training seeds."
# Unit of the intervals to the texts of a page.
_TEXTS = {
    "documents": {
        "unit": "documents",
        "interval_of": "on the same documents, with the 95 % bootstrap interval",
        "seeds_of": "The interval is over training seeds and documents if run and baseline both have several seeds; "
        "else it is over documents only and does not include the variance over training seeds.",
        "test_of": "t-test with the standard error over seeds and documents; for an interval over documents the exact "
        "McNemar test for scores of 0 and 1, else a paired permutation test",
        "no_better": "At or below the best baseline",
    },
    "genes": {
        "unit": "pairs",
        "interval_of": "on the same pairs, with the 95 % bootstrap interval over genes, because pairs that share a "
        "gene are not independent",
        "seeds_of": _NO_SEEDS,
        "test_of": "twice the smaller tail of the same bootstrap",
        "no_better": "No better than the best control",
    },
    "perturbations": {
        "unit": "perturbations",
        "interval_of": "on the same perturbations, with the 95 % interval over perturbations, corrected because the "
        "predictors were fitted to nearly the same data",
        "seeds_of": _NO_SEEDS,
        "test_of": "Nadeau and Bengio's corrected t-test",
        "no_better": "No better than the best control",
    },
}


def html_page(
    result: Mapping[str, Any],
    svg: str,
    *,
    documents: Sequence[Mapping[str, Any]] = (),
    template: str = "comparison.html.j2",
    map_svg: str = "",
) -> str:
    """Returns the comparison as HTML with its plot inside. Every text from names, tasks and data is escaped.

    Args:
        result: the comparison.
        svg: the forest plot; "" if there is none.
        documents: tables of documents and answers, see [`document_tables`].
        template: of this page, or of one that extends it.
        map_svg: the regime map of a study.
    """
    context = _context(result) | (script_of("documents.js") if documents else {})
    context |= {"plot": inline_svg(svg), "map_plot": inline_svg(map_svg), "document_tables": documents}
    return environment().get_template(template).render(context)


def _context(result: Mapping[str, Any]) -> dict[str, Any]:
    """What both templates show; `below` are the runs that are no better than the best baseline."""
    tasks, below = [], []
    for task, described in result["tasks"].items():
        metrics: dict[str, dict[str, Any]] = {}
        for row in result["rows"]:
            if row["task"] == task:
                entry = metrics.setdefault(row["metric"], {"rows": [], "baseline": row["baseline_score"]})
                entry |= {"n_seeds": row["baseline_n_seeds"], "seed_sd": row["baseline_seed_sd"]}
                entry["rows"].append(row | {"found": row["p_holm"] < ALPHA})
        references = [row for row in result["reference_rows"] if row["task"] == task]
        below += [
            {"task": task, "metric": metric} | found
            for metric, entry in metrics.items()
            if (found := _not_above_baseline(result, task, metric, entry["baseline"], entry["rows"]))
        ]
        settings = {key: v for key, v in described["settings"].items() if v is not None and not isinstance(v, dict)}
        tasks.append({"name": task, "metrics": metrics, "references": references, "n": described["n"]})
        tasks[-1]["settings"] = settings
    unit = result.get("over", "documents")
    return {
        "pairwise": [],
        "recorded": [],
        "n_pairwise": 0,
        **result,
        **_TEXTS[unit],
        "documents": unit == "documents",
        "tasks": tasks,
        "below": below,
        "everywhere": [row for row in result["reference_rows"] if row["task"] == "all"],
        "found": [row for row in result["rows"] if row["p_holm"] < ALPHA],
        "alpha": ALPHA,
    }


def _not_above_baseline(
    result: Mapping[str, Any], task: str, metric: str, baseline: float, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The best baseline of a metric and the runs that are not above it; None without one."""
    baselines = [
        row
        for row in result["reference_rows"]
        if (row["task"], row["metric"]) == (task, metric)
        and row["kind"] not in ("enrichment", "oracle", PUBLISHED_KIND)
    ]
    if not baselines or metric == "answer_rate":  # any text has an answer rate of 1
        return None
    higher = (
        result["tasks"][task]["settings"]
        .get("higher_is_better", {})
        .get(metric.partition("[")[0], metric not in LOWER_IS_BETTER)
    )
    sign = 1 if higher else -1
    best = max(baselines, key=lambda row: sign * row["value"])
    scores = {row["run"]: row["score"] for row in rows}
    if result.get("over", "documents") == "documents":  # elsewhere the baseline run may be a control itself
        scores = {result["baseline"]: baseline} | scores
    runs = [f"{name} ({number(score)})" for name, score in scores.items() if sign * score <= sign * best["value"]]
    return {"reference": best, "runs": runs} if runs else None
