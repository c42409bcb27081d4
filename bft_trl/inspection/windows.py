"""Windows by how their unsure tokens lie: alone in a sure text, or in runs.

The paper (https://arxiv.org/abs/2511.21075, v2 and v3) tells sparse-low windows, whose unsure tokens are a matter of
style, from dense-low ones, which hold knowledge that the model lacks, by the share of unsure tokens in a window and by
their longest run. Its thresholds were not at hand: those below are ours.
"""

from collections.abc import Sequence
from itertools import groupby

LOW = 0.2  # a token is unsure below this probability
DENSE_SHARE = 0.5
DENSE_RUN = 8
KINDS = ("sure", "sparse-low", "dense-low")


def window_kind(probs: Sequence[float]) -> str:
    """One of `KINDS` for the probabilities of a window's tokens."""
    low = [value < LOW for value in probs]
    if not any(low):
        return "sure"
    longest = max(len(list(run)) for is_low, run in groupby(low) if is_low)
    dense = sum(low) >= DENSE_SHARE * len(low) or longest >= DENSE_RUN
    return "dense-low" if dense else "sparse-low"


def window_kinds(probs: Sequence[float], *, group_size: int) -> dict[str, int]:
    """How many windows of each kind a sample has: `group_size` tokens each, side by side, the last may be shorter.

    Windows that overlap would count the middle of a long sample more often than its ends.
    """
    counts = dict.fromkeys(KINDS, 0)
    for start in range(0, len(probs), group_size):
        counts[window_kind(probs[start : start + group_size])] += 1
    return counts
