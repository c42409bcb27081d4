"""`bft-trl study`: reads the file, checks it, runs it, and logs where the result is."""

import argparse
import logging
import signal
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def add_study_command(commands: Any) -> None:
    """Adds `study` to the subcommands of a parser."""
    parser = commands.add_parser(
        "study",
        help="train and evaluate a grid of objectives, and compare them with SFT",
        usage="bft-trl study [status] FILE [options]",
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="+", metavar="FILE", help="YAML file, see examples/studies; 'status' before it")
    # `main` would lock `output_dir`, and `status` looks at a study that is running.
    parser.add_argument(
        "--output_dir", dest="folder", type=Path, help="folder for the runs and the page (default: outputs/NAME)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes at a time (default: one per GPU, else per CPU)"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the plan with estimated time and disk, and stop")
    parser.add_argument(
        "--allow_leaks", action="store_true", help="continue although evaluation data is in the training data"
    )
    parser.add_argument("--keep_adapters", action="store_true", help="keep the adapters of tuning runs")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--resamples", type=int, default=9999, help="bootstrap samples (default: 9999)")
    parser.set_defaults(run=_study)


def _study(args: argparse.Namespace) -> int:
    from bft_trl.io import lock
    from bft_trl.study.check import check_study
    from bft_trl.study.execution import default_jobs, run_steps
    from bft_trl.study.records import Records
    from bft_trl.study.report import write_report
    from bft_trl.study.status import log_plan, log_status
    from bft_trl.study.study_file import read_study

    *command, file = args.words
    if command not in ([], ["status"]):
        raise ValueError(f"`study {' '.join(args.words)}`: use `bft-trl study FILE` or `bft-trl study status FILE`.")
    problems: list[str] = []
    study, path = (
        read_study(Path(file), None if command else problems),
        args.folder or Path("outputs") / Path(file).stem,
    )
    jobs = default_jobs() if args.jobs is None else args.jobs
    if jobs < 1 or args.resamples < 99:
        raise ValueError(f"`jobs={jobs}` must be 1 or more, `resamples={args.resamples}` 99 or more.")
    if command:
        steps = log_status(study, path, jobs=jobs)
        try:
            result = write_report(steps, Records(path), seed=args.seed, n_resamples=args.resamples)
        except ValueError as error:  # nothing to compare yet
            logger.info("%s", error)
        else:
            logger.info("So far: %s Open %s", result["headline"], path / "index.html")
        return 0
    with lock(path):
        steps = check_study(study, path, allow_leaks=args.allow_leaks, problems=problems)
        records = Records(path)
        log_plan(steps, records, jobs=jobs)
        if args.dry_run:
            return 0
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the processes, as an interrupt does
        records.retry_failed()
        run_steps(steps, records, jobs=jobs, keep_adapters=args.keep_adapters)
        result = write_report(steps, records, seed=args.seed, n_resamples=args.resamples)
    for entry in result["failed"]:
        logger.warning("Failed: %s of %s: %s", entry["kind"], entry["run"], entry["error"])
    logger.info("%s Open %s", result["headline"], path / "index.html")
    return int(bool(result["failed"]))
