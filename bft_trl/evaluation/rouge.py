"""ROUGE of proposed names, by GeneAgent's protocol."""

import re
from collections.abc import Sequence

import numpy as np

ROUGE = ("rouge1", "rouge2", "rougeL")


def cleaned_reference(name: str) -> str:
    """Returns a true name as GeneAgent compares it: without double quotes, with spaces for slash, comma and hyphen."""
    return name.replace('"', "").translate(str.maketrans("/,-", "   ")).strip()


def cleaned_answer(name: str) -> str:
    """Returns a proposed name as GeneAgent compares it: as [`cleaned_reference`], and without text in brackets."""
    # Only up to the last closing bracket: searching beyond it takes quadratic time.
    end = name.rfind(")") + 1
    return cleaned_reference(re.sub(r"\([^)]*\)", "", name[:end]) + name[end:])


def rouge_scores(references: Sequence[str], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns ROUGE-1, ROUGE-2 and ROUGE-L of each answer, each of shape (N,), F-measures in [0, 1].

    By the package rouge_score with stemming (Porter; words of more than three letters), reference first, both texts
    cleaned. An answer without Latin letters or digits scores 0: the package has no other tokens.

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
