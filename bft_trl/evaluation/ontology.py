"""Scores of proposed names by the Gene Ontology: how far the term nearest to a name is from the true term."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bft_trl.data.gene_ontology import NAMESPACE, read_obo
from bft_trl.models import Encoder, cached_vectors

# Largest number of edges between the nearest term and the true term that counts as a hit.
MAX_STEPS = 2
RELATIONS = ("is_a", "part_of")
_CHUNK = 128


class Ontology(NamedTuple):
    """The biological processes of an ontology, with the vectors of their names."""

    graph: Any  # networkx.DiGraph from each term to its parents over is_a and part_of
    information: dict[str, float]  # information content by term
    primary: dict[str, str]  # term by its id and by its alternative ids
    terms: list[str]
    vectors: np.ndarray  # unit vectors of the terms' names, (T, D)
    fingerprint: str  # of encoder, names, ids and relations

    def nearest(self, vectors: np.ndarray) -> list[str]:
        """Returns the term whose name is most similar to each of the unit vectors, (N, D) -> N ids."""
        starts = range(0, len(vectors), _CHUNK)
        places = [(vectors[start : start + _CHUNK] @ self.vectors.T).argmax(axis=1) for start in starts]
        return [self.terms[place] for place in np.concatenate(places)] if places else []


def load_ontology(path: Path, load: Callable[[], Encoder]) -> Ontology:
    """Returns the biological processes of an OBO file.

    Args:
        path: OBO file.
        load: returns the encoder of the names; called after the file was read.

    Raises FileNotFoundError or ValueError that names the file.
    """
    import networkx

    full = read_obo(path)
    default = full.graph.get("default-namespace", [None])[0]
    named = {
        term: attributes
        for term, attributes in full.nodes(data=True)
        if attributes.get("namespace", default) == NAMESPACE and "name" in attributes
    }
    if not named:
        raise ValueError(f"`ontology={str(path)!r}` has no term of the namespace {NAMESPACE}. Use go-basic.obo.")
    graph = networkx.DiGraph()
    graph.add_nodes_from(named)
    edges = full.edges(keys=True)
    graph.add_edges_from((a, b) for a, b, key in edges if key in RELATIONS and a in named and b in named)
    primary = {other: term for term, attributes in named.items() for other in attributes.get("alt_id", [])}
    names = [attributes["name"] for attributes in named.values()]
    vectors, content = cached_vectors(load(), names)
    relations = json.dumps([content, list(named), sorted(graph.edges)])
    fingerprint = hashlib.sha256(relations.encode()).hexdigest()[:16]
    return Ontology(graph, _information(graph), primary | {t: t for t in named}, list(named), vectors, fingerprint)


def _information(graph: Any) -> dict[str, float]:
    """Information content of each term: 1 - log(descendants + 1) / log(terms), in [0, 1].

    Intrinsic, from the ontology alone: Seco et al., ECAI 2004.
    """
    import networkx

    size = math.log(max(2, len(graph)))
    return {term: 1 - math.log(len(networkx.ancestors(graph, term)) + 1) / size for term in graph}


def term_scores(ontology: Ontology, truth: str, proposed: str) -> tuple[float, float]:
    """Returns whether a proposed term is a hit (0 or 1), and Lin's similarity to the true term (0 to 1).

    A hit is the true term, or an ancestor or descendant of it within two edges. Lin's similarity (ICML 1998) is twice
    the information content of the most informative common ancestor over the sum of the two terms'. Both are NaN if the
    ontology does not have the true term.
    """
    import networkx

    if truth not in ontology.primary:
        return math.nan, math.nan
    truth, graph, information = ontology.primary[truth], ontology.graph, ontology.information
    ways = ((proposed, truth), (truth, proposed))
    hit = any(end in networkx.single_source_shortest_path_length(graph, start, MAX_STEPS) for start, end in ways)
    common = ({truth} | networkx.descendants(graph, truth)) & ({proposed} | networkx.descendants(graph, proposed))
    total = information[truth] + information[proposed]
    shared = max((information[term] for term in common), default=0.0)
    return float(hit), 2 * shared / total if total else float(truth == proposed)
