"""What the figures of an inspection mean for training, in words; each advice with the figures behind it."""

from collections.abc import Mapping
from typing import Any

# From here on a thing is said. Rules of thumb of this project: nobody has measured where they hurt.
FEW_WINDOWED = 0.05
MANY_NEAR_ZERO = 0.3
SURE = 0.9


def advice(figures: Mapping[str, Any], objective: Mapping[str, Any], *, max_length: int) -> list[dict[str, str]]:
    """What is wrong or worth a thought, the worst first.

    Args:
        figures: of `inspect_samples`.
        objective: of `BFTConfig.objective`.
        max_length: where rows are cut.

    Returns dicts of level ("error", "warning" or "note"), code and text. Never empty.
    """
    found = [
        *_targets(figures, max_length),
        *_ends(figures),
        *_signal(figures, objective),
        *_window(figures, objective),
        *_repeats(figures),
    ]
    found.sort(key=lambda entry: ("error", "warning", "note").index(entry["level"]))
    return found or [_said("note", "nothing", "Nothing here speaks against training on this data.")]


def _said(level: str, code: str, text: str) -> dict[str, str]:
    return {"level": level, "code": code, "text": text}


def _targets(figures: Mapping[str, Any], max_length: int) -> list[dict[str, str]]:
    samples, without, cut = figures["samples"], figures["without_target"], figures["cut_supervised"]
    found = []
    if without:
        found.append(
            _said(
                "error" if without == samples else "warning",
                "nothing_supervised",
                f"{without} of {samples} samples have no supervised token and will be dropped. Check that the answer "
                f"is in `completion` or an assistant turn, and that `max_length={max_length}` does not cut it off.",
            )
        )
    if cut:
        found.append(
            _said(
                "warning",
                "cut",
                f"`max_length={max_length}` cuts supervised tokens off {cut} of {samples} samples: their answers have "
                "no end. Raise it, or shorten the prompts.",
            )
        )
    if figures["not_finite"]:
        found.append(
            _said("error", "not_finite", f"The loss of {figures['not_finite']} samples is not finite: see the page.")
        )
    return found


def _ends(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    uncut, ends = figures["uncut"], figures["ends"]
    if ends == uncut:
        return []
    level = "error" if not ends else "warning"
    return [
        _said(
            level,
            "end_of_turn",
            f"In {uncut - ends} of {uncut} uncut samples no end-of-turn token is supervised: the model is not taught "
            "to stop. Check the chat template, and `assistant_only_loss`.",
        )
    ]


def _signal(figures: Mapping[str, Any], objective: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    weighs = objective["loss_type"] == "dft" or (objective["loss_type"] == "bft" and objective["token_weighting"])
    share = figures["near_zero_share"]
    if weighs and share is not None and share >= MANY_NEAR_ZERO:
        remedy = "`bft_version='v3'` or a floor such as `min_token_weight=0.1`"
        if objective["bft_version"] == "v3":
            remedy = "a floor such as `min_token_weight=0.1`, or a base model that knows the field better"
        if objective["loss_type"] == "dft":
            remedy = f"`loss_type='bft'` with {remedy}"
        found.append(
            _said(
                "warning",
                "signal_vanishes",
                f"{share:.0%} of the supervised tokens weigh under 0.01 (mean weight {figures['token_weight']:.3f}): "
                f"where the model knows nothing it will learn nothing. Try {remedy}.",
            )
        )
    confidence = figures["group_confidence"]
    if confidence is not None and confidence >= SURE:
        found.append(
            _said(
                "note",
                "known",
                f"The model is sure of this text already (mean group confidence {confidence:.2f}), so that samples "
                f"weigh {figures['sample_weight']:.2f} on average. There may be little to learn.",
            )
        )
    return found


def _window(figures: Mapping[str, Any], objective: Mapping[str, Any]) -> list[dict[str, str]]:
    targets = figures["samples"] - figures["without_target"]
    uses = objective["loss_type"] == "bft" and (objective["sample_weighting"] or objective["bft_version"] == "v3")
    if not uses or not targets or figures["windowed"] >= FEW_WINDOWED * targets:
        return []
    return [
        _said(
            "warning",
            "window_never_acts",
            f"{figures['windowed']} of {targets} samples are long enough for a window of "
            f"`group_size={objective['group_size']}` to act (median answer {figures['median_length']:.0f} tokens): "
            "for the others the group confidence is the mean over the whole answer. Lower `group_size` to below the "
            "typical answer if that is not meant.",
        )
    ]


def _repeats(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    if figures["duplicates"]:
        found.append(
            _said(
                "warning",
                "duplicates",
                f"{figures['duplicates']} of all {figures['rows']} rows repeat an earlier row word for word.",
            )
        )
    if figures["ambiguous_prompts"]:
        found.append(
            _said(
                "note",
                "ambiguous",
                f"{figures['ambiguous_prompts']} prompts come with different answers in different rows.",
            )
        )
    return found
