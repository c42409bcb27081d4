"""Advice that follows from the metrics of an inspection."""

from collections.abc import Iterator, Mapping
from typing import Any

from bft_trl.training.callbacks import vanishing_remedy, weights_tokens, window_advice

# Thresholds of this project, not measured.
MANY_NEAR_ZERO = 0.3
CONFIDENT = 0.9

_LEVELS = ("error", "warning", "note")


def advice(metrics: Mapping[str, Any], objective: Mapping[str, Any], *, max_length: int) -> list[dict[str, str]]:
    """Returns dicts of level ("error", "warning" or "note"), code and text, errors first. Never empty.

    Args:
        metrics: of `inspect_samples`.
        objective: of `BFTConfig.objective`.
        max_length: where rows are cut.
    """
    metrics = {name: 0 if value is None else value for name, value in metrics.items()}
    found = [*_about_data(metrics, max_length), *_about_objective(metrics, objective)]
    found = sorted(found, key=lambda entry: _LEVELS.index(entry[0])) or [("note", "nothing", "No problem found.")]
    return [{"level": level, "code": code, "text": text} for level, code, text in found]


def _about_data(metrics: Mapping[str, Any], max_length: int) -> Iterator[tuple[str, str, str]]:
    samples, without, uncut, ends = (metrics[name] for name in ("samples", "without_target", "uncut", "ends"))
    if without:
        yield (
            "error" if without == samples else "warning",
            "nothing_supervised",
            f"{without} of {samples} samples have no supervised token; training drops them. Check that the answer is "
            f"in `completion` or an assistant turn, and that `max_length={max_length}` does not cut it off.",
        )
    if metrics["cut_supervised"]:
        yield (
            "warning",
            "cut",
            f"`max_length={max_length}` cuts supervised tokens off {metrics['cut_supervised']} of {samples} samples: "
            "their answers have no end. Raise it, or shorten the prompts.",
        )
    if metrics["not_finite"]:
        yield "error", "not_finite", f"The loss of {metrics['not_finite']} samples is not finite; the page names them."
    if ends < uncut:
        yield (
            "warning" if ends else "error",
            "end_of_turn",
            f"In {uncut - ends} of {uncut} uncut samples no end-of-turn token is supervised: the model does not learn "
            "to stop. Check the chat template, and `assistant_only_loss`.",
        )
    if metrics["duplicates"]:
        yield "warning", "duplicates", f"{metrics['duplicates']} of all {metrics['rows']} rows equal an earlier row."
    if metrics["ambiguous_prompts"]:
        yield "note", "ambiguous", f"{metrics['ambiguous_prompts']} prompts have different answers in different rows."


def _about_objective(metrics: Mapping[str, Any], objective: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    targets = metrics["samples"] - metrics["without_target"]
    if weights_tokens(objective) and metrics["near_zero_fraction"] >= MANY_NEAR_ZERO:
        yield (
            "warning",
            "signal_vanishes",
            f"{metrics['near_zero_fraction']:.0%} of the supervised tokens have a weight under 0.01 (mean "
            f"{metrics['token_weight']:.3f}): the training signal vanishes where the model knows little. Try "
            f"{vanishing_remedy(objective)}.",
        )
    if metrics["group_confidence"] >= CONFIDENT:
        yield (
            "note",
            "known",
            f"The model is confident of this text (mean group confidence {metrics['group_confidence']:.2f}); the mean "
            f"sample weight is {metrics['sample_weight']:.2f}. There may be little to learn.",
        )
    if targets and (text := window_advice(objective, metrics["windowed"] / targets)):
        text += f" The median answer has {metrics['median_length']:.0f} supervised tokens."
        yield "warning", "window_never_acts", text
