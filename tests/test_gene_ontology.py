"""GO processes from OBO and GAF files: propagation, evidence, formats, and `bft-trl data gene-sets --obo`."""

import gzip
import sys

import numpy as np
import pandas as pd
import pytest

from bft_trl.cli.main import main
from bft_trl.data.gene_ontology import read_obo_gaf

HEADER = (
    "format-version: 1.2\ndata-version: releases/2024-01-17\ndefault-namespace: biological_process\nontology: go\n"
)

# 2 is_a 1, 3 part_of 2, 4 regulates 2, 5 is_a 4 and part_of a cellular component, 6 is obsolete.
ONTOLOGY = r"""format-version: 1.2
data-version: releases/2024-01-17
ontology: go

[Term]
id: GO:0000001
name: root
namespace: biological_process
def: "A \"root\"\, [sic] of all." [GOC:ab, PMID:1 "see"]

[Term]
id: GO:0000002
name: 3'\,5'-kind
namespace: biological_process
alt_id: GO:0000022
alt_id: GO:0000222
def: "A kind." []
is_a: GO:0000001 {source="x"} ! root

[Term]
id: GO:0000003
name: part
namespace: biological_process
relationship: part_of GO:0000002 ! kind

[Term]
id: GO:0000004
name: regulation of kind
namespace: biological_process
def: "It regulates." [GOC:ab]
relationship: regulates GO:0000002 ! kind
relationship: has_part GO:0000003
[Term]
id: GO:0000005
name: kind of regulation
namespace: biological_process
is_a: GO:0000004
relationship: part_of GO:0000009

[Term]
id: GO:0000006
name: obsolete thing
namespace: biological_process
is_a: GO:0000001
is_obsolete: true

[Term]
id: GO:0000009
name: component
namespace: cellular_component
is_a: GO:0000001

[Typedef]
id: part_of
name: part of
is_transitive: true
"""

ANNOTATIONS = [
    ("A", "involved_in", "GO:0000003", "IDA", "P"),
    ("B", "involved_in", "GO:0000002", "IEA", "P"),
    ("B", "involved_in", "GO:0000002", "IMP", "P"),
    ("C", "acts_upstream_of", "GO:0000222", "TAS", "P"),
    ("D", "involved_in", "GO:0000005", "IDA", "P"),
    ("E", "NOT|involved_in", "GO:0000003", "IDA", "P"),
    ("F", "involved_in", "GO:0000006", "IDA", "P"),
    ("F", "involved_in", "GO:0000077", "IDA", "P"),
    ("G", "located_in", "GO:0000009", "IDA", "C"),
    ("H", "enables", "GO:0000003", "IDA", "F"),
]


def gaf_text(annotations, header="!gaf-version: 2.2\n!date-generated: 2024-02-03\n!date-generated: 1999-01-01\n"):
    """GAF lines of 17 columns; gene B has no full name."""
    lines = [
        "\t".join(
            f"UniProtKB,X_{symbol},{symbol},{qualifier},{term},PMID:1,{code},,{aspect},"
            f"{'' if symbol == 'B' else 'gene ' + symbol},,protein,taxon:9606,20240101,UniProt,,".split(",")
        )
        for symbol, qualifier, term, code, aspect in annotations
    ]
    return header + "\n".join(lines) + "\n"


@pytest.fixture
def files(tmp_path):
    obo, gaf = tmp_path / "go.obo", tmp_path / "human.gaf"
    obo.write_text(ONTOLOGY)
    gaf.write_text(gaf_text(ANNOTATIONS))
    return obo, gaf


def genes_of(source):
    return {term: " ".join(genes) for term, genes in zip(source.sets["id"], source.sets["genes"], strict=True)}


def test_propagation_by_hand(files, caplog):
    """A is at 3, so at 2 (part_of) and 1 (is_a); B at 2 and 1; C at 222, which is 2, and at 1; D at 5 and at 4.

    D reaches neither 2 (regulates), nor 3 (has_part), nor 1 (over the component 9, of another namespace). E is a NOT,
    both of F are dropped, G and H are of other aspects.
    """
    caplog.set_level("INFO")
    source = read_obo_gaf(*files, min_genes=1)
    table = source.sets
    assert table.columns.tolist() == ["id", "name", "definition", "genes", "gene_names"]
    assert genes_of(source) == {
        "GO:0000001": "A B C",
        "GO:0000002": "A B C",
        "GO:0000003": "A",
        "GO:0000004": "D",
        "GO:0000005": "D",
    }
    assert table["name"].tolist()[:2] == ["root", "3',5'-kind"]
    assert table["definition"].tolist() == ['A "root", [sic] of all.', "A kind.", None, "It regulates.", None]
    assert table["gene_names"].tolist()[0] == ["gene A", None, "gene C"]
    assert "2 of 7 annotations are to terms that are obsolete, unknown or no biological_process" in caplog.text


def test_sizes_are_those_after_propagation(files):
    assert genes_of(read_obo_gaf(*files)) == {"GO:0000001": "A B C", "GO:0000002": "A B C"}
    assert list(genes_of(read_obo_gaf(*files, min_genes=1, max_genes=2))) == ["GO:0000003", "GO:0000004", "GO:0000005"]
    empty = read_obo_gaf(*files, min_genes=50).sets
    assert len(empty) == 0
    assert empty.columns.tolist() == ["id", "name", "definition", "genes", "gene_names"]


def test_evidence(files):
    """Without TAS and IEA, C goes; B stays by its IMP."""
    source = read_obo_gaf(*files, evidence=["ida", "IMP"], min_genes=1)
    assert genes_of(source)["GO:0000001"] == "A B"
    with pytest.raises(ValueError, match=r"`evidence=\['XYZ'\]`: unknown. human.gaf has IDA, IEA, IMP, TAS\."):
        read_obo_gaf(*files, evidence=["IDA", "XYZ"])
    with pytest.raises(ValueError, match=r"no annotation.* go.obo is left with `evidence=\['EXP'\]`"):
        read_obo_gaf(*files, evidence=["EXP"])


def test_gzip_windows_line_ends_and_byte_order_mark(files):
    plain = read_obo_gaf(*files).sets
    for path in files:
        path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n")))
    assert read_obo_gaf(*files).sets.equals(plain)


def test_default_namespace(files):
    files[0].write_text(HEADER + "\n[Term]\nid: GO:0000003\nname: x\nis_a: GO:0000404\n")
    assert genes_of(read_obo_gaf(*files, min_genes=1)) == {"GO:0000003": "A"}


def test_equals_recursion_on_random_ontologies(tmp_path):
    """Another way round: every term asks its children for their genes."""
    rng = np.random.default_rng(7)
    obo, gaf = tmp_path / "go.obo", tmp_path / "a.gaf"
    relations = ["is_a", "part_of", "regulates", "has_part"]
    for _ in range(5):
        names = [f"GO:{i:07}" for i in range(40)]
        spaces = ["molecular_function" if rng.random() < 0.15 else "biological_process" for _ in names]
        edges = [
            (child, int(parent), str(rng.choice(relations, p=[0.5, 0.3, 0.1, 0.1])))
            for child in range(1, 40)
            for parent in rng.choice(child, size=min(child, rng.integers(0, 4)), replace=False)
        ]
        stanzas = [HEADER]
        for i, name in enumerate(names):
            mine = [(p, r) for child, p, r in edges if child == i]
            tags = [f"is_a: {names[p]}" if r == "is_a" else f"relationship: {r} {names[p]}" for p, r in mine]
            stanzas.append("\n".join(["[Term]", f"id: {name}", f"name: n{i}", f"namespace: {spaces[i]}", *tags, ""]))
        obo.write_text("\n".join(stanzas))
        own = {i: {f"g{k}" for k in rng.choice(30, 2)} for i in range(40) if rng.random() < 0.7}
        gaf.write_text(gaf_text([(g, "involved_in", names[i], "IDA", "P") for i in own for g in sorted(own[i])]))

        def collected(term, spaces=spaces, edges=edges, own=own):
            genes = set(own.get(term, ()))
            for child, parent, relation in edges:
                if parent == term and relation in ("is_a", "part_of") and spaces[child] == "biological_process":
                    genes |= collected(child, spaces, edges, own)
            return genes

        expected = {
            names[i]: " ".join(sorted(collected(i)))
            for i in range(40)
            if spaces[i] == "biological_process" and 2 <= len(collected(i)) <= 9
        }
        assert genes_of(read_obo_gaf(obo, gaf, min_genes=2, max_genes=9)) == expected


LINE = gaf_text(ANNOTATIONS[:1], header="")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("human.gaf", b"!gaf-version: 2.2\nA\tB\tC\n", "human.gaf, line 2: 'A.*' has no symbol, term and aspect"),
        ("human.gaf", LINE.replace("\tP\t", "\tQ\t").encode(), "human.gaf, line 1: .* has no symbol"),
        ("human.gaf", LINE.replace("\tA\t", "\t\t").encode(), "human.gaf, line 1: .* has no symbol"),
        ("human.gaf", LINE.encode() + b"\xff\xfe\n", "human.gaf, line 2: is not UTF-8 text"),
        ("human.gaf", b"", "human.gaf: is empty"),
        ("human.gaf", b"!gaf-version: 2.2\n", "human.gaf: no annotation to a biological_process of go.obo is left"),
        ("human.gaf", gzip.compress(LINE.encode(), mtime=0)[:-10], "human.gaf: is truncated or damaged"),
        ("go.obo", b"<html>\n", "go.obo: cannot be read as OBO: .*<html>"),
        ("go.obo", b"ontology: go\n\n[Term]\nname: x\n\n[Term]\nid: GO:1\n", "go.obo: cannot be read as OBO: 'id'"),
        ("go.obo", b"ontology: go\n", "go.obo: has no term of the namespace biological_process"),
        ("go.obo", b"ontology: go\n\n[Term]\nid: GO:1\nname: \xe9\n", "go.obo, line 5: is not UTF-8"),
        ("go.obo", gzip.compress(ONTOLOGY.encode(), mtime=0)[:300], "go.obo: is truncated"),
    ],
)
def test_bad_files(files, name, content, words):
    (files[0].parent / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        read_obo_gaf(*files)
    assert "\n" not in str(error.value)


def test_bad_arguments(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="no.obo: no such file"):
        read_obo_gaf(tmp_path / "no.obo", files[1])
    with pytest.raises(ValueError, match="`min_genes=5` and `max_genes=4`"):
        read_obo_gaf(*files, min_genes=5, max_genes=4)


def test_cli_end_to_end(files, tmp_path, capsys, monkeypatch):
    """Terms 1, 2 and 4 have definitions; 1 and 2 have the same genes and stay together."""
    out = tmp_path / "o"
    arguments = ["data", "gene-sets", "--obo", str(files[0]), "--gaf", str(files[1]), "--output_dir", str(out)]
    arguments += ["--min_genes", "1", "--eval_sets", "1"]
    assert main([*arguments, "--evidence", "IDA", "IMP", "tas"]) == 0
    train, held_out = (pd.read_parquet(out / f"{name}.parquet") for name in ("train", "eval"))
    assert (train["id"].tolist(), held_out["id"].tolist()) == (["GO:0000001", "GO:0000002"], ["GO:0000004"])
    # B has no full name and is not mentioned
    answer = train["completion"][1][0]["content"]
    assert answer == "Process: 3',5'-kind\n\nA kind. Of these genes, A is gene A and C is gene C."
    card = (out / "README.md").read_text()
    for words in ("releases/2024-01-17", "GAF 2.2", "2024-02-03", "CC BY 4.0", "--evidence IDA IMP tas"):
        assert words in card
    assert str(tmp_path) not in card
    assert main([*arguments, "--evidence", "nope"]) == 2
    assert "bft-trl: error: `evidence=['nope']`: unknown." in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "obonet", None)  # importing it fails as if it were not installed
    assert main(arguments) == 2
    assert "bft-trl: error: Reading OBO files needs obonet: pip install 'bft-trl[data]'." in capsys.readouterr().err
