"""ROUGE of proposed names, by GeneAgent's protocol."""

import re
from collections.abc import Sequence

import numpy as np

ROUGE = ("rouge1", "rouge2", "rougeL")


def cleaned_reference(name: str) -> str:
    """A true name as GeneAgent compares it: without double quotes, with spaces for slash, comma and hyphen."""
    return name.replace('"', "").translate(str.maketrans("/,-", "   ")).strip()


def cleaned_answer(name: str) -> str:
    """A proposed name as GeneAgent compares it: as [`cleaned_reference`], and without what is in brackets."""
    # Up to the last closing bracket: beyond it nothing matches, and looking would take quadratic time.
    end = name.rfind(")") + 1
    return cleaned_reference(re.sub(r"\([^)]*\)", "", name[:end]) + name[end:])


def rouge_scores(references: Sequence[str], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of each answer, each of shape (N,), F-measures in [0, 1].

    By the package rouge_score with stemming (Porter; words of more than three letters), reference first, both texts
    cleaned. An empty answer scores 0, and so does one without Latin letters or digits: the package knows no others.

    Source: GeneAgent (Nature Methods 2025), evaluate.ipynb.
    """
    from rouge_score.rouge_scorer import RougeScorer  # takes two seconds to import
    from tqdm.auto import tqdm

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = {metric: np.zeros(len(answers)) for metric in ROUGE}
    pairs = tqdm(zip(references, answers, strict=True), "ROUGE", len(answers), disable=len(answers) < 20_000)
    for i, (reference, answer) in enumerate(pairs):
        for metric, score in scorer.score(cleaned_reference(reference), cleaned_answer(answer)).items():
            scores[metric][i] = score.fmeasure
    return scores
