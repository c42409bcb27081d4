"""Does the training data hold what it will be tested on? By id, by name, and by overlap of the gene sets."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

JACCARD = 0.8


def normalised_name(name: str) -> str:
    """Lower case with runs of anything but letters and digits as one space: 'DNA-repair, ' equals 'dna repair'."""
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def overlapping_sets(
    sets: Sequence[Iterable[str]], others: Sequence[Iterable[str]], *, threshold: float = JACCARD
) -> Iterator[tuple[int, int, float]]:
    """Pairs (i, j, Jaccard index) of `sets[i]` and `others[j]` that share at least `threshold` of their genes.

    Symbols are compared without regard to case.

    Pairs without a common gene are never looked at: the cost is the number of common genes over all pairs.
    """
    other_sets = [frozenset(gene.upper() for gene in genes) for genes in others]
    holders = defaultdict(list)
    for j, genes in enumerate(other_sets):
        for gene in genes:
            holders[gene].append(j)
    for i, symbols in enumerate(sets):
        genes = frozenset(gene.upper() for gene in symbols)
        common = Counter(j for gene in genes for j in holders.get(gene, ()))
        for j, count in common.items():
            jaccard = count / (len(genes) + len(other_sets[j]) - count)
            if jaccard >= threshold:
                yield i, j, jaccard


def find_leaks(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Every way in which a training set gives a test set away, one row each.

    Args:
        train, test: gene sets with the columns id, name, genes.

    Returns:
        Columns train_id, test_id, reason ("id", "name" or "genes") and jaccard (NaN unless the reason is "genes").
    """
    found = []
    for reason, keys in (("id", lambda t: t["id"].astype(str)), ("name", lambda t: t["name"].map(normalised_name))):
        pairs = pd.merge(
            pd.DataFrame({"key": keys(train), "train_id": train["id"]}),
            pd.DataFrame({"key": keys(test), "test_id": test["id"]}),
            on="key",
        )
        found.append(pairs[["train_id", "test_id"]].assign(reason=reason, jaccard=float("nan")))
    overlaps = [
        (train["id"].iloc[i], test["id"].iloc[j], "genes", jaccard)
        for i, j, jaccard in overlapping_sets(train["genes"].tolist(), test["genes"].tolist())
    ]
    found.append(pd.DataFrame(overlaps, columns=["train_id", "test_id", "reason", "jaccard"]))
    return pd.concat([part for part in found if len(part)] or found[:1], ignore_index=True)


def connected_sets(table: pd.DataFrame) -> list[list[int]]:
    """Groups of row numbers that no split may tear apart: chains of sets that share their name or their genes."""
    parent = list(range(len(table)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    genes = table["genes"].tolist()
    for i, j, _ in overlapping_sets(genes, genes):
        parent[root(i)] = root(j)
    first: dict[str, int] = {}
    for i, name in enumerate(table["name"].map(normalised_name)):
        parent[root(i)] = root(first.setdefault(name, i))
    groups = defaultdict(list)
    for i in range(len(table)):
        groups[root(i)].append(i)
    return list(groups.values())
