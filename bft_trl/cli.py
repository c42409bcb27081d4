"""`bft-trl`: parse, call one function, say where the result is."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 1 where a check found something, 2 for bad input."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parser().parse_args(argv)
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
    return parser


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
