"""Names that were proposed elsewhere (GPT-4, GeneAgent, an agent of your own), scored like those of our tasks."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.data.evaluation_sets import load_background
from bft_trl.data.tables import ids_as_text, parquet_bytes, read_gmt, read_table, split_genes
from bft_trl.encoders import Encoder, cached_vectors, load_encoder
from bft_trl.evaluation.baselines import enrichment_floor, name_floors
from bft_trl.evaluation.names import ANSWER_COLUMNS, SCORER_VERSION, Background, recorded_name, score_names
from bft_trl.io import check_folder, write_files

logger = logging.getLogger(__name__)

MISSING = ("error", "unnamed", "skip")


def score_recorded(
    predictions: Path,
    references: Path,
    out: Path,
    *,
    background: Path | None = None,
    encoder: str | None = None,
    missing: str = "error",
    floors: bool = False,
    gmt: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes `scores.json` and the per-set table `scores.parquet` into `out` and returns what is in the former.

    Args:
        predictions: table with id, predicted_name and optionally model (else the file's name is the model's).
        references: table with id and name; genes too where `gmt` is given.
        background: table with a column name, or a text file of one name a line; adds percentile, needs `encoder`.
        encoder: Hub id or folder of a sentence encoder; adds similarity.
        missing: what to do where a model has no row for an id: "error", "unnamed" (no answer: scores 0) or "skip"
            (the model is scored on what it has; its n says how many).
        floors: add rows for answers that ignore the genes.
        gmt: add the top term of an over-representation test against this library.
        seed: of the floor that deals every set another's name.

    Raises ValueError or FileNotFoundError for bad input, before anything is encoded or written.
    """
    check_folder(out, name="out")
    if seed < 0:
        raise ValueError(f"`seed={seed}` must be 0 or more.")
    truth = _references(references, need_genes=gmt is not None)
    answers = _predictions(predictions, truth, missing)
    if background is not None and encoder is None:
        raise ValueError(f"`background={str(background)!r}` needs `encoder`: it ranks by the encoder's similarity.")
    background_names = load_background(background) if background is not None else None
    answers |= _beside(truth, floors=floors, gmt=gmt, rng=np.random.default_rng(seed))
    loaded: Encoder | None = None
    ranked: Background | None = None
    settings = {"encoder": encoder, "background": background and str(background), "encoder_fingerprint": None}
    if encoder is not None:
        loaded = load_encoder(encoder)
        if background_names is None:
            logger.info("No `background` names: percentile is left out.")
        else:
            ranked = Background(*cached_vectors(loaded, background_names))
        settings["encoder_fingerprint"] = loaded.fingerprint
    settings |= {"background_fingerprint": ranked.fingerprint if ranked else None, "scorer_version": SCORER_VERSION}
    table = pd.concat([_answered(truth, given, *who) for who, given in answers.items()], ignore_index=True)
    # All models at once: every text is encoded once.
    columns = (table[column].tolist() for column in ("name", "predicted_name"))
    table = pd.concat([table, score_names(*columns, encoder=loaded, background=ranked)], axis=1)
    unnamed = (table["named"] == 0)[table["kind"] == "model"].groupby(table["model"], sort=False).agg(["sum", "size"])
    for model, (count, size) in unnamed[unnamed["sum"] > 0].iterrows():
        logger.info("%s: %d of %d answers hold no name", model, count, size)
    result = {"format": 1, "task": "gene_sets", "settings": settings, "models": summary(table)}
    described = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    write_files({out / "scores.parquet": parquet_bytes(table), out / "scores.json": described.encode()})
    return result


def _beside(
    truth: pd.DataFrame, *, floors: bool, gmt: Path | None, rng: np.random.Generator
) -> dict[tuple[str, str], pd.Series]:
    """(name, kind) of the floors and of the over-representation test that were asked for, to their answers by id."""
    answers = {}
    if floors:
        for name, dealt in name_floors(truth["name"].tolist(), rng=rng).items():
            answers[f"floor: {name}", "floor"] = pd.Series(dealt, index=truth.index)
    if gmt is not None:
        library = read_gmt(gmt)
        # Terms of MSigDB's and Enrichr's GO libraries.
        oracle = library["id"].str.startswith(("GO:", "GOBP_")).any() and truth.index.str.startswith("GO:").any()
        label = f"oracle: {gmt.name} (a GO library on GO sets)" if oracle else f"enrichment: {gmt.name}"
        # Terms that read the same ("DNA_REPAIR", "DNA repair (GO:0006281)") are one answer.
        genes = library.groupby("name", sort=False)["genes"].agg(lambda sets: sorted(set().union(*sets)))
        found = enrichment_floor(truth["genes"].tolist(), genes.to_dict())
        answers[label, "oracle" if oracle else "enrichment"] = pd.Series(found, index=truth.index)
    return answers


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Per model: n, kind, and each metric's mean and standard error (None for a single set)."""
    metrics = [column for column in table.columns if column not in ANSWER_COLUMNS]
    models = {}
    for (model, kind), rows in table.groupby(["model", "kind"], sort=False):
        models[model] = {"n": len(rows), "kind": kind} | {
            metric: {
                "mean": float(rows[metric].mean()),
                "stderr": float(rows[metric].sem()) if len(rows) > 1 else None,
            }
            for metric in metrics
        }
    return models


def _references(path: Path, *, need_genes: bool) -> pd.DataFrame:
    table = read_table(path, ["id", "name", *(["genes"] if need_genes else [])])
    table = table.assign(id=_ids(path, table))
    _no_duplicates(path, table["id"])
    unnamed = table["id"][~table["name"].map(lambda name: isinstance(name, str) and bool(name.strip()))]
    if len(unnamed):
        raise ValueError(f"{path}: no name for {_some(unnamed)}.")
    if need_genes:
        table["genes"] = table["genes"].map(split_genes)
    return table.set_index("id")


def _predictions(path: Path, truth: pd.DataFrame, missing: str) -> dict[tuple[str, str], pd.Series]:
    """(model, "model") to its answers by id."""
    if missing not in MISSING:
        raise ValueError(f"`missing={missing!r}` is not known: choose one of {', '.join(MISSING)}.")
    table = read_table(path, ["id", "predicted_name"])
    models = table["model"] if "model" in table else pd.Series(path.stem, index=table.index)
    bad = models[models.isna() | models.astype(str).str.match(r"\s*$|floor: |oracle: |enrichment: ")]
    if len(bad):
        raise ValueError(
            f"{path}: model {bad.iloc[0]!r} in row {bad.index[0]} (counted from 0): name every model, and none like "
            "the rows that stand beside them (floor:, oracle:, enrichment:)."
        )
    table = table.assign(id=_ids(path, table), model=models.astype(str))
    unknown = table["id"][~table["id"].isin(truth.index)]
    if len(unknown):
        raise ValueError(f"{path}: {len(unknown)} ids are not among the references: {_some(unknown)}.")
    answers = {}
    for model, rows in table.groupby("model", sort=False):
        _no_duplicates(path, rows["id"], f" for model {model!r}")
        given = rows.set_index("id")["predicted_name"]
        absent = truth.index.difference(given.index, sort=False)
        if len(absent) and missing == "error":
            raise ValueError(
                f"{path}: model {model!r} has no prediction for {len(absent)} of {len(truth)} references: "
                f"{_some(absent)}. With `missing` unnamed they count as no answer, with skip the others are "
                "scored alone."
            )
        wanted = truth.index if missing == "unnamed" else truth.index.intersection(given.index, sort=False)
        answers[str(model), "model"] = given.reindex(wanted)
    return answers


def _answered(truth: pd.DataFrame, given: pd.Series, model: str, kind: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": model,
            "kind": kind,
            "id": given.index.to_numpy(),
            "name": truth.loc[given.index, "name"].to_numpy(),
            "predicted_name": pd.Series([recorded_name(answer) for answer in given], dtype=object),
        }
    )


def _ids(path: Path, table: pd.DataFrame) -> pd.Series:
    ids = ids_as_text(table["id"], where=path)
    if ids.isna().any():
        raise ValueError(f"{path}: no id in row {ids.isna().idxmax()} (counted from 0).")
    return ids


def _no_duplicates(path: Path, ids: pd.Series, whose: str = "") -> None:
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise ValueError(f"{path}: repeated id{whose}: {_some(repeated)}.")


def _some(ids: pd.Series | pd.Index) -> str:
    unique = list(dict.fromkeys(ids))
    return ", ".join(repr(name) for name in unique[:5]) + (f" and {len(unique) - 5} more" if len(unique) > 5 else "")
