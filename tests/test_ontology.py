"""Scores by the Gene Ontology on an ontology of seven terms, by hand."""

import math

import numpy as np
import pytest

from bft_trl.evaluation.names import Scorer, score_names
from bft_trl.evaluation.ontology import load_ontology, term_scores

# root <- a <- b <- c <- d; root <- e; c is part of e as well.
PARENTS = {"root": [], "a": ["is_a: GO:root"], "b": ["is_a: GO:a"], "c": ["is_a: GO:b", "relationship: part_of GO:e"]}
PARENTS |= {"d": ["is_a: GO:c"], "e": ["is_a: GO:root"], "f": ["is_a: GO:e", "relationship: regulates GO:a"]}
LETTERS = "abcdefort"


class Letters:
    """Unit vectors of the letters of a text."""

    fingerprint = "letters"
    model = "letters"

    def encode(self, texts):
        counts = np.array([[text.count(letter) for letter in LETTERS] for text in texts], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def ontology(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    stanzas = [
        "\n".join(["[Term]", f"id: GO:{name}", f"name: {name}", "namespace: biological_process", *parents])
        for name, parents in PARENTS.items()
    ]
    stanzas[2] += "\nalt_id: GO:old"
    stanzas.append("[Term]\nid: GO:x\nname: x\nnamespace: molecular_function")
    path = tmp_path / "go.obo"
    path.write_text("format-version: 1.2\n\n" + "\n\n".join(stanzas) + "\n")
    return load_ontology(path, Letters)


def test_hits(ontology):
    """From b: a and root are one and two edges up, c and d one and two down. From d, root is three up, over e."""
    hits = {term: term_scores(ontology, "GO:b", f"GO:{term}")[0] for term in PARENTS}
    assert hits == {"root": 1, "a": 1, "b": 1, "c": 1, "d": 1, "e": 0, "f": 0}
    assert term_scores(ontology, "GO:d", "GO:root")[0] == 0
    assert term_scores(ontology, "GO:d", "GO:e")[0] == 1  # over part_of


def test_lins_similarity(ontology):
    """Descendants: root 6, a 3, b 2, c 1, d 0, e 3 (c, d, f), f 0. IC = 1 - ln(descendants + 1) / ln 7.

    The regulation of a by f is no edge, so f is no descendant of a. b and c share b, a and root: b is the most
    informative. f and b share the root alone, whose IC is 0.
    """
    ic = {name: 1 - math.log(n + 1) / math.log(7) for name, n in {"b": 2, "c": 1}.items()}
    assert term_scores(ontology, "GO:b", "GO:c")[1] == pytest.approx(2 * ic["b"] / (ic["b"] + ic["c"]))
    assert term_scores(ontology, "GO:b", "GO:b")[1] == 1
    assert term_scores(ontology, "GO:b", "GO:f")[1] == 0
    assert term_scores(ontology, "GO:root", "GO:root")[1] == 1


def test_names_are_scored_by_the_nearest_term(ontology):
    """'c' is nearest to the term c, which is a child of b; an alternative id counts; no answer scores 0."""
    scorer = Scorer(Letters(), ontology=ontology)
    table = score_names(["b"] * 4, ["c", "c", None, "c"], scorer, terms=["GO:b", "GO:old", "GO:b", "GO:unknown"])
    assert table["go_hit"].tolist()[:3] == [1, 1, 0]
    assert table["go_lin"].tolist()[2] == 0
    assert table[["go_hit", "go_lin"]].iloc[3].isna().all()
    assert "go_hit" not in score_names(["b"], ["c"], scorer, terms=["NEST:1"])
    assert scorer.settings["ontology_fingerprint"] == ontology.fingerprint


def test_the_fingerprint_covers_the_relations(ontology, tmp_path):
    path = tmp_path / "go.obo"
    path.write_text(path.read_text().replace("relationship: part_of GO:e", "is_a: GO:a"))
    assert load_ontology(path, Letters).fingerprint != ontology.fingerprint


def test_a_file_without_processes(tmp_path):
    path = tmp_path / "x.obo"
    path.write_text("format-version: 1.2\n\n[Term]\nid: GO:x\nname: x\nnamespace: molecular_function\n")
    with pytest.raises(ValueError, match="has no term of the namespace biological_process"):
        load_ontology(path, Letters)
