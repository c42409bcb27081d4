"""Does the training data hold what it will be tested on? By id, text and phrases, and by overlap of gene sets."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

JACCARD = 0.8
# Words in a row that two questions share only if one was copied; the usual length since GPT-3 (arXiv 2005.14165, C).
PHRASE = 13
# A phrase of more texts than this is a form of words, not content; GPT-3's rule as well.
COMMON = 10
REASONS = ("id", "text", "genes", "phrase")


def normalised_text(text: str) -> str:
    """Lower case with runs of anything but letters and digits as one space: 'DNA-repair, ' equals 'dna repair'."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


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


def shared_phrases(texts: Sequence[str], others: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs (i, j) for which `texts[i]` and `others[j]` have `PHRASE` words in a row in common, once normalised.

    Phrases of more than `COMMON` different texts on one side are left aside: "which of the following ..." is no leak.
    """
    # Equal texts count once, or copies of one question would make its phrases common.
    copies = _positions(texts)
    holders: dict[str, list[str]] = defaultdict(list)
    other_copies = _positions(others)
    for text in other_copies:
        for phrase in _phrases(text):
            holders[phrase].append(text)
    holders = {phrase: found for phrase, found in holders.items() if len(found) <= COMMON}
    seen: dict[str, list[str]] = defaultdict(list)
    for text in copies:
        for phrase in _phrases(text):
            if phrase in holders and len(seen[phrase]) <= COMMON:
                seen[phrase].append(text)
    pairs = {
        (text, other)
        for phrase, found in seen.items()
        if len(found) <= COMMON
        for text in found
        for other in holders[phrase]
    }
    return {(i, j) for text, other in pairs for i in copies[text] for j in other_copies[other]}


def find_leaks(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Every way in which a training row gives a test row away, one row each.

    Args:
        train, test: documents as [`bft_trl.data.documents.read_documents`] gives them, or gene sets: columns `id`
            (None where there is none), `text` (or `name`), and, where they have them, `genes` and `body`, the whole
            text whose phrases are compared.

    Returns:
        Columns train_row, test_row (counted from 0), train_id, test_id, reason (one of `REASONS`) and jaccard (NaN
        unless the reason is "genes").
    """
    ids = [table["id"].astype(str).where(table["id"].notna()) for table in (train, test)]
    # A gene set's name is its text, whatever else its table calls so.
    texts = [table["name" if {"name", "genes"} <= set(table) else "text"].astype(str) for table in (train, test)]
    found = [
        _equal("id", *ids),
        _equal("text", *(text.map(normalised_text).replace("", None) for text in texts)),
    ]
    if "genes" in train and "genes" in test:
        pairs = overlapping_sets(train["genes"].tolist(), test["genes"].tolist())
        found.append(pd.DataFrame(pairs, columns=["train_row", "test_row", "jaccard"]).assign(reason="genes"))
    else:  # names of processes have long phrases in common that give nothing away
        bodies = [table.get("body", text) for table, text in zip((train, test), texts, strict=True)]
        phrases = sorted(shared_phrases(bodies[0].tolist(), bodies[1].tolist()))
        found.append(pd.DataFrame(phrases, columns=["train_row", "test_row"]).assign(reason="phrase"))
    leaks = pd.concat([part for part in found if len(part)] or found[:1], ignore_index=True)
    leaks = leaks.reindex(columns=["train_row", "test_row", "reason", "jaccard"]).astype({"jaccard": float})
    names = [table["id"].where(table["id"].notna(), "row " + table.index.astype(str)) for table in (train, test)]
    leaks.insert(2, "train_id", names[0].to_numpy()[leaks["train_row"].astype(int)])
    leaks.insert(3, "test_id", names[1].to_numpy()[leaks["test_row"].astype(int)])
    return leaks


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
    for i, name in enumerate(table["name"].map(normalised_text)):
        parent[root(i)] = root(first.setdefault(name, i))
    groups = defaultdict(list)
    for i in range(len(table)):
        groups[root(i)].append(i)
    return list(groups.values())


def _equal(reason: str, train: pd.Series, test: pd.Series) -> pd.DataFrame:
    """Pairs of rows with the same value; missing values equal nothing."""
    tables = [
        pd.DataFrame({"key": column.to_numpy(), row: range(len(column))}).dropna()
        for column, row in ((train, "train_row"), (test, "test_row"))
    ]
    return pd.merge(*tables, on="key")[["train_row", "test_row"]].assign(reason=reason)


def _positions(texts: Sequence[str]) -> dict[str, list[int]]:
    found = defaultdict(list)
    for i, text in enumerate(texts):
        found[normalised_text(text)].append(i)
    return found


def _phrases(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + PHRASE]) for i in range(len(words) - PHRASE + 1)}
