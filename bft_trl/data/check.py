"""`bft-trl data check`: leakage of whole files into others, reported, and removed on request."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bft_trl.data.documents import read_documents
from bft_trl.data.evaluation_sets import PUBLISHED, load_evaluation_sets
from bft_trl.data.leakage import REASONS, find_leaks
from bft_trl.data.medical import SOURCES, load_questions
from bft_trl.data.tables import write_together
from bft_trl.io import check_folder

logger = logging.getLogger(__name__)


def check_leakage(train: Sequence[Path], against: Sequence[Path], *, drop: Path | None = None) -> pd.DataFrame:
    """Every way in which a row of `train` gives a row of `against` away: train, against, and [`find_leaks`]' columns.

    Args:
        train: files of training data, of any kind that [`read_documents`] knows.
        against: files of evaluation data, or names of what the tasks download: gene_sets_go, gene_sets_nest,
            gene_sets_msigdb, and the keys of [`bft_trl.data.medical.SOURCES`].
        drop: folder for each training file without the rows that leak, as `<name>.parquet`, and for `leaks.csv`.

    Raises FileNotFoundError or ValueError for files that cannot be used, before anything is written.
    """
    if drop is not None and len({path.stem for path in train}) < len(train):
        raise ValueError(f"`train`: two files of one name cannot both go into {drop}.")
    if drop is not None and drop.resolve() in {path.parent.resolve() for path in train}:
        raise ValueError(f"`drop={str(drop)!r}` holds a training file, which would be written over.")
    if drop is not None:
        check_folder(drop, name="drop")
    tests = [(path, _evaluation_documents(path)) for path in against]
    found = []
    kept = {}
    for path in train:
        table, documents = read_documents(path)
        leaked: set[int] = set()
        for test_path, test in tests:
            leaks = find_leaks(documents, test)
            leaked |= set(leaks["train_row"])
            counts = leaks.groupby("reason")["test_row"].nunique().reindex(REASONS, fill_value=0)
            logger.info(
                "%s against %s: %d of %d training rows leak %d of %d (%s)",
                path,
                test_path,
                leaks["train_row"].nunique(),
                len(documents),
                leaks["test_row"].nunique(),
                len(test),
                ", ".join(f"{count} by {reason}" for reason, count in counts.items()),
            )
            found.append(leaks.assign(train=path.name, against=test_path.name))
        kept[path.stem] = table.drop(index=table.index[sorted(leaked)]).reset_index(drop=True)
        if drop is not None and kept[path.stem].empty:
            raise ValueError(f"{path}: every row leaks; nothing would be left.")
    report = pd.concat(found, ignore_index=True)
    if drop is not None:
        tables = {drop / f"{name}.parquet": table for name, table in kept.items()}
        write_together({drop / "leaks.csv": report.to_csv(index=False), **tables})
        for path, table in tables.items():
            logger.info("%s: %d rows kept", path, len(table))
    return report


def _evaluation_documents(path: Path) -> pd.DataFrame:
    name = str(path)
    if path.exists():
        return read_documents(path)[1]
    if name in {f"gene_sets_{key}" for key in PUBLISHED}:
        return load_evaluation_sets(name.removeprefix("gene_sets_"))[["id", "name", "genes"]]
    if name in SOURCES:
        questions = load_questions(name, drop_unanswered=True)
        body = (questions["context"] + " " + questions["question"]).str.strip()
        return pd.DataFrame({"id": questions["id"], "text": questions["question"], "body": body})
    return read_documents(path)[1]  # says that there is no such file
