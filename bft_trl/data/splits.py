"""Seeded random parts of a table between which nothing that belongs together is torn apart."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


def split(
    table: pd.DataFrame,
    groups: Sequence[Sequence[int]],
    sizes: Mapping[str, int | None],
    *,
    rng: np.random.Generator,
) -> dict[str, pd.DataFrame]:
    """Disjoint random parts of `table`, by name; each keeps the table's order.

    Args:
        table: the rows.
        groups: row numbers (from 0) that stay together; every row is in one group.
        sizes: rows of each part, filled in this order; None for the last one takes all that remain.
        rng: decides the order. Groups that do not fit a part go to the next.

    Raises ValueError where there are not enough rows.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}: {size} rows asked for; ask for 1 or more.")
    order = [groups[i] for i in rng.permutation(len(groups))]
    parts = {}
    for name, size in sizes.items():
        taken: list[int] = []
        remaining = []
        for group in order:
            if size is None or len(taken) + len(group) <= size:
                taken += group
            else:
                remaining.append(group)
        if len(taken) < (1 if size is None else size):
            raise ValueError(
                f"{name}: {size or 'some'} rows asked for, {len(taken)} left of {len(table)} after the parts before. "
                "Ask for fewer, or let more rows in."
            )
        parts[name] = table.iloc[sorted(taken)].reset_index(drop=True)
        order = remaining
    return parts
