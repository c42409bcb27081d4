"""`bft-trl eval`, `score` and `compare`."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def add_evaluation_commands(commands: Any) -> None:
    """Adds `eval`, `score` and `compare` to the subcommands of a parser."""
    _add_eval(commands)
    _add_score(commands)
    _add_compare(commands)


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser("eval", help="evaluate a model or a trained run with lm-eval", allow_abbrev=False)
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", help="base model: Hub id or folder (default: the adapter's)")
    model.add_argument("--adapter", type=Path, metavar="DIR", help="output folder or checkpoint of a training run")
    model.add_argument("--base_only", action="store_true", help="evaluate the adapter's base model, loaded alike")
    yes_or_no = argparse.BooleanOptionalAction
    model.add_argument("--load_in_4bit", action=yes_or_no, help="base weights in NF4 (default: as in training)")
    model.add_argument("--apply_chat_template", action=yes_or_no, help="(default: if the tokenizer has one)")
    model.add_argument("--device", help='such as "cpu" (default: a GPU if there is one)')
    model.add_argument("--trust_remote_code", action="store_true", help="allow Python files of the model to run")
    tasks = parser.add_argument_group("tasks (of bft_trl and lm-eval)")
    tasks.add_argument("--tasks", required=True, help="tasks and groups, separated by commas")
    tasks.add_argument("--include_path", metavar="DIR", help="folder with tasks of your own")
    tasks.add_argument("--data_dir", type=Path, help="folder with the data of our tasks (default: Hub or publisher)")
    tasks.add_argument(
        "--allow_missing", action="store_true", help="return 0 although tasks without data are left out"
    )
    tasks.add_argument("--encoder", help='sentence encoder, or "none" (default: ncbi/MedCPT-Query-Encoder)')
    tasks.add_argument("--background", help='background names, or "none" (default: those of the data)')
    tasks.add_argument("--ontology", metavar="FILE", help="OBO file: adds go_hit and go_lin of GO sets")
    tasks.add_argument("--forgetting_tasks", metavar="TASKS", help="general tasks, for the adapter and for its base")
    tasks.add_argument("--forgetting_limit", type=float, metavar="N", help="documents of each (default: --limit)")
    options = parser.add_argument_group("options of lm-eval")
    options.add_argument("--batch_size", default="1", help='number, or "auto" (default: 1)')
    options.add_argument("--limit", type=float, metavar="N", help="documents per task, or a fraction under 1")
    options.add_argument("--num_fewshot", type=int, metavar="N", help="examples in the prompt")
    options.add_argument("--gen_kwargs", nargs="+", metavar="KEY=VALUE", help="such as max_gen_toks=64")
    options.add_argument("--system_instruction", metavar="TEXT", help="system message")
    options.add_argument("--seed", type=int, help="of Python, NumPy, torch and few-shot examples (default: lm-eval's)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for scores.parquet, settings.json, ...")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace another evaluation in output_dir")
    parser.set_defaults(run=_eval)


def _add_score(commands: Any) -> None:
    parser = commands.add_parser("score", help="score answers that others recorded", allow_abbrev=False)
    columns = "id, predicted_name (questions: label or text)[, model][, source]"
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help=columns)
    parser.add_argument("--references", type=Path, metavar="FILE", help="gene sets of your own: id, name, genes")
    parser.add_argument("--task", help="or one of our tasks, such as bft_medmcqa or bft_gene_sets_go")
    parser.add_argument("--data_dir", type=Path, help="folder with the data of --task (default: Hub or publisher)")
    parser.add_argument("--source", help="score only predictions with this value in the column source")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for scores.parquet, summary.csv, ...")
    parser.add_argument("--encoder", metavar="ID", help="sentence encoder (Hub id or folder): adds similarity")
    parser.add_argument("--background", type=Path, metavar="FILE", help="background names: adds percentile")
    parser.add_argument("--ontology", type=Path, metavar="FILE", help="OBO file: adds go_hit and go_lin of GO sets")
    parser.add_argument(
        "--missing",
        default="error",
        choices=["error", "empty", "skip"],
        help="if a model has no row for an id: stop, score an empty answer, or score the others alone",
    )
    parser.add_argument("--baselines", action="store_true", help="add the baselines of the task")
    parser.add_argument("--gmt", type=Path, metavar="FILE", help="add the top term of an over-representation test")
    parser.add_argument("--seed", type=int, default=0, help="of the baselines (default: 0)")
    parser.set_defaults(run=_score)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser("compare", help="compare runs with a baseline run, paired", allow_abbrev=False)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="results folder (of eval, score or lm-eval with logged samples), NAME=FOLDER, or NAME=FOLDER,FOLDER,... "
        "for seeds of one method",
    )
    parser.add_argument("--baseline", required=True, metavar="RUN", help="name or folder of the baseline run")
    parser.add_argument(
        "--with",
        dest="systems",
        nargs="+",
        default=[],
        metavar="SYSTEM",
        help="recorded systems, such as geneagent or gpt-4o, on the same documents",
    )
    parser.add_argument("--common_documents", action="store_true", help="compare the documents that all runs have")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for index.html, comparison.json, ...")
    parser.add_argument("--seed", type=int, default=0, help="of bootstrap and permutations (default: 0)")
    parser.add_argument("--resamples", type=int, default=9999, help="bootstrap and permutations (default: 9999)")
    parser.set_defaults(run=_compare)


def _eval(args: argparse.Namespace) -> int:
    from bft_trl.evaluation.runner import check_request, evaluate
    from bft_trl.models import read_run

    loading = ("base_only", "load_in_4bit", "apply_chat_template", "trust_remote_code")
    run = read_run(args.model_name_or_path, args.adapter, **{name: getattr(args, name) for name in loading})
    if run.trust_remote_code:
        logger.warning("--trust_remote_code: runs the Python files of %s, with your user's permissions", run.base)
    data = {name: getattr(args, name) for name in ("data_dir", "encoder", "background", "ontology")}
    names = ("include_path", "limit", "num_fewshot", "system_instruction", "seed", "batch_size", "device")
    options = {name: getattr(args, name) for name in names}
    options["metadata"] = {name: str(value) for name, value in data.items() if value is not None}
    options |= {"gen_kwargs": args.gen_kwargs and ",".join(args.gen_kwargs), "overwrite": args.overwrite_output_dir}
    general = _forgetting_tasks(args, run, options)
    folder = args.output_dir / "forgetting"
    limited = options | {"limit": args.limit if args.forgetting_limit is None else args.forgetting_limit}
    models = {folder / "base": replace(run, adapter=None), folder / "tuned": run} if general else {}
    for path, model in models.items():
        check_request(model, general, path, **limited)
    left_out = evaluate(run, _names(args.tasks), args.output_dir, **options)
    for path, model in models.items():
        evaluate(model, general, path, **limited)
    if models:
        _log_forgetting(folder)
    if left_out:
        logger.warning("Without %s: see above", ", ".join(left_out))
    logger.info("Wrote scores.parquet, answers.parquet, settings.json and lm-eval's files to %s", args.output_dir)
    return int(bool(left_out) and not args.allow_missing)


def _forgetting_tasks(args: argparse.Namespace, run: Any, options: dict[str, Any]) -> list[str]:
    """The general tasks. Raises ValueError before anything is evaluated."""
    from bft_trl.evaluation.runner import load_tasks

    if args.forgetting_tasks is None:
        if args.forgetting_limit is not None:
            raise ValueError("`forgetting_limit` needs `forgetting_tasks`.")
        return []
    if run.adapter is None:
        raise ValueError("`forgetting_tasks` compares an adapter with its base: it needs `adapter`, not `base_only`.")
    tasks = _names(args.forgetting_tasks)
    manager, loaded, left_out = load_tasks(tasks, metadata=options["metadata"], include_path=args.include_path)
    leaves = manager.load(loaded)["tasks"] if loaded else {}
    rolling = [name for name, task in leaves.items() if task.OUTPUT_TYPE == "loglikelihood_rolling"]
    if rolling:
        raise ValueError(f"`forgetting_tasks`: {', '.join(rolling)} has no score per document to compare.")
    if left_out:
        raise ValueError("`forgetting_tasks`: " + "; ".join(f"{task}: {reason}" for task, reason in left_out.items()))
    return tasks


def _log_forgetting(folder: Path) -> None:
    """Compares the adapter with its base."""
    from bft_trl.comparison.compare import compare

    for row in compare([str(folder / "base"), str(folder / "tuned")], "base", folder)["rows"]:
        logger.info(
            "%s, %s: base %.3f, tuned %.3f, change %+.3f (%+.3f to %+.3f)",
            *(row[key] for key in ("task", "metric", "baseline_score", "score", "difference", "low", "high")),
        )
    logger.info("Open %s", folder / "index.html")


def _score(args: argparse.Namespace) -> int:
    from bft_trl.evaluation.recorded import score_recorded

    names = ("references", "task", "data_dir", "source", "background", "encoder", "ontology", "missing", "baselines")
    options = {name: getattr(args, name) for name in (*names, "gmt", "seed")}
    summary = score_recorded(args.predictions, args.output_dir, **options)
    for model, rows in summary.groupby("model", sort=False):
        means = ", ".join(f"{metric} {mean:.3f}" for metric, mean in zip(rows["metric"], rows["mean"], strict=True))
        logger.info("%s: n %d, %s", model, rows["n"].iloc[0], means)
    logger.info("Wrote scores.parquet, settings.json, summary.csv and answers.parquet to %s", args.output_dir)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from bft_trl.comparison.compare import compare

    options = {name: getattr(args, name) for name in ("systems", "common_documents", "seed")}
    result = compare(args.runs, args.baseline, args.output_dir, n_resamples=args.resamples, **options)
    for row in result["rows"]:
        logger.info(
            "%s, %s, %s: %.3f, baseline %.3f, difference %+.3f (%+.3f to %+.3f), p %.2g, Holm %.2g",
            *(row[key] for key in ("task", "metric", "run", "score", "baseline_score")),
            *(row[key] for key in ("difference", "low", "high", "p", "p_holm")),
        )
    logger.info("Open %s", args.output_dir / "index.html")
    return 0


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("`tasks` is empty: name tasks, separated by commas.")
    return names
