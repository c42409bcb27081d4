"""Baselines of a task: answers that do not depend on the question, and an over-representation test."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.evaluation.names import Scorer, score_names

# On GeneAgent's GO sets its ROUGE-1 is higher than that of GPT-4's recorded answers: 39 % contain "regulation of".
CONSTANT = "regulation of cell process"


def name_baselines(names: Sequence[str], *, rng: np.random.Generator) -> dict[str, list[str]]:
    """Returns one name per gene set for each baseline: a constant, the most frequent name, another set's name.

    Args:
        names: the true names, two or more; of equally frequent ones the first is taken.
        rng: draws a cyclic permutation, so that no set gets its own name.
    """
    if len(names) < 2:
        raise ValueError(f"`names` has {len(names)} entry: baselines need two or more sets.")
    order = rng.permutation(len(names))
    others = [""] * len(names)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        others[here] = names[there]
    return {
        f'constant "{CONSTANT}"': [CONSTANT] * len(names),
        "most frequent name": [Counter(names).most_common(1)[0][0]] * len(names),
        "another set's name": others,
    }


def choice_baselines(targets: Sequence[str], n_options: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the accuracy per question, shape (N,), of guessing (1 / options) and of the most frequent label."""
    frequent = Counter(targets).most_common(1)[0][0]
    return {
        "chance": 1 / np.asarray(n_options, dtype=float),
        "most frequent answer": np.array([float(target == frequent) for target in targets]),
    }


def baseline_scores(
    documents: Sequence[Mapping[str, Any]], metrics: Sequence[str], *, scorer: Scorer | None, rng: np.random.Generator
) -> dict[str, pd.DataFrame]:
    """Returns the scores of each baseline of a task by name, one row per document; none for tasks of other kinds.

    Args:
        documents: the documents of the task, in order.
        metrics: the metrics of the task.
        scorer: of names; None for tasks that do not ask for one.
        rng: of the baseline "another set's name".
    """
    if scorer is not None and len(documents) > 1:
        names = [document["name"] for document in documents]
        answers = name_baselines(names, rng=rng)
        # Together, so that every text is encoded once.
        table = score_names(names * len(answers), list(chain(*answers.values())), scorer).drop(columns="answer_rate")
        parts = np.split(np.arange(len(table)), len(answers))
        return {name: table.iloc[rows] for name, rows in zip(answers, parts, strict=True)}
    if "acc" in metrics and all({"labels", "answer"} <= document.keys() for document in documents):
        options = [len(document["labels"]) for document in documents]
        baselines = choice_baselines([document["answer"] for document in documents], options)
        return {name: pd.DataFrame({"acc": acc}) for name, acc in baselines.items()}
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
