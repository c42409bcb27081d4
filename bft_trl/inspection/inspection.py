"""`bft-trl inspect`: tokens, confidences and weights of a data set as the loss sees them, before training."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bft_trl.config import BFTConfig
from bft_trl.inspection.advice import advice
from bft_trl.inspection.inspection_page import inspection_page
from bft_trl.inspection.summary import summary_metrics
from bft_trl.inspection.token_scores import sample_scores, token_scores
from bft_trl.io import check_folder, write_files
from bft_trl.models import Run, fingerprint, load_run, load_tokenizer
from bft_trl.training.tokenization import tokenize_dataset
from bft_trl.training.validation import check_dataset, find_missing_text, has_target, keep_gradients

_TEXT_COLUMNS = ("prompt", "completion", "messages", "conversations", "text")


def inspect_samples(
    run: Run,
    dataset: Dataset,
    output_dir: Path,
    *,
    dataset_name: str,
    num_samples: int = 50,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    max_length: int = 1024,
    batch_size: int = 4,
    device: str | None = None,
) -> dict[str, Any]:
    """Writes `index.html` and `report.json` into `output_dir`: samples, metrics over all of them, and advice.

    Args:
        run: base model, with or without an adapter.
        dataset: rows in one of TRL's formats.
        output_dir: folder.
        dataset_name: name of the data set on the page.
        num_samples: number of rows, drawn by `seed`. Duplicates are counted in all rows.
        config: fields of `BFTConfig`: the objective, and what is supervised. None takes the defaults.
        max_length: rows are cut to this number of tokens, as in training.
        batch_size: rows per forward pass.
        device: such as "cpu"; None takes a GPU if there is one.

    Returns the content of report.json. Raises ValueError that names the argument, before the model is loaded.
    """
    numbers = {"num_samples": num_samples, "max_length": max_length, "batch_size": batch_size, "seed": seed}
    args = _config(output_dir, config or {}, device, **numbers)
    check_dataset(dataset, args, None, dataset_name)
    if message := find_missing_text(dataset, args, dataset_name):
        raise ValueError(message)
    drawn = sorted(np.random.default_rng(seed).permutation(len(dataset))[:num_samples].tolist())
    tokenizer = load_tokenizer(run)
    tokenized = tokenize_dataset(dataset.select(drawn), tokenizer, args)
    samples = _samples(drawn, tokenized, tokenizer, load_run(run, device=device), args)
    metrics = summary_metrics(samples, args.group_size) | _count_repeats(dataset) | {"rows": len(dataset)}
    report = {"model": fingerprint(run), "dataset": dataset_name, **numbers, "objective": args.objective()}
    report |= {"metrics": metrics, "advice": advice(metrics, args.objective(), max_length=max_length)}
    report |= {"num_samples": len(samples), "samples": samples}
    files = {
        "report.json": json.dumps(report, ensure_ascii=False, allow_nan=False),
        "index.html": inspection_page(report),
    }
    write_files({output_dir / name: text.encode() for name, text in files.items()})
    return report


def _config(output_dir: Path, config: Mapping[str, Any], device: str | None, **numbers: int) -> BFTConfig:
    check_folder(output_dir)
    if config.get("loss_type") == "eaft":
        raise ValueError("`loss_type='eaft'` weighs by entropies, which are not computed here: choose another one.")
    for name, value in numbers.items():
        least = 0 if name == "seed" else 1
        if value < least:
            raise ValueError(f"`{name}={value}` must be {least} or more.")
    return BFTConfig(
        str(output_dir),
        max_length=numbers["max_length"],
        per_device_eval_batch_size=numbers["batch_size"],
        use_cpu=device == "cpu" or not torch.cuda.is_available(),
        bf16=False,
        report_to="none",
        **config,
    )


def _samples(
    drawn: Sequence[int], tokenized: Dataset, tokenizer: Any, model: Any, args: BFTConfig
) -> list[dict[str, Any]]:
    """Returns the samples of the report; `drawn` are their row numbers."""
    rows = [{name: row[name][: args.max_length] for name in ("input_ids", "labels")} for row in tokenized]
    keep_gradients(model)  # otherwise bitsandbytes computes with other numbers than in training
    scores = _score(model, rows, tokenizer.pad_token_id, args)
    ends = _end_tokens(tokenizer, model)
    return [
        {
            "row": index,
            "id": str(whole.get("id", index)),
            "source": None if whole.get("source") is None else str(whole["source"]),
            "length": len(whole["input_ids"]),
            "cut": len(whole["input_ids"]) - len(row["input_ids"]),
            "cut_supervised": _count_targets(whole["labels"]) - _count_targets(row["labels"]),
            "supervised": _count_targets(row["labels"]),
            "ends": not ends.isdisjoint(row["labels"]),
            **found,
            "parts": _parts(row, tokenizer),
        }
        for index, whole, row, found in zip(drawn, tokenized, rows, scores, strict=True)
    ]


def _score(model: Any, rows: Sequence[Mapping[str, Any]], pad_token_id: int, args: BFTConfig) -> list[dict[str, Any]]:
    """Returns [`sample_scores`] of each row, and an empty dict for a row without a supervised token."""
    scores: list[dict[str, Any]] = [{} for _ in rows]
    order = [index for index, row in enumerate(rows) if has_target(row["labels"])]
    order.sort(key=lambda index: len(rows[index]["input_ids"]))  # little padding
    batch_size, collate = args.per_device_eval_batch_size, DataCollatorForLanguageModeling(pad_token_id=pad_token_id)
    with tqdm(total=len(order), desc="Scoring", unit="sample") as progress:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            log_probs, mask = token_scores(model, collate([rows[index] for index in batch]))
            for index, found in zip(batch, sample_scores(log_probs, mask, args.weighting()), strict=True):
                scores[index] = found
            progress.update(len(batch))
    return scores


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """Returns the tokens that end a generated answer."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return {token for token in [tokenizer.eos_token_id, *listed] if token is not None}


def _count_targets(labels: Sequence[int]) -> int:
    return sum(label != -100 for label in labels[1:])  # position 0 has no prediction


def _parts(row: Mapping[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Returns the row in reading order: texts that are not supervised, and texts of supervised tokens."""
    supervised = [False, *(label != -100 for label in row["labels"][1:])]
    runs = groupby(zip(supervised, token_texts(row["input_ids"], tokenizer), strict=True), key=itemgetter(0))
    parts = [(target, [text for _, text in run]) for target, run in runs]
    return [{"supervised": target, "texts": texts if target else ["".join(texts)]} for target, texts in parts]


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Returns the text that each token adds. A character of several tokens is the text of the last one."""
    texts, start, before = [], 0, ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        incomplete = text.endswith("\N{REPLACEMENT CHARACTER}")
        texts.append("" if incomplete else text[len(before) :])
        if not incomplete:
            before = text
            if end - start > 16:  # the context of a word; decoding more costs time
                start, before = end - 1, tokenizer.decode(ids[end - 1 : end], clean_up_tokenization_spaces=False)
    return texts


def _count_repeats(dataset: Dataset) -> dict[str, int]:
    """Returns the number of rows that equal an earlier one, and of prompts that have different answers."""
    columns = [name for name in _TEXT_COLUMNS if name in dataset.column_names]
    hashes = pd.DataFrame(
        [
            [hash(json.dumps(row[name], sort_keys=True, default=str)) for name in columns]
            for row in (dataset.select_columns(columns) if columns else [])
        ],
        columns=columns,
    )
    different = hashes.drop_duplicates()
    ambiguous = int((different["prompt"].value_counts() > 1).sum()) if "prompt" in columns else 0
    return {"duplicates": len(hashes) - len(different), "ambiguous_prompts": ambiguous}
