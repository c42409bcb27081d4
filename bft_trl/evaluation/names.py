"""All scores of proposed process names, by GeneAgent's protocol."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from bft_trl.evaluation.rouge import cleaned_answer, cleaned_reference, rouge_scores
from bft_trl.evaluation.similarity import background_percentile, cosine_similarity
from bft_trl.prompts import has_process_line, parse_process

# Raised when a score changes for the same answer; recorded with every result.
SCORER_VERSION = "2"
# What a table of scored answers has beside its metrics.
ANSWER_COLUMNS = ("model", "kind", "id", "name", "predicted_name")
# How the prompt of Hu et al. has a model say that it sees no process.
REFUSAL = "system of unrelated proteins"


class TextEncoder(Protocol):
    """Texts to unit vectors of shape (N, D): see [`bft_trl.encoders.Encoder`]."""

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class Background(NamedTuple):
    """Background names as unit vectors of shape (M, D), and the hash of what they were made from."""

    vectors: np.ndarray
    fingerprint: str


def recorded_name(answer: str | None) -> str | None:
    """The name in a recorded answer: after "Process:" where that is written, else the whole of a single line.

    None where there is none: nothing, or several lines without "Process:".
    """
    if not isinstance(answer, str):  # how pandas reads an empty field
        return None
    if has_process_line(answer):
        return parse_process(answer)
    lines = answer.strip().splitlines()
    return lines[0].strip().strip('"').strip() or None if len(lines) == 1 else None


def score_names(
    names: Sequence[str],
    answers: Sequence[str | None],
    *,
    encoder: TextEncoder | None = None,
    background: Background | None = None,
) -> pd.DataFrame:
    """One row per gene set: rouge1, rouge2, rougeL (0 to 1), named (0 or 1), and what encoder and background allow.

    Args:
        names: the true names.
        answers: the proposed names; None where an answer holds none. It scores 0 everywhere, `named` says how many.
        encoder: adds similarity, the cosine of the cleaned texts, -1 to 1.
        background: adds percentile (0 to 100), the rank of the true name among the background names, both as they
            are written; the answer is cleaned.

    A refusal to name is no name, but is scored as the text that it is.
    """
    if background is not None and encoder is None:
        raise ValueError("`background` needs `encoder`: it ranks by the encoder's similarity.")
    texts = [cleaned_answer(answer or "") for answer in answers]
    texts = [text if any(map(str.isalnum, text)) else "" for text in texts]  # "..." is no name
    empty = np.array([not text for text in texts], dtype=bool)
    table = pd.DataFrame(rouge_scores(names, texts))
    if encoder is not None:
        vectors = encoder.encode(texts)
        similarity = cosine_similarity(vectors, encoder.encode([cleaned_reference(name) for name in names]))
        table["similarity"] = np.where(empty, 0.0, similarity)
        if background is not None:
            percentile = background_percentile(vectors, encoder.encode(names), background.vectors)
            table["percentile"] = np.where(empty, 0.0, percentile)
    table["named"] = [float(bool(text) and text.lower() != REFUSAL) for text in texts]
    return table
