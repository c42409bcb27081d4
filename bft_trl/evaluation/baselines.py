"""Baselines of a task: answers that need no model of biology, and an over-representation test."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.evaluation.names import Scorer, score_names

# On GeneAgent's GO sets its ROUGE-1 is higher than that of GPT-4's recorded answers: 39 % contain "regulation of".
CONSTANT = "regulation of cell process"
# Words of full names of genes that say nothing about a process, or are shared by most names.
_COMMON_WORDS = ("and", "the", "for", "with", "like", "member", "family", "protein", "subunit", "type", "domain")
_MOST_COMMON = 3


def name_baselines(
    names: Sequence[str],
    genes: Sequence[Sequence[str]],
    *,
    rng: np.random.Generator,
    gene_names: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Returns one answer per gene set for each baseline.

    The first three ignore the genes: a constant, the most frequent name, another set's name. The others copy from the
    question: the genes of the set, and, with `gene_names`, the three most common words of their full names.

    Args:
        names: the true names of all sets, two or more; of equally frequent ones the first is taken.
        genes: the symbols of each set.
        rng: draws a cyclic permutation, so that no set gets its own name.
        gene_names: full name by symbol.
    """
    if len(names) < 2:
        raise ValueError(f"`names` has {len(names)} entry: baselines need two or more sets.")
    order = rng.permutation(len(names))
    others = [""] * len(names)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        others[here] = names[there]
    answers = {
        f'constant "{CONSTANT}"': [CONSTANT] * len(names),
        "most frequent name": [Counter(names).most_common(1)[0][0]] * len(names),
        "another set's name": others,
        "the genes": [", ".join(symbols) for symbols in genes],
    }
    if gene_names:
        found = [[gene_names[symbol] for symbol in symbols if symbol in gene_names] for symbols in genes]
        answers["words of the genes' names"] = [_most_common_words(texts) for texts in found]
    return answers


def _most_common_words(texts: Sequence[str]) -> str:
    """The words that most of the texts have, in the order of their first occurrence among equals."""
    words = [dict.fromkeys(re.findall("[a-z]{3,}", text.lower())) for text in texts]
    counts = Counter(word for word in chain(*words) if word not in _COMMON_WORDS)
    return " ".join(word for word, _ in counts.most_common(_MOST_COMMON))


def choice_baselines(targets: Sequence[str], n_options: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the accuracy per question, shape (N,), of guessing (1 / options) and of the most frequent label."""
    frequent = Counter(targets).most_common(1)[0][0]
    return {
        "chance": 1 / np.asarray(n_options, dtype=float),
        "most frequent answer": np.array([float(target == frequent) for target in targets]),
    }


def baseline_scores(
    documents: Sequence[Mapping[str, Any]],
    selected: Sequence[int],
    metrics: Sequence[str],
    *,
    scorer: Scorer | None,
    rng: np.random.Generator,
    gene_names: Mapping[str, str] | None = None,
) -> dict[str, pd.DataFrame]:
    """Returns the scores of each baseline of a task by name, one row per document; none for tasks of other kinds.

    Args:
        documents: all documents of the task's test set, in order. Frequencies are counted over all of them.
        selected: positions of the documents to score.
        metrics: the metrics of the task.
        scorer: of names; None for tasks that do not ask for one.
        rng: of the baseline "another set's name".
        gene_names: full name by symbol, for the baseline of words.
    """
    rows = list(selected)
    if scorer is not None and len(documents) > 1:
        names = [document["name"] for document in documents]
        genes = [document["genes"] for document in documents]
        answers = name_baselines(names, genes, rng=rng, gene_names=gene_names)
        # Together, so that every text is encoded once.
        chosen = [given[row] for given in answers.values() for row in rows]
        terms = [str(documents[row].get("id")) for row in rows] * len(answers)
        table = score_names([names[row] for row in rows] * len(answers), chosen, scorer, terms=terms)
        table = table.drop(columns="answer_rate")
        parts = np.split(np.arange(len(table)), len(answers))
        return {name: table.iloc[part] for name, part in zip(answers, parts, strict=True)}
    if rows and "acc" in metrics and all({"labels", "answer"} <= document.keys() for document in documents):
        options = [len(document["labels"]) for document in documents]
        baselines = choice_baselines([document["answer"] for document in documents], options)
        return {name: pd.DataFrame({"acc": acc[rows]}) for name, acc in baselines.items()}
    return {}


def enrichment_baseline(gene_sets: Sequence[Sequence[str]], library: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the top term of an over-representation test per gene set; "" if no gene is in the library.

    Computed by gseapy with all genes of the library as background. With a GO library on GO sets it is an oracle: the
    answers are among the terms.

    Args:
        gene_sets: symbols, compared without regard to case.
        library: term to its genes.
    """
    import gseapy
    from tqdm.auto import tqdm

    library = {name: [gene.upper() for gene in genes] for name, genes in library.items()}
    known = {gene for genes in library.values() for gene in genes}
    names = []
    for genes in tqdm(gene_sets, desc="Over-representation", leave=False):
        found = sorted({gene.upper() for gene in genes} & known)
        if not found:
            names.append("")
            continue
        table = gseapy.enrich(gene_list=found, gene_sets=library, background=len(known), outdir=None).results
        names.append(table.sort_values(["P-value", "Term"]).iloc[0]["Term"])
    return names
