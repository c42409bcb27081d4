"""Gene sets for evaluation and the background names for percentiles: from a local folder or from their publishers."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bft_trl.data.download import fetch
from bft_trl.data.tables import READERS, numbered_lines, read_gene_sets, read_table

_GENEAGENT = "https://raw.githubusercontent.com/ncbi-nlp/GeneAgent"
_HU = "https://raw.githubusercontent.com/idekerlab/llm_evaluation_for_gene_set_interpretation"
# GeneAgent's selections (Nature Methods 2025, doi 10.1038/s41592-025-02748-6) at fixed commits of its repository.
PUBLISHED: Mapping[str, str] = {
    "go": f"{_GENEAGENT}/88fd1adb40dce9545bde5b904ef3a628c09d747c/Datasets/Gene%20ontology/GO_terms.csv",
    "nest": f"{_GENEAGENT}/2d87ab3def2d43052418c1108cbae126b41fb068/Datasets/NeST/NeST.tsv",
    "msigdb": f"{_GENEAGENT}/eb2dd34250d408505f0a2cb5e0bed1167354e598/Datasets/MsigDB/MsigDB.csv",
}
# GO biological processes among which Hu et al. and GeneAgent rank.
BACKGROUND = f"{_HU}/81ee6ab0a0ac160acd9661fbe7348d35e6017a07/data/go_terms.csv"


def load_evaluation_sets(name: str, *, data_dir: str | Path | None = None) -> pd.DataFrame:
    """Loads gene sets for evaluation.

    Args:
        name: "go", "nest" or "msigdb".
        data_dir: folder with `gene_sets_<name>.parquet`; None for a cached download.

    Returns one row per set: id, name, genes (a list) and source (`name`). Raises OSError if the data cannot be loaded,
    ValueError if they are invalid.
    """
    if name not in PUBLISHED:
        raise ValueError(f"`name={name!r}` is not known: choose one of {', '.join(PUBLISHED)}.")
    path = Path(data_dir) / f"gene_sets_{name}.parquet" if data_dir is not None else fetch(PUBLISHED[name])
    return read_gene_sets(path)[["id", "name", "genes"]].assign(source=name)


def load_gene_names(data_dir: str | Path | None) -> dict[str, str]:
    """Returns the full name of each gene by symbol, from `gene_names.parquet` or `.tsv` (symbol, name) in `data_dir`.

    HGNC's complete set has these columns. Empty without `data_dir` or without the file.
    """
    paths = [] if data_dir is None else [Path(data_dir) / f"gene_names{suffix}" for suffix in (".parquet", ".tsv")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    table = read_table(path, ["symbol", "name"]).dropna(subset=["symbol", "name"])
    return dict(zip(table["symbol"].astype(str), table["name"].astype(str), strict=True))


def load_background(path: str | Path | None = None, *, data_dir: str | Path | None = None) -> list[str]:
    """Loads the names among which a percentile ranks.

    Args:
        path: table with a column `name`, or a text file with one name per line; None for
            `go_background_terms.parquet` in `data_dir`, or for the list of Hu et al.
        data_dir: folder with evaluation data; None for a cached download.

    Returns each name once, in order. Raises OSError if there is no such file, ValueError if it has no names.
    """
    if path is None:
        path = Path(data_dir) / "go_background_terms.parquet" if data_dir is not None else fetch(BACKGROUND)
        if not path.is_file():
            raise FileNotFoundError(
                f'{path}: no such file. Set `background` to another file, or to "none" to leave percentiles out.'
            )
    path = Path(path)
    if path.suffix in READERS:
        table = read_table(path)
        column = next((column for column in ("name", "Term_Description") if column in table), None)  # Hu et al.'s
        if column is None:
            raise ValueError(f"{path}: has no column 'name'; its columns are {list(table.columns)}.")
        names = table[column].tolist()
    else:
        names = [line for _, line in numbered_lines(path)]
    unique = list(dict.fromkeys(name.strip() for name in names if isinstance(name, str) and name.strip()))
    if not unique:
        raise ValueError(f"{path}: has no names.")
    return unique
