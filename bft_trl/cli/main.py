"""`bft-trl`: parses the command line, calls one function, and logs where the results are."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

from bft_trl.cli.biology import add_biology_commands
from bft_trl.cli.data import add_data_commands
from bft_trl.cli.evaluation import add_evaluation_commands
from bft_trl.cli.inspection import add_inspection_commands
from bft_trl.cli.study import add_study_command
from bft_trl.cli.train import add_train_command, reject
from bft_trl.io import lock

# The extra of pyproject.toml that the commands of a module need.
EXTRAS = {
    "train": "examples",
    "data": "data",
    "inspection": "eval",
    "evaluation": "eval",
    "study": "eval",
    "biology": "bio",
}
# Their warnings need no action: missing optional kernels, and how lm-eval is called by us.
QUIET = (
    *("bitsandbytes.backends", "torchao", "transformers.integrations"),
    *("lm_eval.api.task", "lm_eval.evaluator", "lm_eval.models.huggingface"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 1 if a check found something, 2 for bad input, 130 after an interrupt."""
    _set_up_logging()
    parser = _parser()
    args, unknown = parser.parse_known_args(normalize(sys.argv[1:] if argv is None else argv))
    if unknown:
        reject(parser, unknown, vars(args))
    names = [name for name in ("output_dir", "output_path") if getattr(args, name, None) is not None]
    try:
        with lock(getattr(args, names[0]), name=names[0]) if names else nullcontext():
            return args.run(args)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:  # ImportError: a missing extra
        extra = EXTRAS[args.run.__module__.rpartition(".")[2]]
        remedy = f" (pip install -e '.[{extra}]')" if isinstance(error, ImportError) and error.name else ""
        sys.stderr.write(f"bft-trl: error: {error}{remedy}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nbft-trl: stopped.\n")
        return 130


def normalize(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with underscores for hyphens in the names of flags: `--output-dir` is `--output_dir`."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--") and len(name) > 2:
            name = "--" + name[2:].replace("-", "_")
            # argparse writes the negation of a flag with a hyphen: `--no-load_in_4bit`.
            name = f"--no-{name[5:]}" if name.startswith("--no_") else name
        words.append(name + equals + value)
    return words


def _set_up_logging() -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("bft_trl").setLevel(logging.INFO)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(?!bft_trl)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bft-trl", description="Balanced Fine-Tuning for TRL", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train_command(commands)
    add_data_commands(commands)
    add_inspection_commands(commands)
    add_evaluation_commands(commands)
    add_study_command(commands)
    add_biology_commands(commands)
    return parser
