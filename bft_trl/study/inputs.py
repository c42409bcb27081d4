"""The rows of a study: training data, and evaluation documents to choose on and to report on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bft_trl.data.documents import check_leakage
from bft_trl.data.evaluation_sets import PUBLISHED
from bft_trl.data.gene_sets import load_gene_sets, shipped_sets, to_rows
from bft_trl.data.leakage import normalize_text, split, without_leaks
from bft_trl.data.loading import as_conversations, load_split, load_splits
from bft_trl.data.medical import SOURCES, as_questions, question_row, read_published
from bft_trl.data.tables import READERS, parquet_bytes
from bft_trl.io import write_files

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """Where a study's data set is."""

    dataset_name: str  # training rows, with validation rows in the split "test"
    tasks: str
    validation_dir: Path  # data_dir of the tasks when options are chosen
    test_dir: Path  # data_dir of the tasks when results are reported


class Builder(NamedTuple):
    """Data that the package can make."""

    tables: Callable[..., dict[str, pd.DataFrame]]
    tasks: Callable[[Mapping[str, Any]], str]
    metrics: Sequence[str]
    defaults: Mapping[str, Any]


def prepare(name: str, entry: Mapping[str, Any], folder: Path) -> Inputs:
    """Returns where a data set of the study is, and writes it to `folder` if one of [`BUILDERS`] makes it.

    Args:
        name: of the data set.
        entry: its options in the YAML file.
        folder: for the files.

    Raises ValueError or OSError that names the data set.
    """
    builder = next((found for found in BUILDERS if found in entry), None)
    tasks = entry.get("tasks", "")
    tasks = tasks if isinstance(tasks, str) else ",".join(tasks)
    if builder is None:
        return Inputs(entry["dataset_name"], tasks, Path(entry["validation_dir"]), Path(entry["test_dir"]))
    make, tasks_of, _, defaults = BUILDERS[builder]
    options = {**defaults, **(entry[builder] or {})}
    tables = make(**options)
    short = [part for part in ("rows/train", "rows/test") if tables[f"{part}.parquet"].empty]
    if short:
        raise ValueError(f"`data: {name}` has no rows for {', '.join(short)}: {options}.")
    write_files({folder / path: parquet_bytes(table) for path, table in tables.items()})
    return Inputs(str(folder / "rows"), tasks or tasks_of(options), folder / "validation", folder / "test")


def find_leaks(inputs: Inputs, train: Path) -> pd.DataFrame:
    """Returns the rows of `train` that leak documents of either evaluation, and validation documents in the test."""
    validation, test = (_documents(folder) for folder in (inputs.validation_dir, inputs.test_dir))
    if not validation or not test:
        logger.warning("Not checked for leaks, because their columns are not known: the documents of %s", inputs.tasks)
    found = [check_leakage([train], [*validation, *test])] if validation or test else []
    # The documents to choose on must not be those to report on.
    found += [check_leakage(validation, test)] if validation and test else []
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def training_file(inputs: Inputs, options: Mapping[str, Any], folder: Path) -> Path:
    """Returns a file with the training rows, which is written to `folder` if they are not the package's.

    `options` are those of training. Raises ValueError or OSError for data that training could not read.
    """
    file, name = Path(inputs.dataset_name) / "train.parquet", inputs.dataset_name
    if file.is_file():
        return file
    rows = load_split(load_splits(name, config=options.get("dataset_config")), "train", name, argument="split")
    columns: dict[str, Any] = {key: options.get(key) for key in ("prompt_column", "completion_columns")}
    rows = as_conversations(rows, **columns) if any(columns.values()) else rows
    rows.to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


def _documents(folder: Path) -> list[Path]:
    stems = {f"gene_sets_{name}" for name in PUBLISHED} | {f"{name}_{of.test}" for name, of in SOURCES.items()}
    return sorted(path for path in folder.glob("*") if path.suffix in READERS and path.stem in stems)


def _gene_set_tables(
    *, described: bool, max_genes: int, train_samples: int, validation_samples: int, test_samples: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Tables of the shipped gene sets: "train", "eval" to choose on, and GeneAgent's sets to report on."""
    names = ("train", "eval", "test")
    sizes = dict(zip(names, (train_samples, validation_samples, test_samples), strict=True))
    rows = {n: load_gene_sets(n, described=True, max_genes=max_genes).shuffle(seed=seed).to_pandas() for n in names}
    rows = {name: table.head(sizes[name]) for name, table in rows.items()}
    every = pd.concat(rows.values())
    full = every.explode(["genes", "gene_names"]).dropna(subset="gene_names")[["genes", "gene_names"]]
    full = full.drop_duplicates("genes").set_axis(["symbol", "name"], axis=1)
    background = pd.DataFrame({"name": sorted({*shipped_sets()["name"], *every["name"]})})
    tables = {}
    for folder, name in (("validation", "eval"), ("test", "test")):
        tables[f"{folder}/gene_sets_go.parquet"] = rows[name][["id", "name", "genes"]]
        tables[f"{folder}/gene_names.parquet"] = full
        tables[f"{folder}/go_background_terms.parquet"] = background
    for split_name, name in (("train", "train"), ("test", "eval")):
        table = rows[name].reset_index(drop=True)
        tables[f"rows/{split_name}.parquet"] = to_rows(table, source="go_bp", analysis=False, described=described)
    return tables


def _medical_tables(
    *, data_dir: str | None, train_samples: int, validation_samples: int, test_samples: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Tables of MedMCQA's validation questions and PubMedQA's training questions that have an explanation.

    Test documents are further ones of MedMCQA, PubMedQA's test questions and those of MMLU's medical subjects.
    """
    rng = np.random.default_rng(seed)
    folder = Path(data_dir) if data_dir is not None else None
    published, questions = {}, []
    for source, part in (("medmcqa", "validation"), ("pubmedqa", "train")):
        table, where = read_published(source, split=part, data_dir=folder)
        found = as_questions(table, source, where=where, split=part, drop_unanswered=True)
        published[source] = table.assign(id=table["id"].astype(str))
        questions.append(found[found["explanation"].notna()].assign(source=source))
    tests = {s: read_published(s, data_dir=folder)[0] for s in ("pubmedqa", "mmlu_medical")}
    pool = pd.concat(questions, ignore_index=True)
    body = (pool["context"] + " " + pool["question"]).str.strip()
    documents = pool[["id"]].assign(text=pool["question"], body=body)
    against = []
    for source, table in tests.items():
        found = as_questions(table, source, where=source)
        against.append(found[["id"]].assign(text=found["question"], body=found["question"]))
    pool = without_leaks(pool, documents, against)
    equal = pool.groupby(pool["question"].map(normalize_text), sort=False).indices.values()
    sizes = {"test": test_samples, "validation": validation_samples, "train": train_samples}
    parts = split(pool, [group.tolist() for group in equal], sizes, rng=rng)
    tables = {}
    for name, part in (("train", "train"), ("test", "validation")):
        rows = [question_row(row, source=row["source"]) for row in parts[part].to_dict("records")]
        tables[f"rows/{name}.parquet"] = pd.DataFrame(rows)
    for part in ("validation", "test"):
        for source, table in published.items():
            ids = parts[part].query("source == @source")["id"]
            if len(ids) and not (part == "test" and source in tests):
                name = f"{source}_{SOURCES[source].test}"
                tables[f"{part}/{name}.parquet"] = table[table["id"].isin(ids)].reset_index(drop=True)
    for source, table in tests.items():
        if source == "mmlu_medical":
            table = table.sample(frac=1, random_state=seed)
        tables[f"test/{source}_test.parquet"] = table.head(test_samples).reset_index(drop=True)
    return tables


BUILDERS: Mapping[str, Builder] = {
    "gene_sets": Builder(
        _gene_set_tables,
        lambda options: "bft_gene_sets_described_go" if options["described"] else "bft_gene_sets_go",
        ("similarity", "percentile", "rouge1"),
        {
            "described": True,
            "max_genes": 9,
            "train_samples": 400,
            "validation_samples": 60,
            "test_samples": 100,
            "seed": 0,
        },
    ),
    "medical": Builder(
        _medical_tables,
        lambda options: "bft_medmcqa,bft_pubmedqa,bft_mmlu_medical",
        ("acc",),
        {"data_dir": None, "train_samples": 400, "validation_samples": 200, "test_samples": 200, "seed": 0},
    ),
}
