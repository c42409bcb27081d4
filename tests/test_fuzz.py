"""Damaged files: a reader returns a result, or raises one ValueError or OSError that names the file."""

import gzip
import io
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_gene_ontology import ANNOTATIONS, ONTOLOGY, gaf_text
from test_medical import MEDMCQA

from bft_trl.biology.genes import read_genes
from bft_trl.biology.pairs import read_pairs
from bft_trl.data.evaluation_sets import load_background
from bft_trl.data.gene_ontology import read_obo_gaf
from bft_trl.data.gene_sets import load_gene_sets
from bft_trl.data.medical import load_questions
from bft_trl.data.tables import read_gene_sets, read_gmt, read_table
from bft_trl.io import missing_part
from bft_trl.training.sample_log import SCHEMA, read_part


def table_bytes(table: pd.DataFrame, suffix: str) -> bytes:
    if suffix == ".parquet":
        buffer = io.BytesIO()
        table.to_parquet(buffer)
        return buffer.getvalue()
    if suffix == ".csv":
        return table.to_csv(index=False).encode()
    return table.to_json(orient="records", lines=suffix == ".jsonl", force_ascii=False).encode()


def sets() -> pd.DataFrame:
    table = load_gene_sets("eval").to_pandas().head(12)[["id", "name", "genes"]]
    table["genes"] = [" ".join(genes[:8]) for genes in table["genes"]]
    table["name"] = [f'{name}, "{number}" Größe' for number, name in enumerate(table["name"])]
    return table


def log_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict.fromkeys(SCHEMA.names, 1)] * 20, schema=SCHEMA), buffer)
    return buffer.getvalue()


PAIRS = pd.DataFrame({"gene_a": ["A", "B", "C"] * 4, "gene_b": ["D", "E", "F"] * 4, "label": [0, 1, 1] * 4})
QUESTIONS = pd.DataFrame([MEDMCQA | {"id": f"m{i}", "question": f"Which nerve {i}?"} for i in range(12)])
GMT = "".join(f"Term {i} (GO:{i:07})\td\t" + "\t".join(f"G{i}{x}" for x in "ABCD") + "\n" for i in range(12)).encode()
GENES = [f"GENE{i}" for i in range(20)]


def obo_gaf(path: Path) -> pd.DataFrame:
    (path.parent / "whole.gaf").write_text(gaf_text(ANNOTATIONS))
    return read_obo_gaf(path, path.parent / "whole.gaf", min_genes=1).sets


def gaf(path: Path) -> pd.DataFrame:
    (path.parent / "whole.obo").write_text(ONTOLOGY)
    return read_obo_gaf(path.parent / "whole.obo", path, min_genes=1).sets


# The name of the file, its content, and what reads it.
READERS = {
    **{f"table{s}": (f"t{s}", table_bytes(sets(), s), read_table) for s in (".parquet", ".csv", ".json", ".jsonl")},
    "table.csv.gz": ("t.csv.gz", gzip.compress(table_bytes(sets(), ".csv")), read_table),
    "gene sets": ("sets.csv", table_bytes(sets(), ".csv"), read_gene_sets),
    "gmt": ("sets.gmt", GMT, read_gmt),
    "obo": ("go.obo", ONTOLOGY.encode(), obo_gaf),
    "gaf": ("human.gaf", gaf_text(ANNOTATIONS).encode(), gaf),
    "questions": (
        "medmcqa_validation.parquet",
        table_bytes(QUESTIONS, ".parquet"),
        lambda path: load_questions("medmcqa", data_dir=path.parent),
    ),
    "background": ("background.txt", "\n".join(sets()["name"]).encode(), load_background),
    "pairs": ("pairs.csv", table_bytes(PAIRS, ".csv"), read_pairs),
    "genes": ("genes.txt", "\n".join(GENES).encode(), lambda path: read_genes([path])),
    "sample log": ("part-00000-0.parquet", log_bytes(), read_part),
    "checkpoint": ("trainer_state.json", b'{"global_step": 3}', lambda path: missing_part(path.parent)),
}
VALUES = [b"", b"nan", b"1e999", b"-1", b"[]", b"\0", "\u202e".encode(), b"\xff\xfe", b'"', b"\n\n", b"x" * 10_000]


def damage(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with one kind of damage."""
    first = rng.randrange(len(content))
    last = min(len(content), first + rng.randrange(1, 40))
    kind = rng.choice(["flip", "cut", "delete", "double", "nul", "value"])
    if kind == "flip":
        return content[:first] + bytes([content[first] ^ 1 << rng.randrange(8)]) + content[first + 1 :]
    if kind == "cut":
        return content[:first]
    if kind == "delete":
        return content[:first] + content[last:]
    if kind == "double":
        return content[:last] + content[first:]
    return content[:first] + (b"\0" if kind == "nul" else rng.choice(VALUES)) + content[last:]


def error_of(read, path: Path) -> Exception | None:
    try:
        read(path)
    except (ValueError, OSError) as error:
        return error
    return None


@pytest.mark.parametrize("count", [30, pytest.param(3000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_named(name, count, tmp_path):
    file, content, read = READERS[name]
    path = tmp_path / file
    path.write_bytes(content)
    read(path)
    for seed in range(count):
        path.write_bytes(damage(content, random.Random(seed)))
        error = error_of(read, path)
        assert error is None or file in str(error), f"seed {seed}: {error!r}"
