"""`bft-trl hard-samples`: the samples of a run with a high loss, from its sample log and its training set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from bft_trl.config import BFTConfig
from bft_trl.inspection.hard_samples_page import hard_samples_page
from bft_trl.io import check_folder, write_files
from bft_trl.models import Run, load_tokenizer
from bft_trl.training.sample_log import FOLDER, read_part
from bft_trl.training.tokenization import tokenize_dataset

# The lists of the page, and what comes first in each.
LISTS = {
    "hardest": "highest last nll",
    "never learned": "last nll above the median; smallest relative decrease first",
    "getting worse": "last nll above the first; largest increase first",
    "learned late": "first nll above the median; largest relative decrease first",
}
_REMEDY = "Pass the training set of this run: the same file, split, `eval_samples` and `seed`."


def read_sample_log(run: Path) -> pd.DataFrame:
    """Returns the sample log of a run, one row per epoch and sample in training order, columns of `sample_log.SCHEMA`.

    The pieces of a document that `packing_strategy="bfd_split"` cut are one sample, with means over its tokens. Its
    window is [0, 0), because the log does not say where in the document a piece begins.

    Raises FileNotFoundError or ValueError that names the folder or file.
    """
    files = sorted((run / FOLDER).glob("part-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{run} has no sample log in {FOLDER}/. Train with `--log_samples True`.")
    log = pd.concat([read_part(file).to_pandas() for file in files], ignore_index=True)
    log = log.sort_values(["epoch", "step", "row"], kind="stable", ignore_index=True)
    pieces = log.duplicated(["epoch", "row"], keep=False)
    if not pieces.any():
        return log
    tokens = log.groupby(["epoch", "row"])["tokens"].transform("sum")
    log["nll"] *= log["tokens"] / tokens
    log["sample_weight"] *= log["tokens"] / tokens
    log.loc[pieces, ["window_first", "window_end"]] = 0
    sums = dict.fromkeys(("nll", "sample_weight", "tokens"), "sum")
    rest = {"step": "max", "group_confidence": "min", "window_first": "first", "window_end": "first"}
    samples = log.groupby(["epoch", "row"])
    merged = samples.agg(sums | rest)
    merged["nll"] = merged["nll"].where(samples["nll"].count() == samples.size())  # a sum leaves NaN out
    merged = merged.reset_index()
    return merged.sort_values(["epoch", "step", "row"], ignore_index=True)[log.columns]


def by_sample(log: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per sample of a log.

    Columns: row, epochs (how often it was seen), first_nll, last_nll, change (last minus first, nats per token),
    learned (relative decrease of the nll, below 0 for an increase), and the other columns of the log when last seen.
    With one epoch change and learned are NaN.
    """
    first, last = (log.drop_duplicates("row", keep=which).set_index("row") for which in ("first", "last"))
    table = last.drop(columns=["epoch", "step", "nll"])
    table["epochs"] = log.groupby("row").size()
    table["first_nll"], table["last_nll"] = first["nll"], last["nll"]
    again = table["epochs"] > 1
    table["change"] = (table["last_nll"] - table["first_nll"]).where(again)
    table["learned"] = (-table["change"] / table["first_nll"].where(table["first_nll"] > 0)).where(again)
    return table.reset_index()


def rank(samples: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the samples of each of `LISTS`, in its order. `samples` are of [`by_sample`]."""
    again = samples[samples["epochs"] > 1]
    hard_first, hard_last = (again[again[nll] > again[nll].median()] for nll in ("first_nll", "last_nll"))
    worse, learned = again[again["change"] > 0], hard_first[hard_first["learned"] > 0]
    return {
        "hardest": samples.sort_values("last_nll", ascending=False, kind="stable"),
        "never learned": hard_last.sort_values("learned", kind="stable"),
        "getting worse": worse.sort_values("change", ascending=False, kind="stable"),
        "learned late": learned.sort_values("learned", ascending=False, kind="stable"),
    }


def by_source(log: pd.DataFrame) -> pd.DataFrame:
    """Returns samples and the means of nll (over samples), group_confidence and sample_weight by source and epoch."""
    means = {name: (name, "mean") for name in ("nll", "group_confidence", "sample_weight")}
    groups = log.assign(source=log["source"].fillna("-")).groupby(["source", "epoch"])
    return groups.agg(samples=("row", "size"), **means).reset_index()


def hard_samples(
    run: Path,
    dataset: Dataset,
    output_dir: Path,
    *,
    top: int = 20,
    source: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `index.html` and `samples.csv` into `output_dir`: lists of samples, plots, and metrics by source.

    Args:
        run: output folder of a training run with `log_samples=True`.
        dataset: the `train_dataset` of that run. Its columns `id` and `source`, if present, name the samples.
        output_dir: folder.
        top: length of the lists.
        source: only samples of this source.
        config: fields of `BFTConfig` that decide what is supervised, if they were not the defaults.

    Returns the lists by name, metrics by source, and counts. Raises ValueError or FileNotFoundError for bad arguments,
    and if `dataset` is not the training set of the run.
    """
    check_folder(output_dir)
    if top < 1:
        raise ValueError(f"`top={top}` must be 1 or more.")
    log = _with_names(read_sample_log(run), dataset, run)
    known = sorted(log["source"].dropna().unique())
    if source is not None and source not in known:
        raise ValueError(f"`source={source!r}` is not in the data set, which has {known[:20]}.")
    log = log if source is None else log[log["source"] == source]
    finite = np.isfinite(log["nll"])
    samples = by_sample(log[finite])
    lists = {name: table for name, table in rank(samples).items() if len(table) or samples["epochs"].max() > 1}
    shown = {name: table.head(top) for name, table in lists.items()}
    texts = _window_texts(run, dataset, pd.concat([samples.head(0), *shown.values()]), config or {})
    rows = {name: _records(table.assign(window_text=table["row"].map(texts))) for name, table in shown.items()}
    result: dict[str, Any] = {
        "run": run.name,
        "samples": len(samples),
        "epochs": int(log["epoch"].max()) + 1,
        "steps": int(log["step"].max()),
        "not_finite": sorted(log.loc[~finite, "id"].unique()),
        "lists": {name: {"by": LISTS[name], "count": len(lists[name]), "rows": rows[name]} for name in lists},
        "sources": _records(by_source(log)),
    }
    files = {"samples.csv": samples.to_csv(index=False), "index.html": hard_samples_page(result, samples)}
    write_files({output_dir / name: text.encode() for name, text in files.items()})
    return result


def _with_names(log: pd.DataFrame, dataset: Dataset, run: Path) -> pd.DataFrame:
    """Returns the log with the columns id (the row number if the data has none) and source (None if it has none)."""
    last = int(log["row"].max())
    if last >= len(dataset):
        raise ValueError(f"`dataset` has {len(dataset)} rows, but the sample log of {run} has row {last}. {_REMEDY}")
    columns = {name: list(dataset[name]) for name in ("id", "source") if name in dataset.column_names}
    ids, sources = columns.get("id", range(len(dataset))), columns.get("source", [None] * len(dataset))
    texts = [None if source is None else str(source) for source in sources]
    return log.assign(id=[str(ids[row]) for row in log["row"]], source=[texts[row] for row in log["row"]])


def _window_texts(run: Path, dataset: Dataset, samples: pd.DataFrame, config: Mapping[str, Any]) -> dict[int, str]:
    """Returns the text of the window of lowest confidence by row number."""
    samples = samples.drop_duplicates("row")
    if samples.empty:
        return {}
    tokenizer = load_tokenizer(Run(str(_tokenizer_folder(run))))
    args = BFTConfig(str(run), use_cpu=True, bf16=False, report_to="none", **config)
    texts = {}
    rows = tokenize_dataset(dataset.select(samples["row"]), tokenizer, args)
    for sample, row in zip(samples.itertuples(), rows, strict=True):
        supervised = [label for label in row["labels"][1:] if label != -100]  # position 0 has no prediction
        if sample.tokens > len(supervised):
            raise ValueError(
                f"Row {sample.row} of `dataset` has {len(supervised)} supervised tokens, but the sample log of {run} "
                f"has {sample.tokens}. {_REMEDY} Set `completion_only_loss` and `assistant_only_loss` as in training."
            )
        texts[sample.row] = tokenizer.decode(supervised[sample.window_first : sample.window_end])
    return texts


def _tokenizer_folder(run: Path) -> Path:
    """Returns the run folder, or its newest checkpoint if only those have the tokenizer."""
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in (run, *checkpoints):
        if (folder / "tokenizer_config.json").is_file():
            return folder
    raise FileNotFoundError(f"{run} has no tokenizer. Save the run with `trainer.save_model()`.")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the rows as dicts, None for NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
