"""Damaged files for every reader of the package, and as a script the process that reads them.

python tests/fuzzing.py FOLDER READER=FIRST:COUNT ...    writes FOLDER/log.jsonl, a line before and after each reading

One process reads, another judges (test_fuzz.py): a reader that brings its process down is seen by the line that has
nothing after it. A reading is repeated by its name and number: READER=NUMBER:1.
"""

import faulthandler
import gzip
import json
import logging
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

SECONDS = 20  # that one reading may take, on a machine that does much else
MEMORY = 12 * 2**30  # that it may ask for: a damaged header may ask for anything


class Reader(NamedTuple):
    """Files that are whole, and what reads them.

    `cut` says what may be left of a file that was cut short: "nothing" (an error, or all of it), "rows" (whole rows
    from the beginning), "text" (the same, with a shorter last text), or "any" where nobody can know.
    `pages` are files whose data carry checksums: nothing but their ends may change unnoticed.
    """

    files: Callable[[], Mapping[str, bytes]]
    read: Callable[[Path], Any]
    cut: str = "any"
    pages: bool = False
    # A message may name the folder, where the damage is in one of many files that a library reads.
    folder: bool = False


# --- whole files -----------------------------------------------------------------------------------------------------


def table_bytes(table: pd.DataFrame, suffix: str) -> bytes:
    if suffix == ".parquet":
        from bft_trl.data.tables import write_parquet

        path = Path(sys.argv[1]) / "made.parquet"
        write_parquet(path, table)
        return path.read_bytes()
    if suffix in (".csv", ".tsv"):
        return table.to_csv(index=False, sep="," if suffix == ".csv" else "\t").encode()
    if suffix.endswith(".gz"):
        return gzip.compress(table_bytes(table, suffix.removesuffix(".gz")), mtime=0)
    return table.to_json(orient="records", lines=suffix == ".jsonl", force_ascii=False).encode()


@cache
def gene_sets() -> pd.DataFrame:
    """Twelve of the shipped sets, with texts that formats stumble on."""
    from bft_trl.data.gene_sets import load_gene_sets

    table = load_gene_sets("eval").to_pandas().head(12)[["id", "name", "genes"]]
    table["genes"] = [list(genes)[:8] for genes in table["genes"]]
    table["name"] = [f'{name}, "{number}" Größe' for number, name in enumerate(table["name"])]
    return table


def words(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(genes=table["genes"].map(" ".join))


@cache
def training_rows() -> pd.DataFrame:
    from bft_trl.data.gene_sets import load_gene_sets

    table = load_gene_sets("eval").to_pandas().head(6)
    return table.assign(
        **{name: [[dict(turn) for turn in turns] for turns in table[name]] for name in ("prompt", "completion")},
        genes=[list(genes) for genes in table["genes"]],
    )


@cache
def questions() -> dict[str, pd.DataFrame]:
    n = range(6)
    letters = {f"op{letter}": [f"{letter} {i}" for i in n] for letter in "abcd"}
    return {
        "medqa_test": pd.DataFrame(
            {"id": [f"q{i}" for i in n], "sent1": [f"A man, {i}." for i in n], "sent2": ["Which?"] * 6}
            | {f"ending{k}": [f"{k} {i}" for i in n] for k in range(4)}
            | {"label": [i % 4 for i in n]}
        ),
        "medmcqa_validation": pd.DataFrame(
            {"id": [f"q{i}" for i in n], "question": [f"What {i}?" for i in n], **letters}
            | {"cop": [i % 4 for i in n], "exp": ["Because.", None] * 3}
        ),
        "pubmedqa_test": pd.DataFrame(
            {"id": [100 + i for i in n], "QUESTION": [f"Does {i}?" for i in n], "CONTEXTS": [["One.", "Two."]] * 6}
            | {"final_decision": ["yes", "no", "maybe"] * 2, "LONG_ANSWER": ["It does."] * 6}
        ),
        "mmlu_medical_test": pd.DataFrame(
            {"question": [f"What {i}?" for i in n], "subject": ["anatomy"] * 6, "choices": [list("wxyz")] * 6}
            | {"answer": [i % 4 for i in n]}
        ),
        "medical_o1_test": pd.DataFrame(
            {"Question": [f"Why {i}?" for i in n], "Complex_CoT": ["Well."] * 6, "Response": ["So."] * 6}
        ),
    }


OBO = """format-version: 1.2
data-version: releases/2024-01-17
default-namespace: biological_process

[Term]
id: GO:0000001
name: root
def: "A \\"root\\" of all." [GOC:ab]

[Term]
id: GO:0000002
name: kind
alt_id: GO:0000022
def: "A kind." []
is_a: GO:0000001 {source="x"} ! root

[Term]
id: GO:0000003
name: part
namespace: biological_process
relationship: part_of GO:0000002 ! kind

[Typedef]
id: part_of
name: part of
is_transitive: true
"""


def gaf() -> str:
    lines = ["!gaf-version: 2.2", "!date-generated: 2024-01-17"]
    for number in range(12):
        columns = ["UniProtKB", f"P{number}", f"GENE{number}", "involved_in", f"GO:000000{number % 3 + 1}", "PMID:1"]
        columns += ["IDA", "", "P", f"gene {number}", "", "protein", "taxon:9606", "20240101", "GOC"]
        lines.append("\t".join([*columns, "", ""]))
    return "\n".join(lines) + "\n"


def gmt() -> bytes:
    lines = ["\t".join([f"{row.name} ({row.id})", "", *row.genes]) for row in gene_sets().itertuples(index=False)]
    return ("\n".join(lines) + "\n").encode()


def databases() -> dict[str, bytes]:
    def made(statements: list[tuple[str, list[tuple[Any, ...]]]]) -> bytes:
        path = Path(sys.argv[1]) / "made.sqlite"
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        for statement, rows in statements:
            connection.executemany(statement, rows) if rows else connection.execute(statement)
        connection.commit()
        connection.close()
        return path.read_bytes()

    terms = [f"GO:{number:07d}" for number in range(1, 40)]
    genes = [(number, f"gene {number}", f"G{number}") for number in range(200)]
    org = made(
        [
            ("CREATE TABLE gene_info (_id INTEGER, gene_name TEXT, symbol TEXT)", []),
            ("CREATE TABLE go_bp_all (_id INTEGER, go_id TEXT, evidence TEXT)", []),
            ("INSERT INTO gene_info VALUES (?, ?, ?)", genes),
            (
                "INSERT INTO go_bp_all VALUES (?, ?, 'IDA')",
                [(5 * n + k, term) for n, term in enumerate(terms) for k in range(5)],
            ),
        ]
    )
    go = made(
        [
            ("CREATE TABLE go_term (go_id TEXT, term TEXT, ontology TEXT, definition TEXT)", []),
            ("CREATE TABLE metadata (name TEXT, value TEXT)", []),
            ("INSERT INTO metadata VALUES (?, ?)", [("GOSOURCEDATE", "2022-07-01")]),
            (
                "INSERT INTO go_term VALUES (?, ?, 'BP', ?)",
                [(t, f"process {t}", f"What {t} is, at length." * 5) for t in terms],
            ),
        ]
    )
    return {"org.sqlite": org, "GO.sqlite": go}


def lm_eval_output() -> dict[str, bytes]:
    documents = [{"id": f"GO:{i}", "name": f"regulation of {i}", "genes": ["TP53"]} for i in range(6)]
    results = {
        "results": {"bft_gene_sets_go": {}},
        "configs": {
            "bft_gene_sets_go": {
                "output_type": "generate_until",
                "generation_kwargs": {"max_gen_toks": 8},
                "metadata": {"version": 1.0, "scorer_version": "1", "encoder": "none"},
            }
        },
        "versions": {"bft_gene_sets_go": 1.0},
        "n-shot": {"bft_gene_sets_go": 0},
        "n-samples": {"bft_gene_sets_go": {"original": 6, "effective": 6}},
        "lm_eval_version": "0.4.13",
        "config": {"model": "hf", "model_args": {"pretrained": "a"}},
        "chat_template_sha": "aa",
    }
    samples = [
        {"doc_id": i, "doc": document, "filter": "none", "metrics": ["rouge1", "rougeL"], "prompt_hash": f"{i}"}
        | {"rouge1": i / 6, "rougeL": i / 7, "doc_hash": f"{i}"}
        for i, document in enumerate(documents)
    ]
    lines = "\n".join(json.dumps(sample) for sample in samples) + "\n"
    return {
        "results_2026-01-02.json": json.dumps(results, indent=2).encode(),
        "samples_bft_gene_sets_go_2026-01-02.jsonl": lines.encode(),
    }


def recorded_tables() -> dict[str, bytes]:
    table = gene_sets().head(4)
    answers = table.assign(predicted_name=table["name"].str[:12], model="gpt")[["id", "predicted_name", "model"]]
    return {"predictions.jsonl": table_bytes(answers, ".jsonl"), "references.csv": table_bytes(words(table), ".csv")}


def scored_output() -> dict[str, bytes]:
    from bft_trl.evaluation.recorded import score_recorded

    folder = Path(sys.argv[1]) / "scored"
    folder.mkdir(exist_ok=True)
    for name, content in recorded_tables().items():
        (folder / name).write_bytes(content)
    score_recorded(folder / "predictions.jsonl", folder / "references.csv", folder / "out")
    return {name: (folder / "out" / name).read_bytes() for name in ("scores.json", "scores.parquet")}


def pairs() -> pd.DataFrame:
    names = [f"GENE{number}" for number in range(8)]
    rows = [(a, b, (i + j) % 2) for i, a in enumerate(names) for j, b in enumerate(names) if i < j]
    return pd.DataFrame(rows, columns=["gene_a", "gene_b", "label"])


def profiles() -> pd.DataFrame:
    names = [f"GENE{number}" for number in range(20)]
    return pd.DataFrame({"gene": names, "text": [f'{name} is a "kinase", among\nothers.' for name in names]})


def vectors() -> pd.DataFrame:
    values = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    return pd.DataFrame({"gene": profiles()["gene"], "vector": list(values)})


def deltas() -> pd.DataFrame:
    names = [f"GENE{number}" for number in range(6)]
    rows = [(p, g, i - j / 3, 0.01 * j) for i, p in enumerate(names[:4]) for j, g in enumerate(names)]
    return pd.DataFrame(rows, columns=["perturbation", "gene", "delta", "fdr"])


@cache
def model_folder() -> dict[str, bytes]:
    """A base model, and the adapter of a run beside it, in float32."""
    from conftest import build_model, build_tokenizer
    from peft import LoraConfig, get_peft_model

    folder = Path(sys.argv[1]) / "model"
    build_model(num_hidden_layers=1).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "run")
    adapted = get_peft_model(build_model(num_hidden_layers=1), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(folder / "run")
    (folder / "run" / "base_model.json").write_text(json.dumps({"quantization": None}))
    (folder / "run" / "README.md").unlink(missing_ok=True)
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def encoder_folder() -> dict[str, bytes]:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = Path(sys.argv[1]) / "encoder"
    folder.mkdir(exist_ok=True)
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{a}" for a in letters)])
    )
    BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=57, max_position_embeddings=32, **size)).save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def checkpoint() -> dict[str, bytes]:
    return {
        "checkpoint-3/trainer_state.json": json.dumps({"global_step": 3, "log_history": []}, indent=2).encode(),
        "checkpoint-3/objective.json": json.dumps({"loss_type": "bft", "bft_version": "v1"}, indent=2).encode(),
        "checkpoint-3/adapter_model.safetensors": b"weights",
        "checkpoint-3/optimizer.pt": b"moments",
    }


class Fixed:
    """An encoder with one vector for each text, without a model."""

    model, fingerprint, dimension = "fixed", "abcd", 6

    def encode(self, texts: Any) -> np.ndarray:
        values = np.random.default_rng(1).standard_normal((len(texts), self.dimension)).astype(np.float32)
        return values / np.linalg.norm(values, axis=1, keepdims=True)


def kept_vectors() -> dict[str, bytes]:
    from bft_trl.encoders import cached_vectors

    folder = Path(sys.argv[1]) / "kept"
    cached_vectors(Fixed(), list("abcdefgh"), cache=folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- readings --------------------------------------------------------------------------------------------------------


def read_bioconductor(folder: Path) -> Any:
    from bft_trl.data import bioconductor

    sets = bioconductor.read_bioconductor(folder / "org.sqlite", folder / "GO.sqlite")
    return sets, bioconductor.bioconductor_versions(folder / "GO.sqlite")


def read_obo_gaf(folder: Path, obo: str, annotations: str) -> Any:
    from bft_trl.data import gene_ontology

    files = folder / obo, folder / annotations
    return gene_ontology.read_obo_gaf(*files), gene_ontology.obo_gaf_versions(*files)


def read_checkpoint(folder: Path) -> Any:
    from bft_trl.training.checkpoints import check_same_objective, last_complete_checkpoint

    found = last_complete_checkpoint(folder)
    check_same_objective(Path(found[0]), {"loss_type": "bft", "bft_version": "v1"})
    return found[1]


def read_whole_run(folder: Path) -> Any:
    from bft_trl import models as run_folder

    run = run_folder.read_run(str(folder / "base"), folder / "run")
    model, tokenizer = run_folder.load_run(run, device="cpu"), run_folder.load_tokenizer(run)
    return run.chat_template, tokenizer("abc")["input_ids"], sum(float(p.sum()) for p in model.parameters())


def read_scored(folder: Path) -> Any:
    from bft_trl.evaluation.recorded import score_recorded

    return score_recorded(folder / "predictions.jsonl", folder / "references.csv", folder / "out")["models"]


def read_kept_vectors(folder: Path) -> Any:
    from bft_trl.encoders import cached_vectors

    return cached_vectors(Fixed(), list("abcdefgh"), cache=folder)[0]


def read_downloads(folder: Path) -> Any:
    from bft_trl.data.download import check_content

    check_content("hub:x", pairs(), cache=folder)


def call(module: str, function: str, *names: str, **options: Any) -> Callable[[Path], Any]:
    """`module.function(folder / name, ..., **options)`, imported when it is called."""

    def read(folder: Path) -> Any:
        from importlib import import_module

        return getattr(import_module(f"bft_trl.{module}"), function)(*[folder / name for name in names], **options)

    return read


def table(suffix: str, cut: str) -> Reader:
    def files() -> dict[str, bytes]:
        kept = gene_sets() if suffix in (".parquet", ".json", ".jsonl") else words(gene_sets())
        return {f"sets{suffix}": table_bytes(kept, suffix)}

    read = call("data.tables", "read_table", f"sets{suffix}", columns=["id", "name", "genes"])
    return Reader(files, read, cut, pages=suffix == ".parquet")


def medical(stem: str, suffix: str) -> Reader:
    source, split = stem.rsplit("_", 1)

    def read(folder: Path) -> Any:
        from bft_trl.data.medical import load_questions

        return load_questions(source, split=split, data_dir=folder)

    return Reader(
        lambda: {f"{stem}{suffix}": table_bytes(questions()[stem], suffix)}, read, pages=suffix == ".parquet"
    )


def tables_of(*names: str, make: Callable[[], pd.DataFrame], read: Callable[[Path], Any], cut: str = "any") -> Reader:
    return Reader(
        lambda: {name: table_bytes(make(), Path(name).suffix) for name in names},
        read,
        cut,
        pages=all(name.endswith(".parquet") for name in names),
    )


READERS: dict[str, Reader] = {
    "parquet": table(".parquet", "nothing"),
    "csv": table(".csv", "text"),
    "tsv": table(".tsv", "text"),
    "json": table(".json", "nothing"),
    "jsonl": table(".jsonl", "rows"),
    "csv.gz": table(".csv.gz", "nothing"),
    "jsonl.gz": table(".jsonl.gz", "nothing"),
    "gmt": Reader(lambda: {"sets.gmt": gmt()}, call("data.tables", "read_gmt", "sets.gmt"), "text"),
    "gmt.gz": Reader(
        lambda: {"sets.gmt.gz": gzip.compress(gmt(), mtime=0)},
        call("data.tables", "read_gmt", "sets.gmt.gz"),
        "nothing",
    ),
    "gene sets csv": tables_of(
        "sets.csv",
        make=lambda: words(gene_sets()).rename(columns={"id": "GO", "name": "Term_Description"}),
        read=call("data.tables", "read_gene_sets", "sets.csv"),
    ),
    "gene sets parquet": tables_of(
        "gene_sets_go.parquet",
        make=gene_sets,
        read=lambda folder: call("data.evaluation_sets", "load_evaluation_sets", data_dir=folder, name="go")(folder),
        cut="nothing",
    ),
    "obo and gaf": Reader(
        lambda: {"go.obo": OBO.encode(), "goa.gaf": gaf().encode()},
        lambda folder: read_obo_gaf(folder, "go.obo", "goa.gaf"),
    ),
    "obo.gz and gaf.gz": Reader(
        lambda: {
            "go.obo.gz": gzip.compress(OBO.encode(), mtime=0),
            "goa.gaf.gz": gzip.compress(gaf().encode(), mtime=0),
        },
        lambda folder: read_obo_gaf(folder, "go.obo.gz", "goa.gaf.gz"),
        "nothing",
    ),
    "bioconductor": Reader(databases, read_bioconductor, "nothing"),
    "medqa csv": medical("medqa_test", ".csv"),
    "medmcqa parquet": medical("medmcqa_validation", ".parquet"),
    "pubmedqa json": medical("pubmedqa_test", ".json"),
    "mmlu jsonl": medical("mmlu_medical_test", ".jsonl"),
    "medical o1 tsv": medical("medical_o1_test", ".tsv"),
    "background txt": Reader(
        lambda: {"names.txt": "\n".join(gene_sets()["name"]).encode()},
        call("data.evaluation_sets", "load_background", "names.txt"),
    ),
    "background parquet": tables_of(
        "names.parquet", make=gene_sets, read=call("data.evaluation_sets", "load_background", "names.parquet")
    ),
    "documents parquet": tables_of(
        "train.parquet",
        make=training_rows,
        read=call("data.documents", "read_documents", "train.parquet"),
        cut="nothing",
    ),
    "documents jsonl": tables_of(
        "train.jsonl", make=training_rows, read=call("data.documents", "read_documents", "train.jsonl"), cut="any"
    ),
    "lm-eval": Reader(
        lm_eval_output, lambda folder: call("report.runs", "load_runs", path=folder)(folder), "nothing", folder=True
    ),
    "scores": Reader(scored_output, lambda folder: call("report.runs", "load_runs", path=folder)(folder), "nothing"),
    "recorded": Reader(recorded_tables, read_scored),
    "run folder": Reader(
        lambda: {name: content for name, content in model_folder().items() if name.startswith("run/")},
        lambda folder: vars(call("run_folder", "read_run", model="base", adapter=folder / "run")(folder)),
        folder=True,
    ),
    "whole run": Reader(model_folder, read_whole_run, folder=True),
    "encoder": Reader(
        encoder_folder,
        lambda folder: call("encoders", "Encoder", model=str(folder))(folder).encode(["abc"]),
        folder=True,
    ),
    "checkpoint": Reader(checkpoint, read_checkpoint, folder=True),
    "kept vectors": Reader(kept_vectors, read_kept_vectors, "nothing"),
    "downloads": Reader(lambda: {"downloads.json": json.dumps({"hub:y": "0" * 64}).encode()}, read_downloads),
    "genes txt": Reader(
        lambda: {"genes.txt": "\n".join(profiles()["gene"]).encode()},
        lambda folder: call("biology.genes", "read_genes", paths=[folder / "genes.txt"])(folder),
    ),
    "genes csv": tables_of(
        "deltas.csv",
        make=deltas,
        read=lambda folder: call("biology.genes", "read_genes", paths=[folder / "deltas.csv"])(folder),
    ),
    "hgnc": tables_of(
        "hgnc.tsv",
        make=lambda: pd.DataFrame(
            {"hgnc_id": range(6), "symbol": [f"G{i}" for i in range(6)], "prev_symbol": ["X|Y", *"abcde"]}
            | {"alias_symbol": ["", *"fghij"]}
        ),
        read=lambda folder: call("biology.genes", "warn_of_outdated", genes=["X"], hgnc=folder / "hgnc.tsv")(folder),
    ),
    "pairs parquet": tables_of(
        "pairs.parquet", make=pairs, read=call("biology.pairs", "read_pairs", "pairs.parquet"), cut="nothing"
    ),
    "pairs csv": tables_of("pairs.csv", make=pairs, read=call("biology.pairs", "read_pairs", "pairs.csv")),
    "profiles csv": tables_of(
        "p.csv", make=profiles, read=call("biology.profiles", "read_profiles", "p.csv"), cut="text"
    ),
    "vectors": tables_of(
        "v.parquet", make=vectors, read=call("biology.vectors", "read_vectors", "v.parquet"), cut="nothing"
    ),
    "deltas csv": tables_of("deltas.csv", make=deltas, read=call("biology.cells", "changes_of_table", "deltas.csv")),
}


def _end_the_process(folder: Path) -> None:
    os.abort()


def _read_for_ever(folder: Path) -> None:
    while True:
        pass


# Faults, that are to be seen.
PLANTED = {
    "raises KeyError": Reader(lambda: {"a.txt": b"abc" * 9}, lambda folder: {}["a"]),
    "names no file": Reader(lambda: {"a.txt": b"abc" * 9}, lambda folder: int("x")),
    "forgets rows": Reader(
        lambda: {"a.jsonl": b"1\n" * 99},
        lambda folder: pd.DataFrame({"a": [line for line in (folder / "a.jsonl").read_bytes().split(b"\n") if line]}),
        "nothing",
    ),
    "ends the process": Reader(lambda: {"a.txt": b"abc" * 9}, _end_the_process),
    "reads for ever": Reader(lambda: {"a.txt": b"abc" * 9}, _read_for_ever),
}


# --- damage ----------------------------------------------------------------------------------------------------------

STRANGE = [None, True, -1, 1e300, 2**70, "", "x", "\0", [], {}, [None], {"a": None}, [[1]], float("nan")]
CELLS = [
    "",
    " ",
    "nan",
    "None",
    "1e999",
    "-1",
    "99999999999999999999",
    "[]",
    '"',
    "\0",
    "x" * 200_000,
    "\u202e",
    "1.5",
]
KINDS = [
    "flip",
    "flip",
    "cut",
    "cut",
    "delete",
    "double",
    "swap",
    "nul",
    "no utf-8",
    "value",
    "value",
    "other",
    "empty",
]


def damaged(name: str, content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What was done, and what is left."""
    kind = rng.choice(KINDS)
    at = rng.randrange(len(content) + 1)
    chunk = slice(at, at + rng.choice([1, 4, 30, 500]))
    if kind == "flip":
        changed = bytearray(content)
        places = [rng.randrange(len(content)) for _ in range(rng.choice([1, 1, 2, 8]))]
        for place in places:
            changed[place] ^= 1 << rng.randrange(8)
        return f"flip {sorted(places)}", bytes(changed)
    if kind == "cut":
        return f"cut {at}", content[:at]
    if kind == "delete":
        return f"delete {chunk}", content[:at] + content[chunk.stop :]
    if kind == "double":
        return f"double {chunk}", content[:at] + content[chunk] + content[at:]
    if kind == "swap":
        middle, end = sorted(rng.randrange(at, len(content) + 1) for _ in range(2))
        return f"swap {at} {middle} {end}", content[:at] + content[middle:end] + content[at:middle] + content[end:]
    if kind == "nul":
        return f"nul {at}", content[:at] + bytes(rng.choice([1, 16])) + content[at:]
    if kind == "no utf-8":
        return f"no utf-8 {at}", content[:at] + rng.choice(
            [b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xfe\xff"]
        ) + content[at:]
    if kind == "value":
        return strange_value(name, content, rng)
    if kind == "other":
        return other_content(rng)
    return "empty", b""


def strange_value(name: str, content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A file that is whole, with a value in it that is of another kind."""
    suffixes = Path(name).suffixes
    # Where a value in a tokenizer is of another kind, tokenizers raises a plain Exception, or takes it and stumbles
    # when it is used: edited by hand, not damaged, and the traceback says what is wrong.
    if Path(name).name.startswith("tokenizer"):
        return "nothing", content
    if suffixes[-1:] == [".gz"]:
        done, changed = strange_value(name.removesuffix(".gz"), gzip.decompress(content), rng)
        return done, gzip.compress(changed, mtime=0)
    if suffixes[-1:] == [".parquet"]:
        path = Path(sys.argv[1]) / "strange.parquet"
        path.write_bytes(content)
        found = pd.read_parquet(path)
        column, value = rng.choice(list(found.columns)), rng.choice([*STRANGE, "drop", "rename", "rows"])
        if value == "drop":
            found = found.drop(columns=column)
        elif value == "rename":
            found = found.rename(columns={column: "other"})
        elif value == "rows":
            found = found.iloc[:0]
        else:
            of_others = [value] * len(found) if rng.random() < 0.5 or value is None else [None] * len(found)
            of_others[0] = value
            found[column] = pd.Series(of_others, dtype=object)
        try:
            found.to_parquet(path, index=False)
        except (ValueError, TypeError, OverflowError, NotImplementedError):  # parquet has no such value
            return "nothing", content
        return f"{column} is {value!r}", path.read_bytes()
    if suffixes[-1:] in ([".json"], [".jsonl"]):
        lines = content.split(b"\n") if suffixes[-1:] == [".jsonl"] else [content]
        which = rng.randrange(len(lines))
        if not lines[which].strip():
            return "nothing", content
        holder: dict[str, Any] = {"": json.loads(lines[which])}
        places = list(nodes(holder))
        container, key = rng.choice(places)
        value = rng.choice(STRANGE)
        container[key] = value
        lines[which] = json.dumps(holder[""]).encode()
        return f"line {which}: {key!r} is {value!r}", b"\n".join(lines)
    if suffixes[-1:] in ([".csv"], [".tsv"], [".txt"], [".gmt"], [".gaf"], [".obo"]):
        fields = content.replace(b"\n", b"\n\t").replace(b",", b",\t").split(b"\t")
        which, value = rng.randrange(len(fields)), rng.choice(CELLS)
        start = sum(len(field) + 1 for field in fields[:which])
        end = start + len(fields[which].rstrip(b"\n,"))
        spread = content.replace(b"\n", b"\n\t").replace(b",", b",\t")
        changed = (spread[:start] + value.encode() + spread[end:]).replace(b"\n\t", b"\n").replace(b",\t", b",")
        return f"field {which} is {value[:20]!r}", changed
    return "nothing", content


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from nodes(value[key])


def other_content(rng: random.Random) -> tuple[str, bytes]:
    other = rng.choice(["parquet", "csv", "tsv", "json", "jsonl", "csv.gz", "gmt", "bioconductor", "kept vectors"])
    files = whole(other)
    name = rng.choice(sorted(files))
    return f"is {name}", files[name]


@cache
def whole(reader: str) -> Mapping[str, bytes]:
    return spec_of(reader).files()


def spec_of(reader: str) -> Reader:
    return READERS.get(reader) or PLANTED[reader]


# --- judgement -------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Lists, dicts, numbers and texts of what a reader gave."""
    if isinstance(value, pd.DataFrame):
        return {"rows": [plain(row) for row in value.to_dict("records")], "columns": [str(name) for name in value]}
    if isinstance(value, pd.Series):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return plain(vars(value))
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    if value is None or (isinstance(value, float) and value != value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


def is_beginning(found: Any, of: Any, *, text: bool) -> bool:
    """Whether a table holds the first rows of another; with `text` its last cell may be cut."""
    rows, all_rows = found["rows"], of["rows"]
    if found["columns"] != of["columns"] or len(rows) > len(all_rows):
        return False
    if rows == all_rows[: len(rows)]:
        return True
    if not text or rows[:-1] != all_rows[: len(rows) - 1]:
        return False
    ours, whole_row = rows[-1], all_rows[len(rows) - 1]
    *others, last = found["columns"]
    if any(ours[name] != whole_row[name] for name in others):
        return False
    if isinstance(whole_row[last], list):  # genes of a GMT file, the last of them cut
        *before, end = ours[last]
        return whole_row[last][: len(before)] == before and whole_row[last][len(before)].startswith(end)
    return str(whole_row[last]).startswith(str(ours[last] or ""))


def outcome(reader: str, number: int, folder: Path) -> Iterator[dict[str, Any]]:
    """What is to be done, then what came of it: "same", "changed", "error", or "fault" with the reason."""
    spec, files = spec_of(reader), whole(reader)
    rng = random.Random(f"{reader} {number}")
    target = rng.choice(sorted(files))
    done, content = damaged(target, files[target], rng)
    if content == files[target]:
        done = "nothing"
    case = {"reader": reader, "number": number, "file": target, "done": done}
    yield case
    place = folder / "files"
    shutil.rmtree(place, ignore_errors=True)
    for name, whole_content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if name == target else whole_content)
    signal.alarm(SECONDS)
    # C code that does not come back does not hear the alarm.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        found = plain(spec.read(place))
    except (ValueError, OSError) as error:
        signal.alarm(0)
        named = [*(Path(name).name for name in files), *([str(place)] if spec.folder else [])]
        if done == "nothing" or not any(name in str(error) for name in named):
            yield case | {"outcome": "fault", "why": f"{type(error).__name__} without the file: {str(error)[:300]}"}
        else:
            yield case | {"outcome": "error", "why": str(error)[:200]}
        return
    except BaseException as error:  # any other exception is a fault, and so is the alarm
        signal.alarm(0)
        if isinstance(error, KeyboardInterrupt):
            raise
        yield case | {"outcome": "fault", "why": f"{type(error).__name__}: {str(error)[:300]}", "at": _where(error)}
        return
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    right = original(reader, folder)
    same = json.dumps(found) == json.dumps(right)
    problem = None if same else silently_wrong(spec, target, done, content, found, right)
    if problem:
        yield case | {"outcome": "fault", "why": problem}
    else:
        yield case | {"outcome": "same" if same else "changed"}


def silently_wrong(spec: Reader, target: str, done: str, content: bytes, found: Any, right: Any) -> str | None:
    """Why a result that differs from the right one should have been an error, where that can be known."""
    if done == "nothing":
        return "another result for the same file"
    of_beginning = spec.cut in ("rows", "text") and is_beginning(found, right, text=spec.cut == "text")
    if done.startswith("cut ") and spec.cut != "any" and not of_beginning:
        return f"a cut file gave another result: {str(found)[-300:]}"
    if target.endswith(".parquet") and done.startswith("flip "):
        footer = int.from_bytes(content[-8:-4], "little") + 8
        places = json.loads(done.removeprefix("flip "))
        if max(places) < len(content) - footer:
            return "changed data were not noticed"
    return None


_ORIGINALS: dict[str, Any] = {}


def original(reader: str, folder: Path) -> Any:
    if reader not in _ORIGINALS:
        place = folder / "files"
        shutil.rmtree(place, ignore_errors=True)
        for name, content in whole(reader).items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        _ORIGINALS[reader] = plain(spec_of(reader).read(place))
    return _ORIGINALS[reader]


class TooLongError(BaseException):
    """Not an Exception: nobody may take it for one of his own."""


def _too_long(*_: Any) -> None:
    raise TooLongError(f"more than {SECONDS} s")


def _where(error: BaseException) -> str:
    return " < ".join(
        f"{frame.name} {Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)[::-1][:6]
    )


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    faulthandler.enable()
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with (folder / "log.jsonl").open("w") as log:
        for argument in sys.argv[2:]:
            reader, _, span = argument.rpartition("=")
            first, count = map(int, span.split(":"))
            for number in range(first, first + count):
                for line in outcome(reader, number, folder):
                    log.write(json.dumps(line) + "\n")
                    log.flush()


if __name__ == "__main__":
    main()
