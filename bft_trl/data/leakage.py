"""Leakage of evaluation data into training data: equal ids, equal texts, overlapping gene sets and shared phrases."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

JACCARD = 0.8
# Length in words of a phrase that two questions share only if one was copied, as for GPT-3 (arXiv 2005.14165, C).
PHRASE = 13
# A phrase that occurs in more texts than this is a common phrase, not a leak; GPT-3's rule as well.
COMMON = 10
REASONS = ("id", "text", "genes", "phrase")


def normalize_text(text: str) -> str:
    """Returns lower-case words separated by single spaces: 'DNA-repair, ' becomes 'dna repair'."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def overlapping_sets(
    sets: Sequence[Iterable[str]], others: Sequence[Iterable[str]]
) -> Iterator[tuple[int, int, float]]:
    """Yields (i, j, Jaccard index) for each `sets[i]` and `others[j]` with a Jaccard index of at least `JACCARD`.

    Symbols are compared without regard to case. The cost is the number of common genes over all pairs.
    """
    other_sets = [frozenset(gene.upper() for gene in genes) for genes in others]
    with_gene = defaultdict(list)
    for j, genes in enumerate(other_sets):
        for gene in genes:
            with_gene[gene].append(j)
    for i, symbols in enumerate(sets):
        genes = frozenset(gene.upper() for gene in symbols)
        common = Counter(j for gene in genes for j in with_gene.get(gene, ()))
        for j, count in common.items():
            jaccard = count / (len(genes) + len(other_sets[j]) - count)
            if jaccard >= JACCARD:
                yield i, j, jaccard


def shared_phrases(texts: Sequence[str], others: Sequence[str]) -> set[tuple[int, int]]:
    """Returns the pairs (i, j) for which `texts[i]` and `others[j]` share `PHRASE` consecutive normalized words.

    Phrases in more than `COMMON` different texts on one side do not count.
    """
    rows, other_rows = _rows_by_text(texts), _rows_by_text(others)
    other_phrases = _texts_by_phrase(other_rows)
    phrases = _texts_by_phrase(rows, only=other_phrases)
    pairs = {(text, other) for phrase, found in phrases.items() for text in found for other in other_phrases[phrase]}
    return {(i, j) for text, other in pairs for i in rows[text] for j in other_rows[other]}


def find_leaks(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Finds the training rows that leak a test row.

    Args:
        train, test: documents (see [`bft_trl.data.documents.read_documents`]) or gene sets: columns id (may be
            missing), text or name and, where they apply, genes and body, the text whose phrases are compared.

    Returns one row per pair and reason: train_row, test_row (counted from 0), train_id, test_id, reason (one of
    `REASONS`) and jaccard (in [0.8, 1] for the reason "genes", else NaN).
    """
    ids = [table["id"].astype(str).where(table["id"].notna()) for table in (train, test)]
    texts = [table["name" if {"name", "genes"} <= set(table) else "text"].astype(str) for table in (train, test)]
    found = [
        _equal_rows("id", *ids),
        _equal_rows("text", *(text.map(normalize_text).replace("", None) for text in texts)),
    ]
    if "genes" in train and "genes" in test:
        pairs = sorted(overlapping_sets(train["genes"].tolist(), test["genes"].tolist()))
        found.append(pd.DataFrame(pairs, columns=["train_row", "test_row", "jaccard"]).assign(reason="genes"))
    else:  # long names of processes share phrases without being the same process
        bodies = [table.get("body", text).tolist() for table, text in zip((train, test), texts, strict=True)]
        phrases = sorted(shared_phrases(*bodies))
        found.append(pd.DataFrame(phrases, columns=["train_row", "test_row"]).assign(reason="phrase"))
    leaks = pd.concat([part for part in found if len(part)] or found[:1], ignore_index=True)
    leaks = leaks.reindex(columns=["train_row", "test_row", "reason", "jaccard"]).astype({"jaccard": float})
    names = [table["id"].where(table["id"].notna(), "row " + table.index.astype(str)) for table in (train, test)]
    leaks.insert(2, "train_id", names[0].to_numpy()[leaks["train_row"].astype(int)])
    leaks.insert(3, "test_id", names[1].to_numpy()[leaks["test_row"].astype(int)])
    return leaks


def without_leaks(table: pd.DataFrame, documents: pd.DataFrame, tests: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Returns the rows of `table` whose `documents` (in the same order) do not leak into any of `tests`."""
    leaked = {row for test in tests for row in find_leaks(documents, test)["train_row"]}
    return table.drop(index=table.index[sorted(leaked)]).reset_index(drop=True)


def connected_sets(table: pd.DataFrame) -> list[list[int]]:
    """Returns groups of row numbers that a split keeps together: chains of sets that share their name or genes."""
    import networkx

    graph = networkx.empty_graph(len(table))
    genes = table["genes"].tolist()
    graph.add_edges_from((i, j) for i, j, _ in overlapping_sets(genes, genes))
    for rows in _rows_by_text(table["name"]).values():
        networkx.add_path(graph, rows)
    return [sorted(rows) for rows in networkx.connected_components(graph)]


def split(
    table: pd.DataFrame, groups: Sequence[Sequence[int]], sizes: Mapping[str, int | None], *, rng: np.random.Generator
) -> dict[str, pd.DataFrame]:
    """Splits `table` into disjoint random parts, in each of which the rows keep their order.

    Args:
        table: rows.
        groups: row numbers (from 0) that stay together; each row is in one group.
        sizes: rows of each part, filled in this order; None takes all that remain.
        rng: decides the order. A group that does not fit into a part is left for the next.

    Raises ValueError if there are not enough rows.
    """
    order = [groups[i] for i in rng.permutation(len(groups))]
    parts = {}
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}: {size} rows requested; request 1 or more.")
        taken: list[int] = []
        remaining = []
        for group in order:
            if size is None or len(taken) + len(group) <= size:
                taken += group
            else:
                remaining.append(group)
        if len(taken) < (1 if size is None else size):
            raise ValueError(
                f"{name}: {size or 'some'} rows requested, {len(taken)} left of {len(table)} after the parts before. "
                "Request fewer."
            )
        parts[name] = table.iloc[sorted(taken)].reset_index(drop=True)
        order = remaining
    return parts


def _equal_rows(reason: str, train: pd.Series, test: pd.Series) -> pd.DataFrame:
    """Returns the pairs of rows with the same value; missing values match no value."""
    tables = [
        pd.DataFrame({"key": column.to_numpy(), row: range(len(column))}).dropna()
        for column, row in ((train, "train_row"), (test, "test_row"))
    ]
    return pd.merge(*tables, on="key")[["train_row", "test_row"]].assign(reason=reason)


def _rows_by_text(texts: Iterable[str]) -> dict[str, list[int]]:
    """Returns the row numbers of each normalized text."""
    rows = defaultdict(list)
    for i, text in enumerate(texts):
        rows[normalize_text(text)].append(i)
    return rows


def _texts_by_phrase(texts: Iterable[str], *, only: Mapping[str, object] | None = None) -> dict[str, list[str]]:
    """Returns the texts of each phrase (of those in `only`), without phrases of more than `COMMON` texts."""
    found: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        words = text.split()
        for phrase in {" ".join(words[i : i + PHRASE]) for i in range(len(words) - PHRASE + 1)}:
            if (only is None or phrase in only) and len(found[phrase]) <= COMMON:
                found[phrase].append(text)
    return {phrase: users for phrase, users in found.items() if len(users) <= COMMON}
