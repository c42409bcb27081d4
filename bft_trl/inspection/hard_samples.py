"""`bft-trl hard-samples`: which samples of a run stayed hard, from the record that training left."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.inspection.hard_samples_page import hard_samples_page
from bft_trl.io import check_folder, write_files
from bft_trl.training.sample_log import FOLDER, read_part

logger = logging.getLogger(__name__)

# How each list is ordered; what it shows, in words, is on the page and in docs/inspect.md.
LISTS = {
    "hardest": "highest nll when last seen",
    "never learned": "hard when last seen (nll above the median), and the smallest share of its first nll lost",
    "getting worse": "the largest rise of the nll from the first epoch to the last",
    "learned late": "hard when first seen (nll above the median), and the largest share of its first nll lost",
}


def read_record(run: Path) -> pd.DataFrame:
    """The record of a run, a row per epoch and sample, in the order of training; columns of `sample_log.SCHEMA`.

    A sample that was cut into pieces by `packing_strategy="bfd_split"` is one again: means over its tokens.

    Raises FileNotFoundError and ValueError that name the folder or file.
    """
    files = sorted((run / FOLDER).glob("part-*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{run} has no record of samples in {FOLDER}/: name the output folder of a training run with "
            "`record_samples=True`."
        )
    record = pd.concat([read_part(file).to_pandas() for file in files], ignore_index=True)
    record = record.sort_values(["epoch", "step", "row"], kind="stable", ignore_index=True)
    if not record.duplicated(["epoch", "row"]).any():
        return record
    tokens = record.groupby(["epoch", "row"])["tokens"].transform("sum")
    for column in ("nll", "sample_weight"):
        record[column] = record[column] * record["tokens"] / tokens
    hardest = record.sort_values("group_confidence").drop_duplicates(["epoch", "row"])
    sums = record.groupby(["epoch", "row"])[["nll", "sample_weight", "tokens"]].sum()
    kept = hardest.drop(columns=["nll", "sample_weight", "tokens"]).merge(sums, on=["epoch", "row"])
    return kept.sort_values(["epoch", "step", "row"], ignore_index=True)[record.columns]


def by_sample(record: pd.DataFrame) -> pd.DataFrame:
    """A row per sample: how hard it was when first and when last seen.

    Returns columns row, id, source, epochs (how often it was seen), tokens, first_nll, last_nll, change (last minus
    first, nats a token), learned (share of the first nll that is gone; below 0 where it rose), and of the last time
    group_confidence, sample_weight and window_text. With one epoch change and learned are NaN.
    """
    ordered = record.sort_values(["epoch", "step"], kind="stable")
    first, last = (ordered.drop_duplicates("row", keep=which).set_index("row") for which in ("first", "last"))
    table = last[["id", "source", "tokens", "group_confidence", "sample_weight", "window_text"]].copy()
    table["epochs"] = ordered.groupby("row").size()
    table["first_nll"], table["last_nll"] = first["nll"], last["nll"]
    seen_again = table["epochs"] > 1
    table["change"] = (table["last_nll"] - table["first_nll"]).where(seen_again)
    table["learned"] = (-table["change"] / table["first_nll"].where(table["first_nll"] > 0)).where(seen_again)
    columns = ["id", "source", "epochs", "tokens", "first_nll", "last_nll", "change", "learned"]
    return table[[*columns, "group_confidence", "sample_weight", "window_text"]].reset_index()


def ranked(samples: pd.DataFrame, name: str) -> pd.DataFrame:
    """The samples of one of `LISTS`, the first first; those that do not belong to it are left out."""
    if name == "hardest":
        return samples.sort_values("last_nll", ascending=False, kind="stable")
    again = samples[samples["epochs"] > 1]
    if name == "never learned":
        hard = again[again["last_nll"] > again["last_nll"].median()]
        return hard.sort_values("learned", kind="stable")
    if name == "getting worse":
        return again[again["change"] > 0].sort_values("change", ascending=False, kind="stable")
    if name == "learned late":
        hard = again[(again["first_nll"] > again["first_nll"].median()) & (again["learned"] > 0)]
        return hard.sort_values("learned", ascending=False, kind="stable")
    raise ValueError(f"`name={name!r}` is not known: choose one of {list(LISTS)}.")


def by_source(record: pd.DataFrame) -> pd.DataFrame:
    """Per source and epoch: samples and the means of nll (over samples), group_confidence and sample_weight."""
    named = record.assign(source=record["source"].fillna("-"))
    means = named.groupby(["source", "epoch"], sort=True).agg(
        samples=("row", "size"),
        nll=("nll", "mean"),
        group_confidence=("group_confidence", "mean"),
        sample_weight=("sample_weight", "mean"),
    )
    return means.reset_index()


def hard_samples(run: Path, out: Path, *, top: int = 20, source: str | None = None) -> Mapping[str, Any]:
    """Writes `index.html` and `samples.csv` into `out`: lists of samples, plots, figures per source.

    Args:
        run: output folder of a training run.
        out: folder.
        top: length of the lists.
        source: only samples of this source.

    Returns the lists by name (dicts of the columns of [`by_sample`]), `sources`, and counts.
    Raises ValueError and FileNotFoundError that name the argument.
    """
    check_folder(out, name="out")
    if top < 1:
        raise ValueError(f"`top={top}` must be 1 or more.")
    record = read_record(run)
    if source is not None:
        known = sorted(record["source"].dropna().unique())
        if source not in known:
            raise ValueError(f"`source={source!r}` is not in the record, which has {known[:20]}.")
        record = record[record["source"] == source]
    broken = ~np.isfinite(record["nll"])
    samples = by_sample(record[~broken])
    result: dict[str, Any] = {
        "run": run.name,
        "samples": len(samples),
        "epochs": int(record["epoch"].max()) + 1,
        "steps": int(record["step"].max()),
        "not_finite": sorted(record[broken]["id"].unique()),
        "lists": {
            name: {"by": by, "count": len(found), "rows": _records(found.head(top))}
            for name, by in LISTS.items()
            if len(found := ranked(samples, name)) or samples["epochs"].max() > 1
        },
        "sources": _records(by_source(record)),
    }
    files = {out / "samples.csv": samples.to_csv(index=False).encode()}
    write_files(files | {out / "index.html": hard_samples_page(result, samples).encode()})
    return result


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {name: None if pd.isna(value) else value for name, value in row.items()} for row in table.to_dict("records")
    ]
