"""Scores of a written answer to a multiple-choice question."""

from collections.abc import Sequence

from bft_trl.prompts import parse_choice


def choice_scores(answer: str, *, labels: Sequence[str], target: str) -> dict[str, float]:
    """Returns `acc` (1 for the right label, else 0) and `readable` (1 if exactly one label is parsed, else 0)."""
    label = parse_choice(answer, labels)
    return {"acc": float(label == target), "readable": float(label is not None)}
