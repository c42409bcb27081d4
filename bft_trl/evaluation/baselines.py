"""Answers that any model should beat: those that know nothing of the question, and an over-representation test."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

# On GeneAgent's GO sets it scores more ROUGE-1 than GPT-4's recorded answers: 39 % of the names hold "regulation of".
CONSTANT = "regulation of cell process"


def name_floors(names: Sequence[str], *, rng: np.random.Generator) -> dict[str, list[str]]:
    """Answers of one name per gene set that ignore the genes: a constant, the most frequent name, another set's name.

    Args:
        names: the true names, two or more; of equally frequent ones the first is taken.
        rng: deals every set the name of another set: a random cycle, so that none keeps its own.
    """
    if len(names) < 2:
        raise ValueError(f"`names` has {len(names)} entry: floors need two or more sets.")
    order = rng.permutation(len(names))
    dealt = [""] * len(names)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        dealt[here] = names[there]
    return {
        f'constant "{CONSTANT}"': [CONSTANT] * len(names),
        "most frequent name": [Counter(names).most_common(1)[0][0]] * len(names),
        "another set's name": dealt,
    }


def choice_floors(targets: Sequence[str], n_options: Sequence[int]) -> dict[str, np.ndarray]:
    """Accuracy per question, shape (N,), of guessing (1 / options) and of always giving the most frequent label."""
    frequent = Counter(targets).most_common(1)[0][0]
    return {
        "chance": 1 / np.asarray(n_options, dtype=float),
        "most frequent answer": np.array([float(target == frequent) for target in targets]),
    }


def enrichment_floor(gene_sets: Sequence[Sequence[str]], library: Mapping[str, Sequence[str]]) -> list[str]:
    """The top term of an over-representation test per gene set; "" where no gene is in the library.

    By gseapy, background: all genes of the library. On GO sets a GO library is an oracle: it holds the answers.

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
