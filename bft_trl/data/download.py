"""Cached downloads from publishers and the Hub, at fixed commits."""

import hashlib
from pathlib import Path

import pandas as pd


def fetch(url: str, *, sha256: str | None = None) -> Path:
    """Downloads a file once, to `bft_trl/downloads` in the Hugging Face home folder, and returns its path.

    Args:
        url: address at the publisher, with a commit.
        sha256: expected SHA-256; None if it is not known.

    Raises OSError if the file cannot be downloaded, ValueError for another SHA-256.
    """
    import pooch
    from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE

    cache = Path(HF_HOME) / "bft_trl" / "downloads"
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{url.rsplit('/', 1)[-1]}"
    if HF_HUB_OFFLINE and not (cache / name).is_file():
        raise OSError(f"{url} is not in {cache}, and HF_HUB_OFFLINE forbids downloads.")
    pooch.retrieve(url, known_hash=sha256, fname=name, path=cache, progressbar=True)
    return cache / name


def hub_table(dataset: str, config: str | None, revision: str, *, split: str) -> pd.DataFrame:
    """Returns a split of a data set on the Hub, at the commit `revision`. Raises OSError if it cannot be loaded."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(dataset, config, split=split, revision=revision).to_pandas()
    except (ConnectionError, DatasetNotFoundError) as error:
        raise OSError(f"{dataset} cannot be loaded from the Hub ({str(error).splitlines()[0]}).") from error
