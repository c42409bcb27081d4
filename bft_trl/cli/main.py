"""`bft-trl`: parse, call one function, say where the result is."""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bft_trl.cli.biology import add_embedding_commands
from bft_trl.cli.data import add_data_commands
from bft_trl.cli.inspection import add_sample_commands
from bft_trl.cli.train import add_train_command
from bft_trl.io import lock

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 1 where a check found something, 2 for bad input."""
    # What we say, and of libraries only what they warn of.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("bft_trl").setLevel(logging.INFO)
    args, passed_on = _parser().parse_known_args(argv)
    args.passed_on = passed_on
    if passed_on and args.run is not _eval:
        _parser().error(f"unrecognized arguments: {' '.join(passed_on)}")
    try:
        with ExitStack() as stack:
            for name in ("out", "drop"):  # where a command writes
                place = getattr(args, name, None)
                if place is not None:
                    stack.enter_context(lock(place, name=name))
            return args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:  # the last: an extra that is not installed
        sys.stderr.write(f"bft-trl: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nbft-trl: stopped. What is resumable goes on with the same command.\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bft-trl", description="Balanced Fine-Tuning for TRL")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train_command(commands)
    add_data_commands(commands)
    add_sample_commands(commands)
    _add_score(commands)
    _add_eval(commands)
    _add_compare(commands)
    add_embedding_commands(commands)
    return parser


def _add_score(commands: Any) -> None:
    score = commands.add_parser("score", help="score proposed process names that were recorded elsewhere")
    score.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="id, predicted_name[, model]")
    score.add_argument("--references", type=Path, required=True, metavar="FILE", help="id, name[, genes]")
    score.add_argument("--out", type=Path, required=True, help="folder for scores.json and scores.parquet")
    score.add_argument("--encoder", metavar="ID", help="sentence encoder (Hub id or folder): adds similarity")
    score.add_argument("--background", type=Path, metavar="FILE", help="background names: adds percentile")
    score.add_argument(
        "--missing",
        default="error",
        choices=["error", "unnamed", "skip"],
        help="where a model has no row for an id: stop, count it as no answer, or score the others alone",
    )
    score.add_argument("--floors", action="store_true", help="add answers that ignore the genes")
    score.add_argument("--gmt", type=Path, metavar="FILE", help="add the top term of an over-representation test")
    score.add_argument("--seed", type=int, default=0, help="seed of the floors (default: 0)")
    score.set_defaults(run=_score)


def _add_eval(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="run lm-eval on a model or a trained run",
        epilog="Any other flag goes to lm-eval: --limit 200 --batch_size 8 --gen_kwargs max_gen_toks=64 ...",
    )
    evaluate.add_argument("--model", help="base model: Hub id or folder (default: the one that the adapter names)")
    evaluate.add_argument("--adapter", type=Path, metavar="DIR", help="run folder or checkpoint of a PEFT adapter")
    evaluate.add_argument(
        "--base-only", action="store_true", help="leave the adapter out: its base model, loaded in the same way"
    )
    evaluate.add_argument("--tasks", required=True, help="tasks and groups, with commas between them")
    evaluate.add_argument("--out", type=Path, required=True, help="folder for lm-eval's results and samples")
    evaluate.add_argument("--data-dir", type=Path, help="folder with the tasks' data (default: Hub or publisher)")
    evaluate.add_argument("--encoder", help='sentence encoder, or "none" (default: ncbi/MedCPT-Query-Encoder)')
    evaluate.add_argument("--background", help='background names, or "none" (default: those of the data)')
    evaluate.add_argument(
        "--load-in-4bit",
        action=argparse.BooleanOptionalAction,
        help="base weights in NF4 (default: as in training)",
    )
    evaluate.add_argument(
        "--chat-template",
        action=argparse.BooleanOptionalAction,
        help="apply the chat template (default: where the tokenizer has one)",
    )
    evaluate.add_argument(
        "--panel",
        metavar="TASKS",
        help="general tasks of lm-eval that show what the adapter forgot: evaluated for it and for its base",
    )
    evaluate.add_argument(
        "--panel-limit", type=int, metavar="N", help="documents of each panel task (default: all, or --limit)"
    )
    evaluate.set_defaults(run=_eval)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="evaluated runs against a baseline, with paired tests")
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of `eval` (lm-eval with logged samples) or `score`, NAME=FOLDER, or NAME=FOLDER,FOLDER,... for "
        "seeds of one method",
    )
    compare.add_argument("--baseline", required=True, metavar="RUN", help="name or folder of what to compare with")
    compare.add_argument("--out", type=Path, required=True, help="folder for index.html, comparison.json, forest.png")
    compare.add_argument("--seed", type=int, default=0, help="seed of all resampling (default: 0)")
    compare.add_argument("--resamples", type=int, default=9999, help="bootstrap and permutations (default: 9999)")
    compare.set_defaults(run=_compare)


def _score(args: argparse.Namespace) -> int:
    from bft_trl.evaluation.recorded import score_recorded

    result = score_recorded(
        args.predictions,
        args.references,
        args.out,
        background=args.background,
        encoder=args.encoder,
        missing=args.missing,
        floors=args.floors,
        gmt=args.gmt,
        seed=args.seed,
    )
    for model, scores in result["models"].items():
        figures = ", ".join(f"{name} {scores[name]['mean']:.3f}" for name in scores if name not in ("n", "kind"))
        logger.info("%s: n %d, %s", model, scores["n"], figures)
    logger.info("Wrote scores.json and scores.parquet to %s", args.out)
    return 0


def _eval(args: argparse.Namespace) -> int:
    from bft_trl.evaluation.runner import evaluate
    from bft_trl.models import read_run

    run = read_run(
        args.model,
        args.adapter,
        base_only=args.base_only,
        load_in_4bit=args.load_in_4bit,
        chat_template=args.chat_template,
    )
    settings = {"data_dir": args.data_dir, "encoder": args.encoder, "background": args.background}
    metadata = {name: str(value) for name, value in settings.items() if value is not None}
    panel = None if args.panel is None else _names(args.panel)
    if panel is not None:
        from bft_trl.evaluation.forgetting import check_panel

        check_panel(run, panel, args.out, limit=args.panel_limit, metadata=metadata, passed_on=args.passed_on)
    elif args.panel_limit is not None:
        raise ValueError("`panel_limit` needs `panel`: name its tasks.")
    missing = evaluate(run, _names(args.tasks), args.out, metadata=metadata, passed_on=args.passed_on)
    if panel is not None:
        _forgetting(args, run, panel, metadata)
    for task, reason in missing.items():
        logger.warning("Left out %s: %s", task, reason)
    logger.info("Results and samples are in %s", args.out)
    return int(bool(missing))


def _forgetting(args: argparse.Namespace, run: Any, panel: list[str], metadata: dict[str, str]) -> None:
    from bft_trl.evaluation.forgetting import evaluate_panel

    result = evaluate_panel(run, panel, args.out, limit=args.panel_limit, metadata=metadata, passed_on=args.passed_on)
    for row in result["rows"]:
        logger.info(
            "%s, %s: base %.3f, tuned %.3f, change %+.3f (%+.3f to %+.3f)",
            *(row[key] for key in ("task", "metric", "baseline_score", "score", "difference", "low", "high")),
        )
    logger.info("Open %s", args.out / "forgetting" / "index.html")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _compare(args: argparse.Namespace) -> int:
    from bft_trl.comparison.compare import compare

    result = compare(args.runs, args.baseline, args.out, seed=args.seed, n_resamples=args.resamples)
    for row in result["rows"]:
        logger.info(
            "%s, %s, %s: %.3f, baseline %.3f, difference %+.3f (%+.3f to %+.3f), p %.2g, Holm %.2g",
            *(row[key] for key in ("task", "metric", "run", "score", "baseline_score")),
            *(row[key] for key in ("difference", "low", "high", "p", "p_holm")),
        )
    logger.info("Open %s", args.out / "index.html")
    return 0
