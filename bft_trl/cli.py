"""`bft-trl`: parse, call one function, say where the result is."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 1 where a check found something, 2 for bad input."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, passed_on = _parser().parse_known_args(argv)
    args.passed_on = passed_on
    if passed_on and args.run is not _eval:
        _parser().error(f"unrecognized arguments: {' '.join(passed_on)}")
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"bft-trl: error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bft-trl", description="Balanced Fine-Tuning for TRL")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="build training data and check it for leakage").add_subparsers(
        required=True, metavar="COMMAND"
    )

    gene_sets = data.add_parser("gene-sets", help="GO biological-process gene sets as training rows")
    gene_sets.add_argument("--org-db", type=Path, required=True, help="org.Hs.eg.sqlite of r-bioc-org.hs.eg.db")
    gene_sets.add_argument("--go-db", type=Path, required=True, help="GO.sqlite of r-bioc-go.db")
    gene_sets.add_argument("--out", type=Path, required=True, help="folder for train.parquet, eval.parquet, README.md")
    gene_sets.add_argument("--train-sets", type=int, help="training sets (default: all that remain)")
    gene_sets.add_argument("--eval-sets", type=int, default=150, help="evaluation sets (default: 150)")
    gene_sets.add_argument("--min-genes", type=int, default=3, help="smallest set (default: 3)")
    gene_sets.add_argument("--max-genes", type=int, default=100, help="largest set (default: 100)")
    gene_sets.add_argument(
        "--exclude",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluation sets to keep out (id, name, genes)",
    )
    gene_sets.add_argument("--names-only", action="store_true", help="answers without the analysis")
    gene_sets.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    gene_sets.set_defaults(run=_gene_sets)

    check = data.add_parser("check", help="find gene sets of the training data in evaluation data")
    check.add_argument("--train", type=Path, nargs="+", required=True, metavar="FILE", help="training sets")
    check.add_argument("--against", type=Path, nargs="+", required=True, metavar="FILE", help="evaluation sets")
    check.set_defaults(run=_check)

    _add_score(commands)
    _add_eval(commands)
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
    evaluate.set_defaults(run=_eval)


def _gene_sets(args: argparse.Namespace) -> int:
    from bft_trl.data.gene_sets import build

    tables = build(
        args.org_db,
        args.go_db,
        args.out,
        train_sets=args.train_sets,
        eval_sets=args.eval_sets,
        min_genes=args.min_genes,
        max_genes=args.max_genes,
        excluded=args.exclude,
        analysis=not args.names_only,
        seed=args.seed,
    )
    logging.info("Wrote %d training and %d evaluation rows to %s", len(tables["train"]), len(tables["eval"]), args.out)
    return 0


def _check(args: argparse.Namespace) -> int:
    from bft_trl.data.leakage import find_leaks
    from bft_trl.data.tables import read_gene_sets

    tests = [(path, read_gene_sets(path)) for path in args.against]
    leaks = 0
    for train_path in args.train:
        train = read_gene_sets(train_path)
        for path, test in tests:
            found = find_leaks(train, test)
            leaks += len(found)
            counts = ", ".join(
                f"{found.loc[found['reason'] == reason, 'test_id'].nunique()} by {reason}"
                for reason in ("id", "name", "genes")
            )
            logging.info("%s against %s: %d leaks (test sets: %s)", train_path, path, len(found), counts)
    return int(leaks > 0)


def _score(args: argparse.Namespace) -> int:
    from bft_trl.recorded import score_recorded

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
        logging.info("%s: n %d, %s", model, scores["n"], figures)
    logging.info("Wrote scores.json and scores.parquet to %s", args.out)
    return 0


def _eval(args: argparse.Namespace) -> int:
    from bft_trl.evaluation import evaluate, read_run

    run = read_run(args.model, args.adapter, load_in_4bit=args.load_in_4bit, chat_template=args.chat_template)
    settings = {"data_dir": args.data_dir, "encoder": args.encoder, "background": args.background}
    missing = evaluate(
        run,
        args.tasks.split(","),
        args.out,
        metadata={name: str(value) for name, value in settings.items() if value is not None},
        passed_on=args.passed_on,
    )
    for task, reason in missing.items():
        logging.warning("Left out %s: %s", task, reason)
    logging.info("Results and samples are in %s", args.out)
    return int(bool(missing))
