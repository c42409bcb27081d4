"""`bft-trl inspect` and `bft-trl hard-samples`: parse, call one function, log where the result is."""

import argparse
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_FLAG: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
_OBJECTIVE: dict[str, dict[str, Any]] = {
    "loss_type": {"choices": ["bft", "nll", "dft"]},
    "bft_version": {"choices": ["v1", "v3"]},
    "token_weighting": _FLAG,
    "sample_weighting": _FLAG,
    "group_size": {"type": int, "metavar": "N"},
    "confidence_mean": {"choices": ["geometric", "arithmetic"]},
    "confidence_gamma": {"type": float, "metavar": "X"},
    "token_weight_power": {"type": float, "metavar": "X"},
    "min_token_weight": {"type": float, "metavar": "X"},
}
_SUPERVISED = ("completion_only_loss", "assistant_only_loss")


def add_inspection_commands(commands: Any) -> None:
    """Adds `inspect` and `hard-samples` to the subcommands of a parser."""
    inspect = commands.add_parser("inspect", help="tokens, confidences and weights of a data set before training")
    add = inspect.add_argument
    add("--model_name_or_path", metavar="MODEL", help="Hub id or folder (default: the adapter's base, or the demo's)")
    add("--adapter", type=Path, metavar="DIR", help="run folder or checkpoint of a PEFT adapter")
    add("--load_in_4bit", **_FLAG, help="base weights in NF4 (default: as in the adapter's training)")
    add("--device", help='such as "cpu" (default: a GPU if there is one)')
    _add_data_options(inspect)
    add("--dataset_split", default="train", metavar="SPLIT", help="(default: train)")
    add("--num_samples", type=int, default=50, metavar="N", help="rows to draw (default: 50)")
    add("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    add("--max_length", type=int, metavar="N", help="cut rows to N tokens (default: 1024; 512 for the package's sets)")
    add("--batch_size", type=int, default=4, metavar="N", help="rows per forward pass (default: 4)")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="folder for index.html and report.json")
    objective = inspect.add_argument_group("objective (default: the adapter's, else that of `bft-trl train`)")
    for name, options in _OBJECTIVE.items():
        objective.add_argument(f"--{name}", **options)
    inspect.set_defaults(run=_inspect)

    hard = commands.add_parser("hard-samples", help="samples of a run with a high loss, from its sample log")
    add = hard.add_argument
    add("run_folder", type=Path, metavar="RUN", help="output_dir of a run with `log_samples=True`")
    _add_data_options(hard)
    for name, default in {"dataset_train_split": "train", "dataset_test_split": "test"}.items():
        add(f"--{name}", default=default, metavar="SPLIT", help=f"as in training (default: {default})")
    add("--eval_samples", type=int, default=48, metavar="N", help="as in training (default: 48)")
    add("--seed", type=int, default=42, help="as in training (default: 42)")
    add("--top", type=int, default=20, metavar="N", help="length of each list (default: 20)")
    add("--source", metavar="NAME", help="only samples with this value in the column `source`")
    add("--output_dir", type=Path, metavar="DIR", help="for index.html, samples.csv (default: RUN/hard_samples)")
    hard.set_defaults(run=_hard_samples)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset_name", metavar="DATA", help="Hub id, folder or file (default: the gene sets of the package)")
    add("--dataset_config", metavar="NAME", help="configuration on the Hub")
    add("--prompt_column", metavar="NAME", help="user turn, for data in no format of TRL")
    add("--completion_columns", nargs="+", metavar="NAME", help="columns joined to the assistant turn")
    for name in _SUPERVISED:
        add(f"--{name}", **_FLAG, help="as in SFTConfig")


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _hard_samples(args: argparse.Namespace) -> int:
    from bft_trl.data.loading import load_train_and_eval
    from bft_trl.inspection.hard_samples import hard_samples
    from bft_trl.io import lock

    train, _ = load_train_and_eval(
        args.dataset_name,
        config=args.dataset_config,
        train_split=args.dataset_train_split,
        test_split=args.dataset_test_split,
        **_given(args, "eval_samples", "seed", "prompt_column", "completion_columns"),
    )
    output_dir = args.output_dir or args.run_folder / "hard_samples"
    options = {"top": args.top, "source": args.source, "config": _given(args, *_SUPERVISED)}
    with lock(output_dir):
        result = hard_samples(args.run_folder, train, output_dir, **options)
    for name, found in result["lists"].items():
        logger.info("%s: %s (%d)", name, found["by"], found["count"])
        for row in found["rows"][:5]:
            source = f" [{row['source']}]" if row["source"] else ""
            logger.info("  %s%s: nll %.3g to %.3g", row["id"], source, row["first_nll"], row["last_nll"])
    logger.info("Open %s", output_dir / "index.html")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from bft_trl.cli.train import DEMO, GENE_SETS
    from bft_trl.config import OBJECTIVE_FIELDS
    from bft_trl.data.gene_sets import load_gene_sets
    from bft_trl.data.loading import as_conversations, load_split, load_splits
    from bft_trl.inspection.inspection import inspect_samples
    from bft_trl.inspection.summary import summary_rows
    from bft_trl.io import read_json_object
    from bft_trl.models import demo_model, read_run

    defaults: dict[str, Any] = {}
    if args.dataset_name is None:
        name, rows = "the gene sets of the package", load_gene_sets(args.dataset_split, described=True, max_genes=9)
        defaults = GENE_SETS if args.model_name_or_path or args.adapter else GENE_SETS | DEMO
    else:
        name = Path(args.dataset_name).name if Path(args.dataset_name).is_file() else args.dataset_name
        splits = load_splits(args.dataset_name, config=args.dataset_config)
        rows = load_split(splits, args.dataset_split, name, argument="dataset_split")
    if args.prompt_column or args.completion_columns:
        rows = as_conversations(rows, prompt_column=args.prompt_column, completion_columns=args.completion_columns)
    config = {field: defaults[field] for field in OBJECTIVE_FIELDS if field in defaults}
    if args.adapter is not None and (args.adapter / "objective.json").is_file():
        saved = read_json_object(args.adapter / "objective.json")
        config = {field: saved[field] for field in OBJECTIVE_FIELDS if field in saved}
    model = args.model_name_or_path or (None if args.adapter else demo_model().path)
    report = inspect_samples(
        read_run(model, args.adapter, load_in_4bit=args.load_in_4bit),
        rows,
        args.output_dir,
        dataset_name=name,
        config=config | _given(args, *_OBJECTIVE, *_SUPERVISED),
        **{"max_length": defaults.get("max_length", 1024)}
        | _given(args, "num_samples", "seed", "max_length", "batch_size", "device"),
    )
    for metric, value in summary_rows(report["metrics"]):
        logger.info("%-42s %s", metric, value)
    for entry in report["advice"]:
        logger.info("%s: %s", entry["level"], entry["text"])
    logger.info("Open %s", args.output_dir / "index.html")
    return 0
