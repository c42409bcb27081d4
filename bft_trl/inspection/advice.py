"""Advice that follows from the metrics of an inspection."""

from collections.abc import Iterator, Mapping
from typing import Any

# Thresholds of this project, not measured.
FEW_WINDOWED = 0.05
MANY_NEAR_ZERO = 0.3
CONFIDENT = 0.9

_Found = Iterator[tuple[str, str, str]]


def advice(metrics: Mapping[str, Any], objective: Mapping[str, Any], *, max_length: int) -> list[dict[str, str]]:
    """Returns dicts of level ("error", "warning" or "note"), code and text, errors first. Never empty.

    Args:
        metrics: of `inspect_samples`.
        objective: of `BFTConfig.objective`.
        max_length: where rows are cut.
    """
    metrics = {name: 0 if value is None else value for name, value in metrics.items()}
    rules = [*_data(metrics, max_length), *_objective(metrics, objective), *_repeats(metrics)]
    found = [{"level": level, "code": code, "text": text} for level, code, text in rules]
    found.sort(key=lambda entry: ("error", "warning", "note").index(entry["level"]))
    return found or [{"level": "note", "code": "nothing", "text": "No problem found."}]


def _data(metrics: Mapping[str, Any], max_length: int) -> _Found:
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


def _objective(metrics: Mapping[str, Any], objective: Mapping[str, Any]) -> _Found:
    loss_type, version = objective["loss_type"], objective["bft_version"]
    fraction, targets = metrics["near_zero_fraction"], metrics["samples"] - metrics["without_target"]
    weighs_tokens = loss_type == "dft" or (loss_type == "bft" and objective["token_weighting"])
    if weighs_tokens and fraction >= MANY_NEAR_ZERO:
        remedy = "`bft_version='v3'` or a floor such as `min_token_weight=0.1`"
        if version == "v3":
            remedy = "a floor such as `min_token_weight=0.1`, or a base model that knows the field better"
        remedy = f"`loss_type='bft'` with {remedy}" if loss_type == "dft" else remedy
        yield (
            "warning",
            "signal_vanishes",
            f"{fraction:.0%} of the supervised tokens have a weight under 0.01 (mean {metrics['token_weight']:.3f}). "
            f"The training signal vanishes where the model knows little. Try {remedy}.",
        )
    if metrics["group_confidence"] >= CONFIDENT:
        yield (
            "note",
            "known",
            f"The model is confident of this text (mean group confidence {metrics['group_confidence']:.2f}); the mean "
            f"sample weight is {metrics['sample_weight']:.2f}. There may be little to learn.",
        )
    uses_window = loss_type == "bft" and (objective["sample_weighting"] or version == "v3")
    if uses_window and metrics["windowed"] < FEW_WINDOWED * targets:
        yield (
            "warning",
            "window_never_acts",
            f"Only in {metrics['windowed']} of {targets} samples the window of `group_size={objective['group_size']}` "
            f"acts (median answer {metrics['median_length']:.0f} tokens). In the others the group confidence is the "
            "mean over the answer. Lower `group_size` to below the typical answer length if that is not meant.",
        )


def _repeats(metrics: Mapping[str, Any]) -> _Found:
    if metrics["duplicates"]:
        text = f"{metrics['duplicates']} of all {metrics['rows']} rows equal an earlier row."
        yield "warning", "duplicates", text
    if metrics["ambiguous_prompts"]:
        yield "note", "ambiguous", f"{metrics['ambiguous_prompts']} prompts have different answers in different rows."
