"""What lm-eval returns, or writes with --log_samples, in the results format."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.evaluation.baselines import baseline_scores
from bft_trl.evaluation.names import ONTOLOGY_METRICS, Scorer
from bft_trl.evaluation.scores import absolute, document_key, document_parts

logger = logging.getLogger(__name__)

# The task of recorded answers. Which of our tasks the gene sets belong to is found by their ids.
RECORDED = "gene_sets"

Samples = Sequence[Mapping[str, Any]]
Documents = Sequence[Mapping[str, Any]]


def scores_of_samples(
    results: Mapping[str, Any],
    samples: Mapping[str, Samples],
    *,
    model: str,
    scorers: Mapping[str, Scorer] | None = None,
    test_sets: Mapping[str, Documents] | None = None,
    gene_names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Returns scores, answers and settings in the results format, with scores of the baselines of each task.

    Args:
        results: what `simple_evaluate` returns, with lm-eval's hashes of chat template and system instruction.
        samples: task to its logged samples, one for each document and filter.
        model: name of the model.
        scorers: task to its scorer of names; None scores the baselines of names by ROUGE only.
        test_sets: task to all its documents, for the baselines; None takes the samples if these are all documents,
            and leaves the baselines out if not.
        gene_names: full name by symbol, for the baseline of words.
        seed: of the evaluation and of the baselines.
    """
    parts: list[pd.DataFrame] = []
    answers: list[pd.DataFrame] = []
    tasks: dict[str, Any] = {}
    models: dict[str, Any] = {model: {}}
    for task in results["configs"]:
        filters = list(dict.fromkeys(sample["filter"] for sample in samples[task]))
        suffixes = [f"[{name}]" if len(filters) > 1 else "" for name in filters]
        for name, suffix in zip(filters, suffixes, strict=True):
            logged = [sample for sample in samples[task] if sample["filter"] == name]
            units = pd.Index(_units(logged), name="unit")
            frame = _metrics(task, logged).set_index(units)
            parts.append(_long(task, frame.add_suffix(suffix), model))
        answers.append(_answers(task, logged, units, model))
        tasks[task] = _settings(task, results) | {"filters": filters}
        if "scorer_version" in tasks[task]:
            scorers = {task: Scorer(), **(scorers or {})}
        test_set = _test_set(task, logged, results, test_sets or {})
        rng = np.random.default_rng(seed)
        found = baseline_scores(
            *test_set, list(frame), scorer=(scorers or {}).get(task), rng=rng, gene_names=gene_names
        )
        for name, table in found.items():
            models[f"baseline: {name}"] = {"kind": "baseline"}
            table = table.set_axis(units)
            parts += [_long(task, table.add_suffix(suffix), f"baseline: {name}") for suffix in suffixes]
    scores = pd.concat(parts, ignore_index=True).assign(seed=seed)
    settings = {"tasks": tasks, "models": models, "inputs": _inputs(results)}
    return scores, pd.concat(answers, ignore_index=True), settings


def _test_set(
    task: str, logged: Samples, results: Mapping[str, Any], test_sets: Mapping[str, Documents]
) -> tuple[Documents, list[int]]:
    """All documents of a task, and the positions of those that were evaluated; none if not all are known."""
    if task in test_sets:
        return test_sets[task], [sample["doc_id"] for sample in logged]
    counts = results["n-samples"][task]
    documents = [sample["doc"] for sample in logged if counts["original"] == counts["effective"]]
    return documents, list(range(len(documents)))


def read_lm_eval(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Returns scores, answers and settings of a folder that `lm_eval run --log_samples` wrote.

    Of several results of one model the latest one of each task counts. Raises FileNotFoundError or ValueError that
    names the file.
    """
    merged: dict[str, Any] = {}
    samples: dict[str, Samples] = {}
    models = set()
    for file in sorted(folder.rglob("results_*.json"), key=lambda file: file.name):
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            models.add((file.parent.name, str(results.get("config", {}).get("model_args"))))
            for task in results["configs"]:
                logged = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
                # Not splitlines: texts may contain other line ends.
                samples[task] = [json.loads(line) for line in logged.read_bytes().split(b"\n") if line]
                if len({sample["doc_id"] for sample in samples[task]}) != results["n-samples"][task]["effective"]:
                    raise ValueError(f"{logged.name} has not all documents")
            merged = {key: merged.get(key, {}) | new if isinstance(new, dict) else new for key, new in results.items()}
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error.filename}: no such file. Run lm-eval with --log_samples.") from error
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{file}: not a complete result of lm-eval 0.4.13 or a near version ({error!r})."
            ) from error
    if len(models) > 1:
        raise ValueError(f"{folder} has results of several models: {sorted(models)}. Name the folder of one model.")
    return scores_of_samples(merged, samples, model=folder.resolve().name)


def _metrics(task: str, logged: Samples) -> pd.DataFrame:
    """One row per document; without the metrics that lm-eval aggregates from tuples."""
    frame = pd.DataFrame([{metric: sample[metric] for metric in sample["metrics"]} for sample in logged])
    numbers = frame.infer_objects().select_dtypes(["number", "bool"])
    dropped = frame.columns.difference(numbers.columns)
    if len(dropped):
        logger.warning("%s: no score per document for %s", task, ", ".join(dropped))
    return numbers.astype(float)


def _long(task: str, frame: pd.DataFrame, model: str) -> pd.DataFrame:
    rows = frame.reset_index().melt("unit", var_name="metric", value_name="score")
    # A set whose id is not in the ontology has no score by it.
    rows = rows[~(rows["metric"].isin(ONTOLOGY_METRICS) & rows["score"].isna())]
    return rows.assign(task=task, model=model)


def _units(samples: Samples) -> list[str]:
    """The documents' ids if each has one of its own, else their indices."""
    ids = [str(sample["doc"]["id"]) for sample in samples if sample["doc"].get("id") is not None]
    return ids if len(set(ids)) == len(samples) else [str(sample["doc_id"]) for sample in samples]


def _inputs(results: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder and background of the tasks that ask for names: the same for all of them."""
    for config in results["configs"].values():
        metadata = config.get("metadata") or {}
        if "scorer_version" in metadata:
            names = ("encoder", "background", "data_dir", "ontology")
            return {name: absolute(metadata[name]) for name in names if metadata.get(name)}
    return {}


def _answers(task: str, logged: Samples, units: pd.Index, model: str) -> pd.DataFrame:
    """One row per document, see [`write_scores`]."""
    rows = []
    for sample in logged:
        parts = document_parts(sample["doc"])
        answer = _answer(sample["filtered_resps"], parts)
        rows.append(
            {
                "answer": answer,
                "reference": (parts.get("name") or parts["answer"]) if parts else str(sample["target"]),
                "document": json.dumps(parts, ensure_ascii=False) if parts else None,
                "key": document_key(parts) if parts else sample["doc_hash"],
                "prompt": sample["prompt_hash"],
            }
        )
    return pd.DataFrame(rows).assign(task=task, unit=units, model=model)


def _answer(responses: Any, parts: Mapping[str, Any] | None) -> str | None:
    """The text that was generated, or the label (else the position) of the most likely choice."""
    if not isinstance(responses, Sequence) or isinstance(responses, str):
        return str(responses)
    if len(responses) == 1:
        return str(responses[0])
    # (log-likelihood, is greedy) of each choice; lm-eval's files hold them as text.
    best = max(range(len(responses)), key=lambda i: float(responses[i][0]))
    return str(parts["labels"][best]) if parts and "labels" in parts else str(best)


def _settings(task: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree between runs that are compared."""
    config = results["configs"][task]
    metadata = config.get("metadata") or {}
    named = {key: value for key, value in metadata.items() if key == "scorer_version" or key.endswith("_fingerprint")}
    return {
        "lm_eval_version": results["lm_eval_version"],
        "version": results["versions"].get(task),
        "num_fewshot": results["n-shot"].get(task),
        "chat_template": results.get("chat_template_sha"),
        "system_instruction": results.get("system_instruction_sha"),
        "generation_kwargs": config.get("generation_kwargs") if config["output_type"] == "generate_until" else None,
        **named,
        "higher_is_better": results.get("higher_is_better", {}).get(task, {}),
    }
