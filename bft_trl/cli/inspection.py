"""`bft-trl inspect` and `bft-trl hard-samples`: parse, call one function, say where the result is."""

import argparse
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# Fields of BFTConfig that `inspect` takes; what they mean is said there.
_OBJECTIVE: dict[str, dict[str, Any]] = {
    "loss_type": {"choices": ["bft", "nll", "dft"]},
    "bft_version": {"choices": ["v1", "v3"]},
    "group_size": {"type": int, "metavar": "N"},
    "confidence_mean": {"choices": ["geometric", "arithmetic"]},
    "confidence_gamma": {"type": float, "metavar": "X"},
    "min_token_weight": {"type": float, "metavar": "X"},
}
# Fields of SFTConfig that decide which tokens are supervised.
_SUPERVISED = ("completion_only_loss", "assistant_only_loss")


def add_sample_commands(commands: Any) -> None:
    """Adds `inspect` and `hard-samples` to the subcommands of a parser."""
    _add_inspect(commands)
    _add_hard_samples(commands)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect", help="what the loss will see of a data set, sample by sample, before any training"
    )
    inspect.add_argument("--model", help="base model: Hub id or folder (default: the adapter's base, or the demo's)")
    inspect.add_argument("--adapter", type=Path, metavar="DIR", help="run folder or checkpoint of a PEFT adapter")
    inspect.add_argument(
        "--dataset",
        help="Hub id, folder, or JSON, JSON lines, parquet or CSV file (default: the shipped gene sets)",
    )
    inspect.add_argument("--config", help="the data set's configuration on the Hub")
    inspect.add_argument("--split", default="train", help="which of its splits (default: train)")
    inspect.add_argument("--prompt-column", metavar="NAME", help="the user's turn, for data in no format of TRL's")
    inspect.add_argument("--completion-columns", nargs="+", metavar="NAME", help="joined to the assistant's turn")
    inspect.add_argument("--out", type=Path, required=True, help="folder for index.html and report.json")
    inspect.add_argument("--n", type=int, default=50, help="samples to look at, drawn by --seed (default: 50)")
    inspect.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    inspect.add_argument(
        "--max-length", type=int, default=1024, help="where rows are cut, as in training (default: 1024)"
    )
    inspect.add_argument("--batch-size", type=int, default=4, help="samples at a time (default: 4)")
    inspect.add_argument("--device", help='such as "cpu" (default: a GPU where there is one)')
    inspect.add_argument(
        "--load-in-4bit",
        action=argparse.BooleanOptionalAction,
        help="base weights in NF4 (default: as in the adapter's training)",
    )
    for name in _SUPERVISED:
        inspect.add_argument(
            f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, help="as in SFTConfig"
        )
    objective = inspect.add_argument_group("objective (as in BFTConfig; default: the adapter's own, else BFTConfig's)")
    for name, options in _OBJECTIVE.items():
        objective.add_argument(f"--{name.replace('_', '-')}", **options)
    inspect.set_defaults(run=_inspect)


def _add_hard_samples(commands: Any) -> None:
    hard = commands.add_parser("hard-samples", help="which samples of a run stayed hard, from its record")
    hard.add_argument("run_folder", type=Path, metavar="RUN", help="output folder of a training run")
    hard.add_argument("--out", type=Path, help="folder for index.html and samples.csv (default: RUN/hard_samples)")
    hard.add_argument("--top", type=int, default=20, help="length of each list (default: 20)")
    hard.add_argument("--source", metavar="NAME", help="only samples of this source")
    hard.set_defaults(run=_hard_samples)


def _hard_samples(args: argparse.Namespace) -> int:
    from bft_trl.inspection.hard_samples import hard_samples

    out = args.out or args.run_folder / "hard_samples"
    result = hard_samples(args.run_folder, out, top=args.top, source=args.source)
    for name, found in result["lists"].items():
        logger.info("%s: %s (%d)", name, found["by"], found["count"])
        for row in found["rows"][:5]:
            source = f" [{row['source']}]" if row["source"] else ""
            logger.info("  %s%s: nll %.3g to %.3g", row["id"], source, row["first_nll"], row["last_nll"])
    logger.info("Open %s", out / "index.html")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from bft_trl.config import OBJECTIVE_FIELDS
    from bft_trl.data.gene_sets import load_gene_sets
    from bft_trl.data.loading import as_conversations, load_split, load_splits
    from bft_trl.data.tables import read_json_object
    from bft_trl.demo_model import demo_model
    from bft_trl.inspection.inspection import inspect_samples
    from bft_trl.inspection.inspection_page import summary
    from bft_trl.models import read_run

    if args.dataset is None:
        name, rows = "the shipped gene sets", load_gene_sets("train")
    else:
        name = Path(args.dataset).name if Path(args.dataset).is_file() else args.dataset
        splits = load_splits(args.dataset, config=args.config)
        rows = load_split(splits, args.split, name, argument="split")
    if args.prompt_column or args.completion_columns:
        rows = as_conversations(rows, prompt_column=args.prompt_column, completion_columns=args.completion_columns)
    config = {}
    if args.adapter is not None and (args.adapter / "objective.json").is_file():
        known = read_json_object(args.adapter / "objective.json")
        config = {field: known[field] for field in OBJECTIVE_FIELDS if field in known}
    config |= {field: value for field in [*_OBJECTIVE, *_SUPERVISED] if (value := getattr(args, field)) is not None}
    model = args.model or (None if args.adapter else demo_model().path)
    run = read_run(model, args.adapter, load_in_4bit=args.load_in_4bit)
    report = inspect_samples(
        run,
        rows,
        args.out,
        dataset_name=name,
        n=args.n,
        seed=args.seed,
        config=config,
        max_length=args.max_length,
        batch_size=args.batch_size,
        device=args.device,
    )
    for figure, value in summary(report["figures"]):
        logger.info("%-42s %s", figure, value)
    for entry in report["advice"]:
        logger.info("%s: %s", entry["level"], entry["text"])
    logger.info("Open %s", args.out / "index.html")
    return 0
