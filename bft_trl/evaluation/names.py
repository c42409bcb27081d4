"""Scores of proposed process names, by GeneAgent's protocol."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from bft_trl.data.evaluation_sets import load_background
from bft_trl.evaluation.rouge import cleaned_answer, cleaned_reference, rouge_scores
from bft_trl.evaluation.similarity import background_percentile, cosine_similarity
from bft_trl.models import Encoder, cached_vectors, load_encoder
from bft_trl.prompts import has_process_line, parse_process

if TYPE_CHECKING:
    from bft_trl.evaluation.ontology import Ontology

# Raised when a score changes for the same answer; recorded with every result.
SCORER_VERSION = "3"
# The answer that the prompt of Hu et al. asks for if there is no common process.
REFUSAL = "system of unrelated proteins"


# Words of an answer that lists the genes instead of naming their process.
_FILLERS = (
    "a",
    "and",
    "the",
    "of",
    "in",
    "with",
    "involved",
    "including",
    "includes",
    "set",
    "list",
    "gene",
    "genes",
    "proteins",
)
ONTOLOGY_METRICS = ("go_hit", "go_lin")


class Scorer(NamedTuple):
    """What names are scored with besides ROUGE."""

    encoder: Encoder | None = None
    background: np.ndarray | None = None  # unit vectors of the background names, (M, D)
    background_hash: str | None = None
    ontology: "Ontology | None" = None

    @property
    def settings(self) -> dict[str, Any]:
        """What must agree between scores that are compared."""
        found = {
            "scorer_version": SCORER_VERSION,
            "encoder_fingerprint": self.encoder and self.encoder.fingerprint,
            "background_fingerprint": self.background_hash,
        }
        return found | ({"ontology_fingerprint": self.ontology.fingerprint} if self.ontology else {})


def load_scorer(
    encoder: str,
    background: str | Path | None,
    *,
    data_dir: str | Path | None = None,
    ontology: str | Path | None = None,
) -> Scorer:
    """Returns the scorer of names. Raises ValueError or OSError that names the option.

    Args:
        encoder: Hub id or folder; "none" leaves similarity and percentile out.
        background: file of background names; None takes those of `data_dir`, else of Hu et al.; "none" leaves the
            percentile out.
        data_dir: folder with the data of the tasks.
        ontology: OBO file, for scores of GO sets by the Gene Ontology.
    """
    if encoder == "none":
        if ontology is not None:
            raise ValueError(f"`ontology={str(ontology)!r}` needs `encoder`: it finds the term nearest to a name.")
        return Scorer()
    names = None if background == "none" else load_background(background, data_dir=data_dir)
    processes = None
    if ontology is not None:
        from bft_trl.evaluation.ontology import load_ontology

        processes = load_ontology(Path(ontology), lambda: load_encoder(encoder))
    loaded = load_encoder(encoder)
    vectors, content = (None, None) if names is None else cached_vectors(loaded, names)
    return Scorer(loaded, vectors, content, processes)


def recorded_name(answer: str | None) -> str | None:
    """Returns the name in a recorded answer, after "Process:" or as a single line, or None if there is no name."""
    if not isinstance(answer, str):  # how pandas reads an empty field
        return None
    if has_process_line(answer):
        return parse_process(answer)
    lines = answer.strip().splitlines()
    return lines[0].strip().strip('"').strip() or None if len(lines) == 1 else None


def copies_genes(name: str, genes: Sequence[str]) -> bool:
    """Returns whether a proposed name consists mostly of genes of its own set: over two genes for each other word.

    Numbers and words such as "genes", "and" or "including" are not counted, and case, order, separators, text in
    brackets and hyphens in a symbol do not matter. "JAK2/STAT3 signaling" is a name: two genes and one other word.
    """
    symbols = sorted({gene.lower() for gene in genes if gene}, key=len, reverse=True)
    any_symbol = "|".join(
        "[-\\s]?".join(map(re.escape, re.findall(r"\d+|[^\W\d]+|[.@]", symbol))) for symbol in symbols
    )
    if not any_symbol:
        return False
    rest, n_genes = re.subn(rf"(?<![^\W_])(?:{any_symbol})(?![^\W_])", " ", cleaned_answer(name).lower())
    others = [word for word in re.findall(r"[^\W_]+", rest) if not word.isdigit() and word not in _FILLERS]
    return n_genes > 2 * len(others)


def proposed_name(name: str | None, genes: Sequence[str]) -> str | None:
    """Returns `name`, or None if it is a copy of the genes: then the set counts as unanswered."""
    return None if name is None or copies_genes(name, genes) else name


def score_names(
    names: Sequence[str],
    answers: Sequence[str | None],
    scorer: Scorer | None = None,
    *,
    terms: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Returns rouge1, rouge2, rougeL (0 to 1), similarity (-1 to 1), percentile (0 to 100) and answer_rate (0 or 1).

    Args:
        names: the true names, (N,).
        answers: the proposed names, (N,); None for an answer without a name, which scores 0 in every metric. The
            refusal of Hu et al.'s prompt has answer_rate 0 too, but is scored as the text that it is.
        scorer: its encoder adds similarity, the cosine of the cleaned texts; its background adds percentile, the rank
            of the true name among the background names, both as they are written; its ontology adds go_hit and
            go_lin of the term nearest to the answer, see [`term_scores`].
        terms: GO ids of the true names, for the ontology; other ids give NaN.
    """
    encoder, background, _, ontology = scorer or Scorer()
    texts = [cleaned_answer(answer or "") for answer in answers]
    texts = [text if any(map(str.isalnum, text)) else "" for text in texts]  # "..." is no name
    empty = np.array([not text for text in texts], dtype=bool)
    table = pd.DataFrame(rouge_scores(names, texts))
    if encoder is not None:
        vectors = encoder.encode(texts)
        similarity = cosine_similarity(vectors, encoder.encode([cleaned_reference(name) for name in names]))
        table["similarity"] = np.where(empty, 0.0, similarity)
        if background is not None:
            percentile = background_percentile(vectors, encoder.encode(names), background)
            table["percentile"] = np.where(empty, 0.0, percentile)
        if ontology is not None and any(term.startswith("GO:") for term in terms or ()):
            from bft_trl.evaluation.ontology import term_scores

            pairs = zip(terms or (), ontology.nearest(vectors), strict=True)
            found = np.array([term_scores(ontology, truth, nearest) for truth, nearest in pairs]).reshape(-1, 2)
            zero = empty[:, None] & ~np.isnan(found)
            table[list(ONTOLOGY_METRICS)] = np.where(zero, 0.0, found)
    table["answer_rate"] = [float(bool(text) and text.lower() != REFUSAL) for text in texts]
    return table
