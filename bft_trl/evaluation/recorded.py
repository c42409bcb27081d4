"""Scores of names that other systems proposed (GPT-4, GeneAgent, an agent of your own), as our tasks score names."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.data.tables import ids_as_text, read_gmt, read_table, split_genes
from bft_trl.evaluation.baselines import enrichment_baseline, name_baselines
from bft_trl.evaluation.names import load_scorer, recorded_name, score_names
from bft_trl.evaluation.samples import RECORDED, documents_hash
from bft_trl.evaluation.scores import write_scores
from bft_trl.io import check_folder

logger = logging.getLogger(__name__)

MISSING = ("error", "empty", "skip")


def score_recorded(
    predictions: Path,
    references: Path,
    output_dir: Path,
    *,
    background: Path | None = None,
    encoder: str | None = None,
    missing: str = "error",
    baselines: bool = False,
    gmt: Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Writes scores (see [`write_scores`]), `answers.parquet` and `summary.csv`, and returns the latter.

    Args:
        predictions: table with id, predicted_name and optionally model; without it the file's name is the model's.
        references: table with id and name; genes too if `gmt` is given.
        output_dir: folder.
        background: table with a column name, or a text file of one name a line; adds percentile, needs `encoder`.
        encoder: Hub id or folder of a sentence encoder; adds similarity.
        missing: what to do if a model has no row for an id: "error", "empty" (scores 0) or "skip" (score the others).
        baselines: add answers that ignore the genes.
        gmt: add the top term of an over-representation test against this library.
        seed: of the baseline that gives every set another set's name.

    Raises ValueError or FileNotFoundError for bad input, before anything is encoded or written.
    """
    check_folder(output_dir)
    if seed < 0:
        raise ValueError(f"`seed={seed}` must be 0 or more.")
    if background is not None and encoder is None:
        raise ValueError(f"`background={str(background)!r}` needs `encoder`: it ranks by the encoder's similarity.")
    truth = _read_references(references, need_genes=gmt is not None)
    parts = [_read_predictions(predictions, truth, missing)]
    if baselines:
        answers = name_baselines(truth["name"].tolist(), rng=np.random.default_rng(seed))
        parts += [_rows(truth, f"baseline: {name}", "baseline", given) for name, given in answers.items()]
    if gmt is not None:
        parts.append(_enrichment(truth, gmt))
    table = pd.concat(parts, ignore_index=True)
    table["name"] = truth["name"].reindex(table["unit"]).to_numpy()
    scorer = load_scorer(encoder or "none", background or "none")
    metrics = score_names(table["name"].tolist(), table["answer"].map(recorded_name).tolist(), scorer)
    task = scorer.settings | {"documents": documents_hash(truth.index, truth["name"])}
    settings = {
        "tasks": {RECORDED: task | {"higher_is_better": dict.fromkeys(metrics, True)}},
        "models": {model: {"kind": kind} for model, kind in zip(table["model"], table["kind"], strict=True)},
        "inputs": {"predictions": predictions, "references": references, "encoder": encoder, "background": background},
    }
    return _write(output_dir, table, metrics, settings, seed)


def _write(
    output_dir: Path, table: pd.DataFrame, metrics: pd.DataFrame, settings: dict[str, Any], seed: int
) -> pd.DataFrame:
    """Writes answers, scores and settings, and returns means and standard errors."""
    scores = pd.concat([table[["model", "kind", "unit"]], metrics], axis=1)
    scores = scores.melt(["model", "kind", "unit"], var_name="metric", value_name="score")
    groups = scores.groupby(["model", "kind", "metric"], sort=False)["score"]
    summary = groups.agg(n="size", mean="mean", stderr="sem").reset_index()
    more = {"answers.parquet": table.to_parquet(index=False), "summary.csv": summary.to_csv(index=False).encode()}
    write_scores(output_dir, scores.assign(task=RECORDED, seed=seed), settings, more)
    return summary


def _rows(truth: pd.DataFrame, model: str, kind: str, answers: Any) -> pd.DataFrame:
    return pd.DataFrame({"model": model, "kind": kind, "unit": truth.index, "answer": answers})


def _enrichment(truth: pd.DataFrame, gmt: Path) -> pd.DataFrame:
    library = read_gmt(gmt)
    # Terms of MSigDB's and Enrichr's GO libraries.
    oracle = library["id"].str.startswith(("GO:", "GOBP_")).any() and truth.index.str.startswith("GO:").any()
    # Terms with the same readable name ("DNA_REPAIR", "DNA repair (GO:0006281)") are one answer.
    genes = library.groupby("name", sort=False)["genes"].agg(lambda sets: sorted(set().union(*sets)))
    answers = enrichment_baseline(truth["genes"].tolist(), genes.to_dict())
    if oracle:
        return _rows(truth, f"oracle: {gmt.name} (a GO library on GO sets)", "oracle", answers)
    return _rows(truth, f"enrichment: {gmt.name}", "enrichment", answers)


def _read_references(path: Path, *, need_genes: bool) -> pd.DataFrame:
    """Name, and genes if they are needed, by id."""
    table = read_table(path, ["id", "name", *(["genes"] if need_genes else [])])
    table = table.assign(id=_ids(path, table))
    _check(path, table["id"][table["id"].duplicated()], "repeated id")
    _check(path, table["id"][table["name"].astype("string").str.strip().fillna("") == ""], "no name for id")
    if need_genes:
        table["genes"] = table["genes"].map(split_genes)
    return table.set_index("id")


def _read_predictions(path: Path, truth: pd.DataFrame, missing: str) -> pd.DataFrame:
    """model, kind, unit and answer, for each model in the order of the references."""
    if missing not in MISSING:
        raise ValueError(f"`missing={missing!r}` is not known: choose one of {', '.join(MISSING)}.")
    table = read_table(path, ["id", "predicted_name"])
    models = table["model"] if "model" in table else pd.Series(path.stem, index=table.index)
    bad = models[models.isna() | models.astype(str).str.match(r"\s*$|(baseline|oracle|enrichment): ")]
    _check(path, bad, "bad name of a model (none, or one that begins with baseline:, oracle: or enrichment:)")
    table = table.assign(id=_ids(path, table), model=models.astype(str))
    _check(path, table["id"][~table["id"].isin(truth.index)], "not among the references: id")
    _check(path, table["id"][table.duplicated(["model", "id"])], "repeated id")
    parts = []
    for model, rows in table.groupby("model", sort=False):
        given = rows.set_index("id")["predicted_name"]
        absent = truth.index[~truth.index.isin(given.index)]
        if missing == "error":
            remedy = '. `missing="empty"` scores them as empty answers, "skip" scores the others alone'
            _check(path, absent, f"model {model!r} has no prediction for id", remedy)
        units = truth.index.difference(absent, sort=False) if missing == "skip" else truth.index
        parts.append(_rows(truth.loc[units], str(model), "model", given.reindex(units).to_numpy()))
    return pd.concat(parts, ignore_index=True)


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
