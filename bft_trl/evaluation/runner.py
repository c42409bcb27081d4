"""Evaluates a model or a trained run with lm-eval, and writes the scores in the results format."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bft_trl.data.evaluation_sets import load_gene_names
from bft_trl.evaluation.names import SCORER_VERSION
from bft_trl.evaluation.samples import scores_of_samples
from bft_trl.evaluation.scores import document_parts, read_settings, write_scores
from bft_trl.io import check_folder
from bft_trl.models import Run, fingerprint, load_run, load_tokenizer

logger = logging.getLogger(__name__)


def tasks_path() -> Path:
    """Returns the folder of our lm-eval tasks: inside an installed package, beside it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "eval_tasks"
    return installed if installed.is_dir() else package.parent / "eval_tasks"


def evaluate(
    run: Run,
    tasks: Sequence[str],
    output_dir: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    include_path: str | None = None,
    seed: int | None = None,
    batch_size: int | str = 1,
    device: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, str]:
    """Writes `scores.parquet`, `settings.json`, `results.json` (lm-eval's) and `samples.jsonl` into `output_dir`.

    An evaluation that was stopped continues from its last answer, and a finished one is not repeated.

    Args:
        run: what to evaluate.
        tasks: names of tasks, groups and tags, patterns, or YAML files.
        metadata: data_dir, encoder and background of our tasks.
        include_path: folder with further tasks.
        seed: of Python, NumPy, torch and the few-shot examples; None takes lm-eval's defaults.
        batch_size: number, or "auto".
        device: see [`load_run`].
        overwrite: replace the results of another evaluation.
        options: of lm-eval's `simple_evaluate`: limit, num_fewshot, gen_kwargs, system_instruction.

    Returns the tasks that were left out because their data cannot be loaded, with the reason. Raises ValueError or
    OSError that names the option, before the model is loaded.
    """
    metadata = dict(metadata or {})
    requested = {"metadata": metadata, "include_path": include_path, "seed": seed, **options}
    request, done = check_request(run, tasks, output_dir, overwrite=overwrite, batch_size=batch_size, **requested)
    if done:
        logger.info("%s has the results of this evaluation (--overwrite_output_dir repeats it)", output_dir)
        left_out = read_settings(output_dir)["left_out"]
        for task, reason in left_out.items():
            logger.warning("Left out %s: %s", task, reason)
        return left_out
    named = {"pretrained": run.base, **metadata}  # some of lm-eval's tasks need the tokenizer
    manager, loaded, left_out = load_tasks(tasks, metadata=named, include_path=include_path)
    if not loaded:
        raise ValueError("None of the tasks has its data: " + "; ".join(dict.fromkeys(left_out.values())))
    digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:12]
    options |= {"tasks": loaded, "task_manager": manager, "use_cache": str(output_dir / f".answers-{digest}")}
    results = _simple_evaluate(run, seed=seed, batch_size=batch_size, device=device, **options)
    scored = _what_scoring_needs(manager.load(loaded)["tasks"], metadata.get("data_dir"))
    _write(output_dir, results, scored, {"request": request, "left_out": left_out})
    return left_out


def check_request(
    run: Run,
    tasks: Sequence[str],
    output_dir: Path,
    *,
    batch_size: int | str = 1,
    device: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], bool]:
    """Checks numbers and folder. Arguments as of [`evaluate`].

    Returns what decides the results, and whether the folder has them. Raises ValueError for numbers out of range, and
    if the folder has the results of another evaluation.
    """
    check_folder(output_dir)
    if not re.fullmatch(r"auto(:[\d.]+)?|0*[1-9]\d*", str(batch_size)):
        raise ValueError(f"`batch_size={batch_size!r}` must be 1 or more, or 'auto'.")
    limit, examples = options.get("limit"), options.get("num_fewshot")
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and float(limit).is_integer())):
        raise ValueError(f"`limit={limit:g}` must be a number of documents, 1 or more, or a fraction between 0 and 1.")
    if examples is not None and examples < 0:
        raise ValueError(f"`num_fewshot={examples}` must be 0 or more.")
    model = fingerprint(run) | {"quantization": run.quantization, "apply_chat_template": run.apply_chat_template}
    request = {"model": model, "tasks": list(tasks), **options, "lm_eval_version": version("lm_eval")}
    request["scorer_version"] = SCORER_VERSION
    if overwrite or not (output_dir / "settings.json").is_file():
        return request, False
    if read_settings(output_dir).get("request") != request:
        raise ValueError(
            f"`output_dir={str(output_dir)!r}` has the results of another evaluation. Remove it, name another folder, "
            "or replace them with `overwrite_output_dir`."
        )
    return request, True


def load_tasks(
    names: Sequence[str], *, metadata: Mapping[str, str], include_path: str | None = None
) -> tuple[Any, list[Any], dict[str, str]]:
    """Returns lm-eval's TaskManager, tasks and groups, and the tasks whose data cannot be loaded with the reason.

    A group with a missing task is replaced by its other tasks: an average over them would be a different metric.
    Raises ValueError for a name that does not exist. Arguments as of [`evaluate`].
    """
    from lm_eval.tasks import TaskManager

    paths = [str(tasks_path()), *([include_path] if include_path else [])]
    for defaults in (False, True):  # reading lm-eval's 14,000 files takes eight seconds
        manager = TaskManager(include_path=paths, include_defaults=defaults, metadata=dict(metadata))
        queue = [[name] if Path(name).is_file() else manager.match_tasks([name]) for name in names]
        if all(queue):
            break
    else:
        unknown = ", ".join(repr(name) for name, found in zip(names, queue, strict=True) if not found)
        raise ValueError(f"`tasks`: lm-eval knows no {unknown}. `lm_eval ls tasks` lists all names.")
    wanted = [name for found in queue for name in found]
    loaded: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    while wanted:
        name = wanted.pop(0)
        try:
            found = manager.load([name])
            loaded |= {name: found["groups"][name]} if name in found["groups"] else found["tasks"]
        except OSError as error:
            if name in manager.all_groups:
                wanted = [*manager.task_index[name].cfg["task"], *wanted]
            else:
                left_out[name] = str(error)
                logger.warning("Left out %s: %s", name, error)
    return manager, list(loaded.values()), left_out


def _simple_evaluate(run: Run, *, seed: int | None, batch_size: int | str, device: str | None, **options: Any) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import hash_string

    model = HFLM(pretrained=load_run(run, device=device), tokenizer=load_tokenizer(run), batch_size=batch_size)
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    results = simple_evaluate(
        model=model,
        model_args={"pretrained": run.base, "peft": run.adapter and str(run.adapter)},  # for the record
        log_samples=True,
        apply_chat_template=run.apply_chat_template,
        fewshot_as_multiturn=run.apply_chat_template,
        **({} if seed is None else dict.fromkeys(seeds, seed)),
        **options,
    )
    # As in the files that lm-eval's command writes.
    template = model.chat_template(True) if run.apply_chat_template else None
    instruction = options.get("system_instruction")
    results["chat_template_sha"] = template and hash_string(template)
    results["system_instruction_sha"] = instruction and hash_string(instruction)
    return results


def _what_scoring_needs(tasks: Mapping[str, Any], data_dir: str | None) -> dict[str, Any]:
    """The arguments of `scores_of_samples` for the baselines: scorers and test sets of our tasks, names of genes."""
    return {
        "scorers": {name: task.scorer for name, task in tasks.items() if hasattr(task, "scorer")},
        "test_sets": {
            n: list(task.eval_docs) for n, task in tasks.items() if document_parts(next(iter(task.eval_docs)))
        },
        "gene_names": load_gene_names(data_dir),
    }


def _write(output_dir: Path, results: dict[str, Any], scored: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    from lm_eval.utils import handle_non_serializable

    def dump(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)

    samples = results.pop("samples")
    model, seed = record["request"]["model"], record["request"]["seed"] or 0
    name = model["adapter"] or model["model"]
    scores, answers, settings = scores_of_samples(results, samples, model=name, seed=seed, **scored)
    settings["models"][name] = model
    lines = [dump({"task": task, **sample}) for task, logged in samples.items() for sample in logged]
    more = {"results.json": dump(results, indent=2).encode(), "samples.jsonl": "\n".join([*lines, ""]).encode()}
    write_scores(output_dir, scores, {**settings, **record}, more, answers=answers)
    for file in output_dir.glob(".answers-*"):
        file.unlink()
