"""`bft-trl data`: build training data and check it for leakage."""

import argparse
import logging
import shlex
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def add_data_commands(commands: Any) -> None:
    """Adds `data` and its subcommands to a parser's subcommands."""
    data = commands.add_parser("data", help="build training data and check it for leakage").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _add_gene_sets(data.add_parser("gene-sets", help="training rows from gene sets in one of four kinds of source"))
    _add_medical(data.add_parser("medical", help="training rows from medical questions of the Hub or a local folder"))
    check = data.add_parser(
        "check",
        help="find evaluation data in training data",
        description="Finds equal ids, equal texts, gene sets with a Jaccard index of 0.8 or more, and 13 equal words "
        "in a row. The exit code is 1 if there are any, unless --output_dir is given.",
    )
    against = "evaluation data: files, or names of downloads of the tasks (gene_sets_go, medmcqa, ...)"
    check.add_argument("--train", type=Path, nargs="+", required=True, metavar="FILE", help="training data")
    check.add_argument("--against", type=Path, nargs="+", required=True, metavar="FILE", help=against)
    check.add_argument("--output_dir", type=Path, help="folder for the training data without leaks, and leaks.csv")
    check.set_defaults(run=_check)


def _add_gene_sets(parser: Any) -> None:
    source = parser.add_argument_group("source (--org_db and --go_db, --obo and --gaf, --gmt, or --table)")
    source.add_argument("--org_db", type=Path, metavar="FILE", help="org.Hs.eg.sqlite of r-bioc-org.hs.eg.db")
    source.add_argument("--go_db", type=Path, metavar="FILE", help="GO.sqlite of r-bioc-go.db")
    source.add_argument("--obo", type=Path, metavar="FILE", help="ontology, such as go-basic.obo")
    source.add_argument("--gaf", type=Path, metavar="FILE", help="annotations, such as goa_human.gaf.gz")
    source.add_argument("--evidence", nargs="+", default=[], metavar="CODE", help="evidence codes (default: all)")
    source.add_argument("--gmt", type=Path, metavar="FILE", help="GMT file, with --names_only")
    source.add_argument("--table", type=Path, metavar="FILE", help="id, name, genes[, definition]")
    parser.add_argument("--min_genes", type=int, default=3, metavar="N", help="smallest set (default: 3)")
    parser.add_argument("--max_genes", type=int, default=100, metavar="N", help="largest set (default: 100)")
    parser.add_argument("--names_only", action="store_true", help="answers without the analysis")
    parser.add_argument("--described", action="store_true", help="prompts with the full names of the genes")
    _add_build_options(parser, "sets")
    parser.set_defaults(run=_gene_sets)


def _add_medical(parser: Any) -> None:
    sources = "medqa, medmcqa, pubmedqa, mmlu_medical, medical_o1; NAME:SPLIT takes another split than for training"
    parser.add_argument("--sources", nargs="+", required=True, metavar="NAME", help=sources)
    parser.add_argument("--data_dir", type=Path, help="folder with NAME_SPLIT.parquet (default: download)")
    reasoning = argparse.BooleanOptionalAction
    parser.add_argument("--reasoning", action=reasoning, default=True, help="explanations in answers (default: yes)")
    _add_build_options(parser, "rows")
    parser.set_defaults(run=_medical)


def _add_build_options(parser: Any, unit: str) -> None:
    folder = "folder for train.parquet, eval.parquet and README.md"
    parser.add_argument("--output_dir", type=Path, required=True, help=folder)
    parser.add_argument(f"--train_{unit}", type=int, metavar="N", help=f"training {unit} (default: all that remain)")
    parser.add_argument(f"--eval_{unit}", type=int, default=150, metavar="N", help=f"evaluation {unit} (default: 150)")
    parser.add_argument(
        "--exclude", type=Path, nargs="+", default=[], metavar="FILE", help="evaluation data to keep out"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")


def _command(name: str, args: argparse.Namespace) -> str:
    """Returns the command line for the data card, with names of files and without their folders."""
    lines = [f"bft-trl data {name}"]
    for option, value in vars(args).items():
        if option == "reasoning":
            option, value = "no_reasoning", not value
        values = value if isinstance(value, list) else [value]
        if not values or value is None or value is False or option == "run":
            continue
        words = [word.name if isinstance(word, Path) else str(word) for word in values if word is not True]
        lines.append(shlex.join([f"--{option}", *words]))
    return " \\\n    ".join(lines)


def _gene_sets(args: argparse.Namespace) -> int:
    from bft_trl.data.gene_sets import build

    tables = build(
        _source(args),
        args.output_dir,
        train_sets=args.train_sets,
        eval_sets=args.eval_sets,
        exclude=args.exclude,
        analysis=not args.names_only,
        described=args.described,
        seed=args.seed,
        command=_command("gene-sets", args),
    )
    return _log_sizes(tables, args.output_dir)


def _source(args: argparse.Namespace) -> Any:
    """Reads the source of gene sets that the options name."""
    from bft_trl.data.gene_ontology import read_bioconductor, read_obo_gaf
    from bft_trl.data.gene_sets import read_table_source

    readers: dict[tuple[str, ...], Any] = {
        ("org_db", "go_db"): read_bioconductor,
        ("obo", "gaf"): read_obo_gaf,
        ("gmt",): read_table_source,
        ("table",): read_table_source,
    }
    given = tuple(name for names in readers for name in names if getattr(args, name) is not None)
    flags = " ".join(f"--{name}" for name in given)
    if given not in readers:
        raise ValueError(
            f"{flags or 'no source'} given: gene sets need exactly one source, --org_db with --go_db, --obo with "
            "--gaf, --gmt or --table."
        )
    if args.evidence and "gaf" not in given:
        raise ValueError(f"--evidence selects annotations of --gaf; {flags} has none.")
    options = {"evidence": args.evidence} if args.evidence else {}
    paths = [getattr(args, name) for name in given]
    return readers[given](*paths, min_genes=args.min_genes, max_genes=args.max_genes, **options)


def _medical(args: argparse.Namespace) -> int:
    from bft_trl.data.medical_training import build

    tables = build(
        args.sources,
        args.output_dir,
        data_dir=args.data_dir,
        train_rows=args.train_rows,
        eval_rows=args.eval_rows,
        exclude=args.exclude,
        reasoning=args.reasoning,
        seed=args.seed,
        command=_command("medical", args),
    )
    return _log_sizes(tables, args.output_dir)


def _log_sizes(tables: Any, output_dir: Path) -> int:
    logger.info(
        "Wrote %d training and %d evaluation rows to %s", len(tables["train"]), len(tables["eval"]), output_dir
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    from bft_trl.data.documents import check_leakage

    leaks = check_leakage(args.train, args.against, output_dir=args.output_dir)
    return int(len(leaks) > 0 and args.output_dir is None)
