"""`bft-trl inspect`: what the loss will see of a data set, before any training."""

import copy
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tqdm.auto import tqdm
from trl import SFTTrainer

from bft_trl.config import BFTConfig
from bft_trl.inspection.advice import advice
from bft_trl.inspection.inspection_page import inspection_page
from bft_trl.inspection.windows import KINDS, window_kinds
from bft_trl.io import check_folder, write_files
from bft_trl.models import Run, fingerprint, load_run, load_tokenizer
from bft_trl.trainer import BFTTrainer
from bft_trl.training.dataset_checks import check_dataset, has_target
from bft_trl.training.rows import ROW
from bft_trl.weighting import SupervisedTokens, Weights

logger = logging.getLogger(__name__)

NEAR_ZERO = 0.01  # a token of less weight adds next to nothing
_BINS = 20
_TEXT_COLUMNS = ("prompt", "completion", "messages", "conversations", "text")


def inspect_samples(
    run: Run,
    dataset: Dataset,
    out: Path,
    *,
    dataset_name: str,
    n: int = 50,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    max_length: int = 1024,
    batch_size: int = 4,
    device: str | None = None,
) -> dict[str, Any]:
    """Writes `index.html` and `report.json` into `out`: samples as the loss sees them, figures over all, advice.

    Args:
        run: base model, with an adapter or without.
        dataset: in one of TRL's formats; tokenised by TRL's preparation, weighed by the trainer.
        out: folder.
        dataset_name: what the page calls it.
        n: how many rows, drawn by `seed`; duplicates are looked for in all rows.
        config: fields of `BFTConfig` that differ from its defaults: the objective, and what is supervised.
        max_length: where rows are cut, as in training.
        batch_size: rows at a time.
        device: None takes a GPU where there is one.

    Returns the content of report.json. Raises ValueError that names the argument, before the model is loaded.
    """
    check_folder(out, name="out")
    for name, value in (("n", n), ("max_length", max_length), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}={value}` must be 1 or more.")
    if seed < 0:
        raise ValueError(f"`seed={seed}` must be 0 or more.")
    with TemporaryDirectory() as folder:  # the trainer writes nothing, but wants a place
        args = BFTConfig(
            folder,
            max_length=max_length,
            per_device_train_batch_size=batch_size,
            use_cpu=device == "cpu" or not torch.cuda.is_available(),
            bf16=False,
            report_to="none",
            record_samples=False,
            weight_column=None,
            disable_tqdm=True,
            **(config or {}),
        )
        check_dataset(dataset, args, None, dataset_name)
        drawn = sorted(np.random.default_rng(seed).permutation(len(dataset))[:n].tolist())
        repeated = _repeated(dataset)
        tokenizer = load_tokenizer(run)
        model = _with_something_to_train(load_run(run, device=device), quantized=run.quantization is not None)
        trainer = _Inspector(model, args, train_dataset=dataset.select(drawn), processing_class=tokenizer)
        if args.use_cpu:  # SFTTrainer casts adapters over 4-bit weights to bfloat16
            for parameter in model.parameters():
                if parameter.dtype == torch.bfloat16:
                    parameter.data = parameter.data.float()
        samples = trainer.samples(drawn, dataset)
    figures = _figures(samples, args) | repeated | {"rows": len(dataset)}
    report = {
        "model": fingerprint(run),
        "dataset": dataset_name,
        "n": len(samples),
        "seed": seed,
        "max_length": max_length,
        "objective": args.objective(),
        "figures": figures,
        "advice": advice(figures, args.objective(), max_length=max_length),
        "samples": samples,
    }
    text = json.dumps(report, ensure_ascii=False, allow_nan=False)
    write_files({out / "report.json": text.encode(), out / "index.html": inspection_page(report).encode()})
    return report


class _Inspector(BFTTrainer):
    """The trainer's own preparation, forward pass and weights, without a step."""

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        # Uncut, and with the rows that training would drop: what is lost is part of the answer.
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        try:
            return SFTTrainer._prepare_dataset(self, dataset, processing_class, whole, False, None, dataset_name)
        except RuntimeError as error:  # of TRL, where a chat template marks no assistant turn
            raise ValueError(str(error)) from error

    def samples(self, drawn: Sequence[int], dataset: Dataset) -> list[dict[str, Any]]:
        """A record for each row of the prepared data, which are the rows `drawn` of `dataset`."""
        self.seen: dict[int, dict[str, Any]] = {}
        prepared = self.train_dataset
        limit = self.args.max_length
        rows = [
            {"input_ids": row["input_ids"][:limit], "labels": row["labels"][:limit], ROW: place}
            for place, row in enumerate(prepared)
        ]
        supervised = [row for row in rows if has_target(row["labels"])]
        supervised.sort(key=lambda row: len(row["input_ids"]))  # little padding
        size = self.args.per_device_train_batch_size
        self.model.eval()
        with torch.no_grad(), tqdm(total=len(supervised), desc="Samples", unit="sample") as progress:
            for start in range(0, len(supervised), size):
                part = supervised[start : start + size]
                self.compute_loss(self.model, self._prepare_inputs(self.data_collator(part)))
                progress.update(len(part))
        ends = _end_tokens(self._tokenizer, self.model)
        described = []
        for place, (row, whole) in enumerate(zip(rows, prepared, strict=True)):
            given = dataset[drawn[place]]
            described.append(
                {
                    "row": drawn[place],
                    "id": str(given.get("id", drawn[place])),
                    "source": None if given.get("source") is None else str(given["source"]),
                    "length": len(whole["input_ids"]),
                    "cut": len(whole["input_ids"]) - len(row["input_ids"]),
                    "cut_supervised": _count(whole["labels"]) - _count(row["labels"]),
                    "supervised": _count(row["labels"]),
                    "ends": any(label in ends for label in row["labels"]),
                    **self.seen.get(place, {}),
                    "parts": _parts(row, self.seen.get(place), self._tokenizer),
                }
            )
        return described

    @torch.no_grad()
    def _record(
        self, tokens: SupervisedTokens, weights: Weights, rows: torch.Tensor | None, targets: Any, *, batch_rows: int
    ) -> None:
        if rows is None:
            raise ValueError("The collator of this data carries no row numbers.")
        if not tokens.log_probs.isfinite().all():
            # A running sum would carry the NaN of one sample into the confidence of those behind it.
            weights = self._weights(tokens._replace(log_probs=tokens.log_probs.nan_to_num(0.0, 0.0, 0.0)))
        lengths = tokens.lengths.tolist()
        probs = tokens.log_probs.float().exp().clamp(max=1).cpu().split(lengths)
        nll = (-tokens.log_probs.double()).cpu().split(lengths)
        token = weights.token.float().cpu().split(lengths)
        for place, row in enumerate(rows.tolist()):
            if not nll[place].isfinite().all():
                self.seen[row] = {"nll": None, "windowed": False, "weakest": [0, 0]}
                continue
            self.seen[row] = {
                "nll": _number(nll[place].mean().item()),
                "group_confidence": _number(weights.group_confidence[place].item()),
                "sample_weight": _number(weights.sample[place].item()),
                "windowed": bool(weights.windowed[place]),
                "weakest": weights.weakest[place].tolist(),
                "probs": [_number(value) for value in probs[place].tolist()],
                "weights": [_number(value) for value in token[place].tolist()],
            }


def _with_something_to_train(model: Any, *, quantized: bool) -> Any:
    """The trainer refuses a model that it could not train: one small parameter is left open, and nothing steps."""
    if quantized and not hasattr(model, "peft_config"):
        # An untrained adapter changes nothing: its second matrix is zero.
        model = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.requires_grad_(False)
    open_one = min((part for part in model.parameters() if part.is_floating_point()), key=torch.Tensor.numel)
    open_one.requires_grad_(True)
    return model


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """The tokens that end an answer when the model generates."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return {token for token in [tokenizer.eos_token_id, *listed] if token is not None}


def _count(labels: Iterable[int]) -> int:
    return sum(label != -100 for label in list(labels)[1:])


def _number(value: float) -> float | None:
    """JSON has no NaN; four digits are more than a page shows."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _parts(row: Mapping[str, Any], seen: Mapping[str, Any] | None, tokenizer: Any) -> list[dict[str, Any]]:
    """The row in reading order: texts that are only read, and supervised tokens with their place among them."""
    parts: list[dict[str, Any]] = []
    texts = _token_texts(row["input_ids"], tokenizer)
    place = 0
    for position, (text, label) in enumerate(zip(texts, row["labels"], strict=True)):
        supervised = position > 0 and label != -100  # position 0 has no prediction
        if not parts or parts[-1]["supervised"] != supervised:
            parts.append({"supervised": supervised, "first": place, "texts": []})
        parts[-1]["texts"].append(text)
        place += supervised
    for part in parts:
        if not part["supervised"]:
            part["texts"] = ["".join(part["texts"])]
    return parts


def _token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text; of a character of several tokens, the last one shows it."""
    texts, start, before = [], 0, ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        broken = text.endswith("�")
        texts.append("" if broken else text[len(before) :])
        if not broken:
            before = text
            if end - start > 16:  # decoding from far back costs time, and a word does not reach that far
                start, before = end - 1, tokenizer.decode(ids[end - 1 : end], clean_up_tokenization_spaces=False)
    return texts


def _repeated(dataset: Dataset) -> dict[str, int]:
    """Rows that repeat an earlier one, and prompts that come with different answers."""
    columns = [name for name in _TEXT_COLUMNS if name in dataset.column_names]
    answers: dict[bytes, set[bytes]] = {}
    repeated = 0
    for row in dataset.select_columns(columns) if columns else []:
        prompt, answer = _hash(row.get("prompt", "")), _hash([row[name] for name in columns])
        known = answers.setdefault(prompt, set())
        repeated += answer in known
        known.add(answer)
    ambiguous = sum(len(known) > 1 for known in answers.values()) if "prompt" in columns else 0
    return {"duplicates": repeated, "ambiguous_prompts": ambiguous}


def _hash(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).digest()


def _figures(samples: Sequence[Mapping[str, Any]], args: BFTConfig) -> dict[str, Any]:
    """Figures over all samples: counts, means, and distributions as counts between edges."""
    with_target = [sample for sample in samples if sample["supervised"]]
    finite = [sample for sample in with_target if sample["nll"] is not None]
    probs = np.array([value for sample in finite for value in sample["probs"]])
    weights = np.array([value for sample in finite for value in sample["weights"]])
    lengths = np.array([sample["supervised"] for sample in with_target])
    sample_weights = np.array([sample["sample_weight"] for sample in finite])
    confidence = np.array([sample["group_confidence"] for sample in finite])
    uncut = [sample for sample in with_target if not sample["cut"]]
    kinds = dict.fromkeys(KINDS, 0)
    for sample in finite:
        for kind, count in window_kinds(sample["probs"], group_size=args.group_size).items():
            kinds[kind] += count
    total = sum(sample["length"] - sample["cut"] for sample in samples)

    def mean(values: np.ndarray) -> float | None:
        return _number(values.mean()) if len(values) else None

    return {
        "samples": len(samples),
        "without_target": len(samples) - len(with_target),
        "not_finite": len(with_target) - len(finite),
        "tokens": total,
        "supervised_tokens": int(lengths.sum()),
        "supervised_share": _number(lengths.sum() / total) if total else None,
        "cut": sum(sample["cut"] > 0 for sample in samples),
        "cut_supervised": sum(sample["cut_supervised"] > 0 for sample in samples),
        "uncut": len(uncut),
        "ends": sum(sample["ends"] for sample in uncut),
        "nll": mean(-np.log(np.maximum(probs, 1e-30))),
        "token_confidence": mean(probs),
        "token_weight": mean(weights),
        "near_zero_share": mean(weights < NEAR_ZERO),
        "sample_weight": mean(sample_weights),
        "group_confidence": mean(confidence),
        "effective_samples": _number(sample_weights.sum() ** 2 / (sample_weights**2).sum())
        if sample_weights.any()
        else None,
        "windowed": sum(sample["windowed"] for sample in finite),
        "median_length": float(np.median(lengths)) if len(lengths) else None,
        "windows": kinds,
        "distributions": {
            "token confidence": _histogram(probs),
            "group confidence": _histogram(confidence),
            "token weight": _histogram(weights),
            "sample weight": _histogram(sample_weights),
            "supervised tokens": _histogram(lengths, top=max([*lengths.tolist(), args.group_size])),
        },
    }


def _histogram(values: np.ndarray, top: float = 1.0) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, bins=_BINS, range=(0, top))
    return {"counts": counts.tolist(), "edges": edges.tolist()}
