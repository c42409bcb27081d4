"""Data from publishers and the Hub: cached, and never silently different from what was downloaded first."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from bft_trl.data.tables import read_json_object
from bft_trl.io import write_text

logger = logging.getLogger(__name__)

# What every address gave at its first download, beside the files.
RECORD = "downloads.json"


def fetch(url: str, *, sha256: str | None = None, cache: Path | None = None) -> Path:
    """The file behind `url`, downloaded once, whole or not at all, and kept in `cache`.

    Args:
        url: address at the publisher; one that names a commit always gives the same bytes.
        sha256: what is known of it. None: what the first download gave is recorded, and asked of every later one.
        cache: folder; None for `bft_trl/downloads` in the Hugging Face home folder.

    Raises OSError where it cannot be reached (also offline), ValueError for other content than expected.
    """
    import pooch
    from huggingface_hub.constants import HF_HUB_OFFLINE

    cache = cache or _default_cache()
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{url.rsplit('/', 1)[-1]}"
    known = sha256 or _record(cache).get(url)
    if HF_HUB_OFFLINE and not (cache / name).is_file():
        raise OSError(f"{url} is not in {cache}, and HF_HUB_OFFLINE forbids a download.")
    if HF_HUB_OFFLINE and known is not None and _sha256(cache / name) != known:
        raise OSError(f"{cache / name} is damaged or was changed, and HF_HUB_OFFLINE forbids to download it anew.")
    try:
        # Into a temporary file beside it, renamed when its hash is right; a damaged file is fetched anew.
        pooch.retrieve(url, known_hash=known, fname=name, path=cache, progressbar=True)
    except ValueError as error:
        raise ValueError(f"{url}: not what was downloaded first ({error}). {_remedy(cache)}") from error
    if known is None:
        _add(cache, url, _sha256(cache / name))
    return cache / name


def hub_table(dataset: str, config: str | None, split: str, *, cache: Path | None = None) -> pd.DataFrame:
    """A split of a data set of the Hub, by the datasets library and from its cache.

    Its content is recorded at the first download and checked at every later one.
    Raises OSError where it cannot be reached, ValueError for other content than at the first download.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        table = load_dataset(dataset, config, split=split).to_pandas()
    except (ConnectionError, DatasetNotFoundError) as error:
        raise OSError(f"{dataset} cannot be loaded from the Hub ({str(error).splitlines()[0]}).") from error
    check_content(f"hub:{dataset}/{config or 'default'}/{split}", table, cache=cache)
    return table


def check_content(name: str, table: pd.DataFrame, *, cache: Path | None = None) -> None:
    """Records the content of `table` under `name`, or raises ValueError where another one is on record."""
    cache = cache or _default_cache()
    content, known = content_hash(table), _record(cache).get(name)
    if known is None:
        _add(cache, name, content)
    elif known != content:
        raise ValueError(f"{name}: not what was downloaded first (sha256 {content}, was {known}). {_remedy(cache)}")


def content_hash(table: pd.DataFrame) -> str:
    """SHA-256 of the rows as JSON: the same for any file format and any order of the rows."""
    rows = sorted(table.to_json(orient="records", lines=True, force_ascii=False).splitlines())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _default_cache() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "bft_trl" / "downloads"


def _record(cache: Path) -> dict[str, Any]:
    file = cache / RECORD
    try:
        return read_json_object(file) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(
            f"{error} It says what was downloaded first. Remove it if what is downloaded now may differ from that."
        ) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _add(cache: Path, name: str, sha256: str) -> None:
    logger.info("First download of %s: sha256 %s", name, sha256)
    write_text(cache / RECORD, json.dumps(_record(cache) | {name: sha256}, indent=2) + "\n")


def _remedy(cache: Path) -> str:
    return f"If the change is wanted, delete its line from {cache / RECORD}."
