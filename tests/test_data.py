"""Readers, gene sets as training data, leakage rules, and `bft-trl data gene-sets`."""

import gzip
import hashlib
import sqlite3
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from bft_trl import load_gene_sets
from bft_trl.cli.main import main
from bft_trl.data.gene_ontology import read_bioconductor
from bft_trl.data.gene_sets import build
from bft_trl.data.leakage import connected_sets, find_leaks, normalize_text, overlapping_sets, split, without_leaks
from bft_trl.data.tables import read_gene_sets, read_gmt, split_genes
from bft_trl.prompts import GENES_IN_ANALYSIS, gene_set_answer, gene_set_prompt, parse_process


def sets(*entries):
    return pd.DataFrame([{"id": i, "name": name, "genes": genes.split()} for i, name, genes in entries])


@pytest.fixture
def databases(tmp_path):
    """The two Bioconductor files in small, with their tables and columns.

    GO:1 has genes A to D (D twice, by two pieces of evidence), GO:2 has A to C, GO:3 two genes, GO:4 is no process,
    and GO:5 to GO:9 have three genes of their own each.
    """
    members = {"GO:1": "DABCD", "GO:2": "ABC", "GO:3": "AB", "GO:4": "ABC"}
    members |= {f"GO:{n}": [f"G{n}{letter}" for letter in "xyz"] for n in range(5, 10)}
    genes = sorted({gene for names in members.values() for gene in names})
    pairs = [(genes.index(gene), term, f"code {i}") for term, names in members.items() for i, gene in enumerate(names)]
    terms = [(term, f"process {term[3:]}", "MF" if term == "GO:4" else "BP", f"Defined {term}.") for term in members]
    tables = {
        "gene_info": pd.DataFrame(
            {"symbol": genes, "gene_name": [f"gene {g}" for g in genes], "_id": range(len(genes))}
        ),
        "go_bp_all": pd.DataFrame(pairs, columns=["_id", "go_id", "evidence"]),
        "go_term": pd.DataFrame(terms, columns=["go_id", "term", "ontology", "definition"]),
        "metadata": pd.DataFrame({"name": ["GOSOURCEDATE"], "value": ["2022-07-01"]}),
    }
    for file, names in {"org": ["gene_info", "go_bp_all"], "go": ["go_term", "metadata"]}.items():
        with closing(sqlite3.connect(tmp_path / f"{file}.sqlite")) as connection:
            for name in names:
                tables[name].to_sql(name, connection, index=False)
    return tmp_path / "org.sqlite", tmp_path / "go.sqlite"


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_normalize_text():
    assert (
        normalize_text('"DNA-repair",  (positive)') == normalize_text("dna repair positive") == "dna repair positive"
    )


def test_overlap_by_hand():
    """4 of 5 common genes give 0.8, 3 of 4 give 0.75. Case does not count."""
    pairs = list(overlapping_sets([list("ABCD"), list("abc")], [list("ABCDE"), list("XYZ"), list("CBA")]))
    assert pairs == [(0, 0, pytest.approx(0.8)), (1, 2, pytest.approx(1.0))]


def test_overlap_equals_the_double_loop():
    rng = np.random.default_rng(0)
    drawn = [[f"g{i}" for i in rng.choice(12, rng.integers(1, 12), replace=False)] for _ in range(60)]
    expected = {
        (i, j)
        for i, a in enumerate(drawn)
        for j, b in enumerate(drawn)
        if len(set(a) & set(b)) / len(set(a) | set(b)) >= 0.8
    }
    assert {(i, j) for i, j, _ in overlapping_sets(drawn, drawn)} == expected


def test_leaks_have_their_reason():
    train = sets(("1", "DNA repair", "A B C"), ("2", "other", "D E F G H"), ("3", "new", "X Y"))
    test = sets(("1", "something", "P Q"), ("9", "dna-repair", "R S"), ("8", "third", "D E F G"))
    leaks = find_leaks(train, test)
    assert sorted(zip(leaks["train_id"], leaks["test_id"], leaks["reason"], strict=True)) == [
        ("1", "1", "id"),
        ("1", "9", "text"),
        ("2", "8", "genes"),
    ]
    assert find_leaks(train.iloc[2:], test).empty
    assert without_leaks(train, train, [test])["id"].tolist() == ["3"]


def test_split_is_seeded_disjoint_and_exact():
    """Chains of sets with the same name or genes stay together: 1 and 2 share genes, 2 and 3 their name."""
    chain = sets(("1", "a", "A B C D"), ("2", "b", "A B C D E"), ("3", "B", "X"), ("4", "c", "Y"))
    assert sorted(map(sorted, connected_sets(chain))) == [[0, 1, 2], [3]]
    table = sets(*[(str(i), f"n{i // 2}", f"g{i} h{i}") for i in range(40)])  # pairs share a name
    groups = connected_sets(table)
    parts, again, other = (
        split(table, groups, {"eval": 10, "train": None}, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert parts["eval"]["id"].tolist() == again["eval"]["id"].tolist() != other["eval"]["id"].tolist()
    assert len(parts["eval"]) == 10
    assert sorted(parts["eval"]["id"].tolist() + parts["train"]["id"].tolist()) == sorted(table["id"])
    assert find_leaks(parts["train"], parts["eval"]).empty
    with pytest.raises(ValueError, match="train: 40 rows requested, 30 left of 40"):
        split(table, groups, {"eval": 10, "train": 40}, rng=np.random.default_rng(3))


# --- readers ---------------------------------------------------------------------------------------------------------


def test_bioconductor(databases, tmp_path):
    table = read_bioconductor(*databases, min_genes=3).sets
    assert table["id"].tolist() == ["GO:1", "GO:2", *(f"GO:{n}" for n in range(5, 10))]
    assert table["genes"].tolist()[:2] == [["A", "B", "C", "D"], ["A", "B", "C"]]
    assert table["gene_names"].tolist()[1] == ["gene A", "gene B", "gene C"]
    assert table["definition"].tolist()[0] == "Defined GO:1."
    assert read_bioconductor(*databases, min_genes=4).sets["id"].tolist() == ["GO:1"]
    with pytest.raises(FileNotFoundError, match="absent.sqlite: no such file.*Debian"):
        read_bioconductor(tmp_path / "absent.sqlite", databases[1])
    with pytest.raises(ValueError, match="go.sqlite: not the expected Bioconductor database"):
        read_bioconductor(databases[1], databases[0])


def test_genes_from_lists_and_text():
    for genes in ("A B,C;D", "A, B, C, D", "A/B|C/D", "['A', 'B', 'C', 'D']", list("ABCD"), np.array(list("ABCD"))):
        assert split_genes(genes) == ["A", "B", "C", "D"]
    assert split_genes(["C", None, " D ", "", float("nan")]) == ["C", "D"]
    assert split_genes("  ") == split_genes(None) == split_genes(float("nan")) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xlsx", b"x", "unknown table format '.xlsx'"),
        ("a.parquet", b"PAR1 and then nothing", "cannot be read as parquet"),
        ("a.jsonl", b'{"id": 1}\n{"id": ', "cannot be read as jsonl"),
        ("a.json", b"[1, 2]", "cannot be read as json: expected a list of objects"),
        ("a.csv", b"", "cannot be read as csv: No columns"),
        ("a.csv", b"id,name,genes\n", "has no rows"),
        ("a.csv", b"id,name,genes\n1,x,A\n2,y,B,z\n", "cannot be read as csv: .*Expected 3 fields in line 3, saw 4"),
        ("a.csv", b"id,name,genes\n1,x,A,z\n2,y,B,z\n", "cannot be read as csv: the rows have more columns"),
        ("a.csv", "id,name,genes\n1,caf\u00e9,A\n".encode("latin-1"), "cannot be read as csv: 'utf-8' codec"),
        ("t.csv.gz", gzip.compress(b"id,name,genes\n1,x,A\n")[:-12], "cannot be read as csv: Compressed file ended"),
        ("a.csv", b"ID,Name,Size\n1,x,3\n", "has none of the columns genes, gene_list, symbols"),
        ("a.csv", b"GO,ID,name,genes\n1,2,x,A\n", r"the columns \['GO', 'ID'\] could all be 'id'; rename"),
        ("a.csv", b"id,name,genes\n1,x,A B\n2,y,\n", "empty gene list in 2"),
        ("a.csv", b"id,name,genes\n1,x,A\n2,,B\n", r"no name in rows \[1\]"),
        ("a.tsv", b"id\tname\tgenes\n1\tx\tA\n1\ty\tB\n", "repeated id 1"),
    ],
)
def test_bad_tables_name_the_file_and_the_problem(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{words}") as error:
        read_gene_sets(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="absent.csv: no such file"):
        read_gene_sets(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "hu.tsv",
            "\tGO\tGenes\tGene_Count\tTerm_Description\tLLM Name\n0\tGO:1\tA B\t2\tglucose import\tImport\n",
            ("GO:1", "glucose import", ["A", "B"]),
        ),
        ("c.json", '[{"Term_ID": "T:1", "Label": "x", "gene_list": ["A", "B"]}]', ("T:1", "x", ["A", "B"])),
        # the exact name takes precedence over its aliases
        ("d.jsonl", '{"id": 7, "GO": "GO:7", "name": "x", "Name": "y", "genes": "A"}', ("7", "x", ["A"])),
        ("n.csv.gz", "id,name,genes\n1,2,3\n", ("1", "2", ["3"])),
    ],
)
def test_published_headers(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    assert tuple(read_gene_sets(tmp_path / name)[["id", "name", "genes"]].iloc[0]) == expected


@pytest.mark.parametrize("zipped", [False, True])
def test_gmt(zipped, tmp_path):
    """Terms may end in a GO id (Enrichr) or be in capitals (MSigDB); weights and repeats are dropped."""
    text = "DNA repair (GO:0006281)\t\tMLH1,1.0\tMSH2,1.0\nGOBP_DNA_REPLICATION\thttp://a/b\tPCNA\tMCM2\tPCNA\t\r\n\n"
    file = tmp_path / f"library.gmt{'.gz' * zipped}"
    file.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert read_gmt(file).values.tolist() == [
        ["GO:0006281", "DNA repair", None, ["MLH1", "MSH2"]],
        ["GOBP_DNA_REPLICATION", "DNA REPLICATION", None, ["PCNA", "MCM2"]],
    ]
    assert read_gene_sets(file).equals(read_gmt(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"A\td\tG1\nB\tG1\n", "g.gmt, line 2: has 2 columns; a GMT line is"),
        (b"x (GO:0000001)\td\tG1\n\ny (GO:0000001)\td\tG2\n", "line 3: repeated term 'GO:0000001'"),
        (b"A\td\t\t\n", "g.gmt, line 1: has no genes"),
        (b"\td\tG1\n", "g.gmt, line 1: has no term"),
        (b"", "g.gmt: is empty"),
        (b"\n\n", "g.gmt: has no gene sets"),
        (b"A\td\tG1\nB\td\t\xe9\n", "g.gmt, line 2: is not UTF-8"),
        (gzip.compress(b"A\td\tG1\n", mtime=0)[:-9], "g.gmt: is truncated or damaged"),
    ],
)
def test_bad_gmt_names_file_and_line(content, words, tmp_path):
    (tmp_path / "g.gmt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_gmt(tmp_path / "g.gmt")


# --- build -----------------------------------------------------------------------------------------------------------


def test_build_end_to_end(databases, tmp_path):
    held_out = tmp_path / "held_out.csv"
    held_out.write_text("id,name,genes\nGO:5,whatever,A1 A2\nX:1,x,A B C\n")
    options = {"eval_sets": 2, "exclude": [held_out], "seed": 1}
    tables = build(read_bioconductor(*databases), tmp_path / "out", **options)
    # GO:5 is dropped by its id, GO:2 by its genes; GO:1 shares only 3 of 4 genes
    ids = set(tables["train"]["id"]) | set(tables["eval"]["id"])
    assert ids == {"GO:1", "GO:6", "GO:7", "GO:8", "GO:9"}
    assert len(tables["eval"]) == 2
    row = pd.read_parquet(tmp_path / "out" / "eval.parquet").iloc[0]
    assert row["prompt"][0]["content"].endswith(f"Genes: {', '.join(row['genes'])}")
    assert row["completion"][0]["content"].startswith(
        f"Process: {row['name']}\n\nDefined {row['id']}. Of these genes, "
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| held_out.csv | 2 |" in card
    assert "CC BY 4.0" in card
    assert str(tmp_path) not in card
    for path in (*databases, held_out):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    first = (tmp_path / "out" / "eval.parquet").read_bytes()
    build(read_bioconductor(*databases), tmp_path / "again", **options)
    assert (tmp_path / "again" / "eval.parquet").read_bytes() == first
    with sqlite3.connect(databases[1]) as connection:
        connection.execute("UPDATE go_term SET definition = NULL WHERE go_id = 'GO:1'")
    defined = build(read_bioconductor(*databases), tmp_path / "defined", **options)
    assert not any("GO:1" in set(part["id"]) for part in defined.values())
    parts = build(read_bioconductor(*databases), tmp_path / "names", **options, analysis=False)
    names = parts["train"]
    assert "GO:1" in {*names["id"], *parts["eval"]["id"]}
    assert names["completion"][0][0]["content"] == f"Process: {names['name'][0]}"
    described = build(read_bioconductor(*databases), tmp_path / "described", **options, described=True)
    row = described["train"].iloc[0]
    assert row["prompt"][0]["content"].endswith(f"\n{row['genes'][-1]}: {row['gene_names'][-1]}")


def test_cli_builds_and_checks(databases, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    command = ["data", "gene-sets", "--org_db", str(databases[0]), "--go_db", str(databases[1])]
    for extra, words in (
        (["--exclude", str(tmp_path / "no.csv")], "no.csv: no such file"),
        (["--min_genes", "0"], "`min_genes=0`"),
        (["--eval_sets", "500"], "500 rows requested"),
        (["--eval_sets", "0"], "eval: 0 rows requested; request 1 or more"),
        (["--eval_sets", "7"], "train: some rows requested, 0 left"),
        (["--output_dir", str(databases[0])], "is a file"),
    ):
        assert main([*command, "--output_dir", str(tmp_path / "o"), *extra]) == 2
        message = capsys.readouterr().err
        assert message.startswith("bft-trl: error: ")
        assert words in message
        assert not list((tmp_path / "o").glob("*.*"))
    assert main([*command, "--output_dir", str(tmp_path / "o"), "--eval_sets", "2"]) == 0
    files = [str(tmp_path / "o" / f"{name}.parquet") for name in ("train", "eval")]
    assert main(["data", "check", "--train", files[0], "--against", files[1]]) == 0
    assert main(["data", "check", "--train", files[0], "--against", *files]) == 1
    assert "by id" in caplog.text


def test_cli_gmt_needs_names_only(tmp_path, capsys):
    """Eight sets, of which one is too small and one is an evaluation set with another form of its name."""
    gmt, held_out, out = tmp_path / "my lib.v1.gmt", tmp_path / "held_out.gmt", tmp_path / "o"
    lines = [f"GOBP_TERM_{i}\td\t" + "\t".join(f"G{i}{letter}" for letter in "xyz") for i in range(7)]
    gmt.write_text("\n".join([*lines, "GOBP_SMALL\td\tA\tB"]))
    held_out.write_text("Term 3 (GO:0000003)\td\tQ1\tQ2\n")
    arguments = ["data", "gene-sets", "--gmt", str(gmt), "--output_dir", str(out), "--eval_sets", "2"]
    arguments += ["--exclude", str(held_out)]
    assert main(arguments) == 2
    assert "my lib.v1.gmt: no gene set has a definition, which the analysis needs. Use --names_only" in (
        capsys.readouterr().err
    )
    assert main([*arguments, "--names_only"]) == 0
    rows = pd.concat([pd.read_parquet(out / f"{name}.parquet") for name in ("train", "eval")])
    assert sorted(rows["id"]) == [f"GOBP_TERM_{i}" for i in (0, 1, 2, 4, 5, 6)]
    assert set(rows["source"]) == {"my lib.v1"}
    assert rows.iloc[0]["completion"][0]["content"] == f"Process: {rows.iloc[0]['name']}"
    card = (out / "README.md").read_text()
    assert "check the license of its author" in card
    assert "bft-trl data gene-sets \\\n    --gmt 'my lib.v1.gmt' \\\n" in card
    assert "    --names_only \\\n    --output_dir o \\\n    --eval_sets 2 \\\n    --exclude held_out.gmt \\\n" in card
    assert str(tmp_path) not in card


def test_cli_table_with_definitions(tmp_path):
    """A set without a definition is dropped; a gene that is listed twice counts once."""
    table, out = tmp_path / "t.tsv", tmp_path / "o"
    rows = [f"T:{i}\tname {i}\tA{i},B{i},C{i}\tWhat {i} is." for i in range(4)]
    rows += ["T:8\tname 8\tX,Y,Z\t", "T:9\tname 9\tP,Q,P\tToo small."]
    table.write_text("\n".join(["ID\tName\tGenes\tdefinition", *rows]))
    assert main(["data", "gene-sets", "--table", str(table), "--output_dir", str(out), "--eval_sets", "1"]) == 0
    written = pd.concat([pd.read_parquet(out / f"{name}.parquet") for name in ("train", "eval")])
    assert sorted(written["id"]) == [f"T:{i}" for i in range(4)]
    for row in written.itertuples():
        assert row.completion[0]["content"] == f"Process: {row.name}\n\nWhat {row.id[2:]} is."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "no source given: gene sets need exactly one source, --org_db with --go_db, --obo with --gaf, --gmt or"),
        (["--obo", "a.obo"], "--obo given: gene sets need exactly one source"),
        (["--gmt", "a.gmt", "--table", "b.csv"], "--gmt --table given"),
        (["--gmt", "a.gmt", "--evidence", "IDA"], "--evidence selects annotations of --gaf; --gmt has none"),
        (["--table", "absent.csv"], "absent.csv: no such file"),
    ],
)
def test_cli_takes_one_source(options, words, tmp_path, capsys):
    assert main(["data", "gene-sets", *options, "--output_dir", str(tmp_path / "o")]) == 2
    assert words in capsys.readouterr().err


# --- shipped gene sets -----------------------------------------------------------------------------------------------


def test_shipped_gene_sets():
    train, held_out = load_gene_sets("train"), load_gene_sets("eval")
    assert (len(train), len(held_out)) == (1200, 150)
    ldlr = next(row for row in train if "LDLR" in row["genes"])
    assert ldlr["gene_names"][ldlr["genes"].index("LDLR")] == "low density lipoprotein receptor"
    described = load_gene_sets("train", described=True)[train["id"].index(ldlr["id"])]
    assert "\nLDLR: low density lipoprotein receptor" in described["prompt"][0]["content"]
    assert described["completion"][0]["content"] == f"Process: {ldlr['name']}"
    assert find_leaks(train.to_pandas(), held_out.to_pandas()).empty
    for row in [*train, *held_out]:
        assert 3 <= len(row["genes"]) <= 40
        # the current prompt is the prompt that ships
        assert row["prompt"] == [{"role": "user", "content": gene_set_prompt(row["genes"])}]
        answer = row["completion"][0]["content"]
        assert parse_process(answer) == row["name"]
        assert answer.count(" is ") >= min(len(row["genes"]), GENES_IN_ANALYSIS)
        assert answer.startswith(gene_set_answer(row["name"], definition="")[:-1])
    with pytest.raises(ValueError, match="`split='test'`"):
        load_gene_sets("test")
