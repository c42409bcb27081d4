"""`bft-trl data ...`: parse, call one function, say where the result is."""

import argparse
import logging
from pathlib import Path
from typing import Any

AGAINST = "evaluation data: files, or names of what the tasks download (gene_sets_go, medmcqa, ...)"

logger = logging.getLogger(__name__)


def add_data_commands(commands: Any) -> None:
    """Adds `data` and what is under it to the subcommands of a parser."""
    data = commands.add_parser("data", help="build training data and check it for leakage").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _add_gene_sets(data)
    _add_medical(data)
    _add_check(data)


def _add_gene_sets(data: Any) -> None:
    gene_sets = data.add_parser("gene-sets", help="gene sets as training rows, from one of four kinds of source")
    source = gene_sets.add_argument_group("source (one of: --org-db and --go-db, --obo and --gaf, --gmt, --table)")
    source.add_argument("--org-db", type=Path, metavar="FILE", help="org.Hs.eg.sqlite of r-bioc-org.hs.eg.db")
    source.add_argument("--go-db", type=Path, metavar="FILE", help="GO.sqlite of r-bioc-go.db")
    source.add_argument("--obo", type=Path, metavar="FILE", help="ontology, such as go-basic.obo")
    source.add_argument("--gaf", type=Path, metavar="FILE", help="annotations, such as goa_human.gaf.gz")
    source.add_argument("--evidence", nargs="+", default=[], metavar="CODE", help="evidence codes (default: all)")
    source.add_argument("--gmt", type=Path, metavar="FILE", help="GMT file, with --names-only")
    source.add_argument("--table", type=Path, metavar="FILE", help="id, name, genes[, definition]")
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
        help="evaluation sets to keep out (GMT, or a table with id, name, genes)",
    )
    gene_sets.add_argument("--names-only", action="store_true", help="answers without the analysis")
    gene_sets.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    gene_sets.set_defaults(run=_gene_sets)


def _add_medical(data: Any) -> None:
    medical = data.add_parser("medical", help="medical questions as training rows, from the Hub or a local folder")
    medical.add_argument(
        "--sources",
        nargs="+",
        required=True,
        metavar="NAME",
        help="medqa, medmcqa, pubmedqa, mmlu_medical, medical_o1; NAME:SPLIT takes another split than for training",
    )
    medical.add_argument("--out", type=Path, required=True, help="folder for train.parquet, eval.parquet, README.md")
    medical.add_argument("--data-dir", type=Path, help="folder with NAME_SPLIT.parquet (default: Hub or publisher)")
    medical.add_argument("--train-rows", type=int, help="training rows (default: all that remain)")
    medical.add_argument("--eval-rows", type=int, default=150, help="evaluation rows (default: 150)")
    medical.add_argument(
        "--exclude", type=Path, nargs="+", default=[], metavar="FILE", help="evaluation data to keep out"
    )
    medical.add_argument("--no-reasoning", action="store_true", help="answers without the explanations")
    medical.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    medical.set_defaults(run=_medical)


def _add_check(data: Any) -> None:
    check = data.add_parser(
        "check",
        help="find evaluation data in training data",
        description="Finds the same id, the same text, gene sets with a Jaccard index of 0.8 or more, and 13 words in "
        "a row. Exit code 1 where there is any, unless --drop removed it.",
    )
    check.add_argument("--train", type=Path, nargs="+", required=True, metavar="FILE", help="training data")
    check.add_argument("--against", type=Path, nargs="+", required=True, metavar="FILE", help=AGAINST)
    check.add_argument("--drop", type=Path, metavar="DIR", help="write the training data without leaks, and leaks.csv")
    check.set_defaults(run=_check)


def _gene_sets(args: argparse.Namespace) -> int:
    from bft_trl.data.gene_sets import build

    tables = build(
        _source(args),
        args.out,
        train_sets=args.train_sets,
        eval_sets=args.eval_sets,
        excluded=args.exclude,
        analysis=not args.names_only,
        seed=args.seed,
    )
    logger.info("Wrote %d training and %d evaluation rows to %s", len(tables["train"]), len(tables["eval"]), args.out)
    return 0


def _source(args: argparse.Namespace) -> Any:
    """The one source of gene sets that the options name, read."""
    from bft_trl.data import sources

    evidence = {"evidence": args.evidence} if args.evidence else {}
    readers: dict[tuple[str, ...], Any] = {
        ("--org-db", "--go-db"): sources.bioconductor_source,
        ("--obo", "--gaf"): sources.obo_gaf_source,
        ("--gmt",): sources.gmt_source,
        ("--table",): sources.table_source,
    }
    paths = {option: getattr(args, option[2:].replace("-", "_")) for options in readers for option in options}
    given = [option for option, path in paths.items() if path is not None]
    options = tuple(given)
    if options not in readers:
        raise ValueError(
            f"{' '.join(given) or 'no source'} given: gene sets need exactly one source, --org-db with --go-db, "
            "--obo with --gaf, --gmt or --table."
        )
    if evidence and "--gaf" not in options:
        raise ValueError(f"--evidence selects annotations of --gaf; {' '.join(given)} has none.")
    sizes = {"min_genes": args.min_genes, "max_genes": args.max_genes}
    return readers[options](*(paths[option] for option in options), **sizes, **evidence)


def _medical(args: argparse.Namespace) -> int:
    from bft_trl.data.medical_training import build

    tables = build(
        args.sources,
        args.out,
        data_dir=args.data_dir,
        train_rows=args.train_rows,
        eval_rows=args.eval_rows,
        excluded=args.exclude,
        reasoning=not args.no_reasoning,
        seed=args.seed,
    )
    logger.info("Wrote %d training and %d evaluation rows to %s", len(tables["train"]), len(tables["eval"]), args.out)
    return 0


def _check(args: argparse.Namespace) -> int:
    from bft_trl.data.check import check_leakage

    leaks = check_leakage(args.train, args.against, drop=args.drop)
    return int(len(leaks) > 0 and args.drop is None)
