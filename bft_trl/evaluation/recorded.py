"""Scores of recorded answers: of other systems (GeneAgent, GPT-4, an agent of your own), as our tasks score them."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.data.evaluation_sets import load_gene_names
from bft_trl.data.tables import ids_as_text, read_gmt, read_table, split_genes
from bft_trl.evaluation.baselines import baseline_scores, enrichment_baseline
from bft_trl.evaluation.names import Scorer, load_scorer, proposed_name, recorded_name, score_names
from bft_trl.evaluation.samples import RECORDED
from bft_trl.evaluation.scores import absolute, document_key, document_parts, read_settings, write_scores
from bft_trl.io import check_folder

logger = logging.getLogger(__name__)

MISSING = ("error", "empty", "skip")


def score_recorded(
    predictions: Path,
    output_dir: Path,
    *,
    references: Path | None = None,
    task: str | None = None,
    data_dir: Path | None = None,
    source: str | None = None,
    background: Path | None = None,
    encoder: str | None = None,
    ontology: Path | None = None,
    missing: str = "error",
    baselines: bool = False,
    gmt: Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Writes scores and answers (see [`write_scores`]) and `summary.csv`, and returns the latter.

    Args:
        predictions: table with id, and predicted_name for gene sets, or label, text or both for questions; optionally
            model (else the file's name is taken) and source.
        output_dir: folder.
        references: table with id, name and genes of gene sets; or name a `task`.
        task: one of our tasks, such as "bft_medmcqa", whose documents are the references.
        data_dir: folder with the data of `task`; None for the Hub and the publishers.
        source: score only the predictions with this value in the column source.
        background: table with a column name, or a text file of one name a line; adds percentile, needs `encoder`.
        encoder: Hub id or folder of a sentence encoder; adds similarity.
        ontology: OBO file; adds scores of GO sets by the Gene Ontology, needs `encoder`.
        missing: what to do if a model has no row for an id: "error", "empty" (scores 0) or "skip" (score the others).
        baselines: add the baselines of the task.
        gmt: add the top term of an over-representation test against this library; for gene sets.
        seed: of the baseline that gives every set another set's name.

    Raises ValueError or FileNotFoundError for bad input, before anything is encoded or written.
    """
    _check_options(output_dir, references, task, encoder=encoder, background=background, seed=seed)
    documents = _read_references(references) if references is not None else _task_documents(str(task), data_dir)
    named = "genes" in documents.iloc[0]
    for_names = [f"`{name}`" for name, value in (("gmt", gmt), ("encoder", encoder), ("ontology", ontology)) if value]
    if for_names and not named:
        raise ValueError(f"{', '.join(for_names)} is for names of gene sets, but {task} has questions.")
    table = _read_predictions(predictions, documents, missing, source=source)
    if gmt is not None:
        table = pd.concat([table, _enrichment(documents, gmt)], ignore_index=True)
    scorer = load_scorer(encoder or "none", background or "none", ontology=ontology) if named else None
    metrics = score_answers(documents[table["unit"]].tolist(), table["answer"].tolist(), scorer)
    scores = pd.concat([table[["model", "kind", "unit"]], metrics], axis=1)
    if baselines:
        options = {"scorer": scorer, "rng": np.random.default_rng(seed), "gene_names": load_gene_names(data_dir)}
        scores = pd.concat([scores, _baselines(documents, list(metrics), **options)], ignore_index=True)
    of_task = ({} if scorer is None else scorer.settings) | {"higher_is_better": dict.fromkeys(metrics, True)}
    inputs = {"encoder": encoder, "background": background, "ontology": ontology, "data_dir": data_dir}
    inputs = {name: absolute(path) for name, path in inputs.items() if path is not None}
    settings = {"tasks": {task or RECORDED: of_task}, "inputs": inputs}
    return _write(output_dir, scores, table.assign(task=task or RECORDED), documents, settings, seed)


def _baselines(documents: pd.Series, metrics: Sequence[str], **options: Any) -> pd.DataFrame:
    """The scores of all baselines, one row per baseline and document."""
    found = baseline_scores(documents.tolist(), range(len(documents)), metrics, **options)
    tables = [
        rows.assign(unit=documents.index, model=f"baseline: {name}", kind="baseline") for name, rows in found.items()
    ]
    return pd.concat(tables) if tables else pd.DataFrame()


def _check_options(
    output_dir: Path,
    references: Path | None,
    task: str | None,
    *,
    encoder: str | None,
    background: Path | None,
    seed: int,
) -> None:
    """Raises ValueError for options that cannot be used, before anything is read."""
    check_folder(output_dir)
    if seed < 0:
        raise ValueError(f"`seed={seed}` must be 0 or more.")
    if background is not None and encoder is None:
        raise ValueError(f"`background={str(background)!r}` needs `encoder`: it ranks by the encoder's similarity.")
    if (output_dir / "settings.json").is_file() and "request" in read_settings(output_dir):
        raise ValueError(f"`output_dir={str(output_dir)!r}` has the results of `bft-trl eval`. Name another folder.")
    if (references is None) == (task is None):
        raise ValueError("Set either `references` (gene sets of your own) or `task` (one of ours).")


def score_answers(
    documents: Sequence[Mapping[str, Any]], answers: Sequence[str | None], scorer: Scorer | None
) -> pd.DataFrame:
    """Returns the metrics of each answer, one row per document.

    Args:
        documents: gene sets (id, name, genes) or questions (labels, answer).
        answers: for gene sets a name or a full answer with "Process:", for questions a label; None for no answer.
        scorer: of names; None for questions.
    """
    if scorer is None:
        acc = [float(answer == document["answer"]) for document, answer in zip(documents, answers, strict=True)]
        return pd.DataFrame({"acc": acc})
    pairs = zip(documents, answers, strict=True)
    names = [proposed_name(recorded_name(answer), document["genes"]) for document, answer in pairs]
    references = [document["name"] for document in documents]
    return score_names(references, names, scorer, terms=[document["id"] for document in documents])


def recorded_systems() -> pd.DataFrame:
    """Returns the recorded answers that come with the package: system, key (see [`document_key`]) and answer.

    Names of gene sets by GeneAgent, GPT-4 and five models, labels of medical questions by ten models. Sources and
    licenses: docs/data.md.
    """
    with files("bft_trl.evaluation").joinpath("recorded.parquet").open("rb") as file:
        return pd.read_parquet(file)


def _write(
    output_dir: Path,
    scores: pd.DataFrame,
    answers: pd.DataFrame,
    documents: pd.Series,
    settings: dict[str, Any],
    seed: int,
) -> pd.DataFrame:
    """Writes answers, scores and settings, and returns means and standard errors."""
    task = answers["task"].iloc[0]
    settings["models"] = {model: {"kind": kind} for model, kind in zip(scores["model"], scores["kind"], strict=True)}
    long = scores.melt(["model", "kind", "unit"], var_name="metric", value_name="score").dropna(subset="score")
    groups = long.groupby(["model", "kind", "metric"], sort=False)["score"]
    summary = groups.agg(n="size", mean="mean", stderr="sem").reset_index()
    parts = documents[answers["unit"]].tolist()
    answers["reference"] = [part.get("name") or part["answer"] for part in parts]
    answers["document"] = [json.dumps(part, ensure_ascii=False) for part in parts]
    answers["key"] = [document_key(part) for part in parts]
    answers["prompt"] = None
    more = {"summary.csv": summary.to_csv(index=False).encode()}
    write_scores(output_dir, long.assign(task=task, seed=seed), settings, more, answers=answers)
    return summary


def _rows(units: pd.Index, model: str, kind: str, answers: Any) -> pd.DataFrame:
    return pd.DataFrame({"model": model, "kind": kind, "unit": units, "answer": answers})


def _enrichment(documents: pd.Series, gmt: Path) -> pd.DataFrame:
    library = read_gmt(gmt)
    # Terms of MSigDB's and Enrichr's GO libraries.
    oracle = library["id"].str.startswith(("GO:", "GOBP_")).any() and documents.index.str.startswith("GO:").any()
    # Terms with the same readable name ("DNA_REPAIR", "DNA repair (GO:0006281)") are one answer.
    genes = library.groupby("name", sort=False)["genes"].agg(lambda sets: sorted(set().union(*sets)))
    answers = enrichment_baseline([document["genes"] for document in documents], genes.to_dict())
    if oracle:
        return _rows(documents.index, f"oracle: {gmt.name} (a GO library on GO sets)", "oracle", answers)
    return _rows(documents.index, f"enrichment: {gmt.name}", "enrichment", answers)


def _read_references(path: Path) -> pd.Series:
    """The gene sets of a file by id: name and genes."""
    table = read_table(path, ["id", "name", "genes"])
    table = table.assign(id=_ids(path, table))
    _check(path, table["id"][table["id"].duplicated()], "repeated id")
    _check(path, table["id"][table["name"].astype("string").str.strip().fillna("") == ""], "no name for id")
    rows = table[["id", "name", "genes"]].to_dict("records")
    sets = [row | {"genes": split_genes(row["genes"])} for row in rows]
    return pd.Series(sets, index=pd.Index(table["id"], name="unit"))


def _task_documents(task: str, data_dir: Path | None) -> pd.Series:
    """The documents of one of our tasks by id."""
    from bft_trl.evaluation.runner import load_tasks

    metadata = {"encoder": "none", "background": "none"} | ({"data_dir": str(data_dir)} if data_dir else {})
    manager, loaded, left_out = load_tasks([task], metadata=metadata)
    found = manager.load(loaded)["tasks"] if loaded else {}
    if left_out or list(found) != [task]:
        raise ValueError(f"`task={task!r}` is not one task with its data. {'; '.join(left_out.values())}".strip())
    documents = [dict(document) for document in found[task].eval_docs]
    parts = [document_parts(document) for document in documents]
    if parts[0] is None:
        raise ValueError(f"`task={task!r}` has neither gene sets nor questions with labels.")
    return pd.Series(parts, index=pd.Index([str(document["id"]) for document in documents], name="unit"))


def _read_predictions(path: Path, documents: pd.Series, missing: str, *, source: str | None) -> pd.DataFrame:
    """model, kind, unit and answer, for each model in the order of the documents."""
    if missing not in MISSING:
        raise ValueError(f"`missing={missing!r}` is not known: choose one of {', '.join(MISSING)}.")
    named = "genes" in documents.iloc[0]
    table = read_table(path, ["id", *(["predicted_name"] if named else [])])
    if source is not None:
        table = _of_source(path, table, source)
    models = table["model"] if "model" in table else pd.Series(path.stem, index=table.index)
    bad = models[models.isna() | models.astype(str).str.match(r"\s*$|(baseline|oracle|enrichment): ")]
    _check(path, bad, "bad name of a model (none, or one that begins with baseline:, oracle: or enrichment:)")
    table = table.assign(id=_ids(path, table), model=models.astype(str))
    _check(path, table["id"][~table["id"].isin(documents.index)], "not among the references: id")
    _check(path, table["id"][table.duplicated(["model", "id"])], "two answers for id")
    table["answer"] = table["predicted_name"] if named else _labels(path, table, documents)
    n_empty = int((table["answer"].astype("string").str.strip().fillna("") == "").sum())
    if n_empty:
        logger.warning("%s: %d empty answers score 0", path, n_empty)
    parts = []
    for model, rows in table.groupby("model", sort=False):
        given = rows.set_index("id")["answer"]
        absent = documents.index[~documents.index.isin(given.index)]
        if missing == "error":
            remedy = '. `missing="empty"` scores them as empty answers, "skip" scores the others alone'
            _check(path, absent, f"model {model!r} has no prediction for id", remedy)
        units = documents.index.difference(absent, sort=False) if missing == "skip" else documents.index
        parts.append(_rows(units, str(model), "model", given.reindex(units).to_numpy()))
    return pd.concat(parts, ignore_index=True)


def _of_source(path: Path, table: pd.DataFrame, source: str) -> pd.DataFrame:
    if "source" not in table:
        raise ValueError(f"`source={source!r}`: {path} has no column source; its columns are {list(table.columns)}.")
    chosen = table[table["source"].astype(str) == source].reset_index(drop=True)
    if chosen.empty:
        raise ValueError(f"`source={source!r}`: {path} has {sorted(map(str, table['source'].unique()))} only.")
    return chosen


def _labels(path: Path, table: pd.DataFrame, documents: pd.Series) -> list[str | None]:
    """The label of each answer, which is given as the option's text, as its label, or both."""
    if not {"label", "text"} & set(table.columns):
        raise ValueError(f"{path}: has neither a column label nor text; its columns are {list(table.columns)}.")
    rows = table.reindex(columns=["id", "label", "text"]).astype("string").fillna("")
    found, wrong = [], []
    for row in rows.itertuples():
        document = documents[row.id]
        label, text = row.label.strip().lower(), " ".join(row.text.lower().split())
        options = [" ".join(option.lower().split()) for option in document["options"]]
        pairs = list(zip(document["labels"], options, strict=True))
        # The text decides: a label may be of options in another order. Equal texts are told apart by the label.
        matches = [given for given, option in pairs if text and text == option]
        matches = matches or [given for given in document["labels"] if text and text == given.lower()]
        exact = [given for given in document["labels"] if label and given.lower() == label]
        chosen = [given for given in matches if given in exact] or matches or ([] if text else exact)
        found.append(chosen[0] if chosen else None)
        if not chosen and (label or text):
            wrong.append(f"{row.id} ({row.text or row.label})")
    _check(path, wrong, "no option of the question: answer to id")
    return found


def _ids(path: Path, table: pd.DataFrame) -> pd.Series:
    ids = ids_as_text(table["id"], where=path)
    _check(path, ids.index[ids.isna()], "no id in row (counted from 0)")
    return ids


def _check(path: Path, wrong: Iterable[Any], what: str, remedy: str = "") -> None:
    """Raises ValueError that names the first of the wrong values, if there are any."""
    values = list(dict.fromkeys(wrong))
    if values:
        more = f" and {len(values) - 5} more" if len(values) > 5 else ""
        raise ValueError(f"{path}: {what} {', '.join(map(repr, values[:5]))}{more}{remedy}.")
