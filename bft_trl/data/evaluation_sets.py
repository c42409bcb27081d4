"""Gene sets to evaluate on, and the background names to rank among: from a local folder or from their publishers."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bft_trl.data.download import content_hash, fetch
from bft_trl.data.lines import numbered_lines
from bft_trl.data.tables import READERS, read_gene_sets, read_table

_GENEAGENT = "https://raw.githubusercontent.com/ncbi-nlp/GeneAgent"
_HU = "https://raw.githubusercontent.com/idekerlab/llm_evaluation_for_gene_set_interpretation"
# GeneAgent's selections (Nature Methods 2025, doi 10.1038/s41592-025-02748-6) at fixed commits of its repository.
PUBLISHED: Mapping[str, str] = {
    "go": f"{_GENEAGENT}/88fd1adb40dce9545bde5b904ef3a628c09d747c/Datasets/Gene%20ontology/GO_terms.csv",
    "nest": f"{_GENEAGENT}/2d87ab3def2d43052418c1108cbae126b41fb068/Datasets/NeST/NeST.tsv",
    "msigdb": f"{_GENEAGENT}/eb2dd34250d408505f0a2cb5e0bed1167354e598/Datasets/MsigDB/MsigDB.csv",
}
# Of the sets as `content_hash` gives it (columns id, name, genes), where somebody has seen them.
KNOWN: Mapping[str, str] = {"go": "3e2761648c9029ee1eff89e53b8f1c3b0d461b7c6ef8c0aff29f1748fb39dc20"}
# The list of GO biological processes that Hu et al. (and GeneAgent) rank among.
BACKGROUND = f"{_HU}/81ee6ab0a0ac160acd9661fbe7348d35e6017a07/data/go_terms.csv"


def load_evaluation_sets(name: str, *, data_dir: str | Path | None = None) -> pd.DataFrame:
    """Gene sets to name, one row each: id, name, genes (a list) and source (`name`).

    Args:
        name: "go", "nest" or "msigdb".
        data_dir: folder with `gene_sets_<name>.parquet`; None downloads from the publisher, once.

    Raises FileNotFoundError or another OSError where the data are not to be had, ValueError where they are broken.
    """
    if name not in PUBLISHED:
        raise ValueError(f"`name={name!r}` is not known: choose one of {', '.join(PUBLISHED)}.")
    if data_dir is not None:
        sets = read_gene_sets(Path(data_dir) / f"gene_sets_{name}.parquet")
    else:
        sets = read_gene_sets(fetch(PUBLISHED[name]))
        content = content_hash(sets[["id", "name", "genes"]])
        if content != KNOWN.get(name, content):
            raise ValueError(f"{PUBLISHED[name]}: other gene sets than expected (sha256 {content}).")
    return sets[["id", "name", "genes"]].assign(source=name)


def load_background(path: str | Path | None = None, *, data_dir: str | Path | None = None) -> list[str]:
    """Background names, each once, in their order.

    Args:
        path: table with a column `name`, or a text file of one name a line; None takes `go_background_terms.parquet`
            of `data_dir`, or the list of Hu et al. from its publisher.
        data_dir: folder of evaluation data.

    Raises FileNotFoundError or another OSError where there is no such file, ValueError where it holds no names.
    """
    if path is None:
        path = Path(data_dir) / "go_background_terms.parquet" if data_dir is not None else fetch(BACKGROUND)
        if not path.is_file():
            raise FileNotFoundError(
                f'{path}: no such file. Name other names with `background`, or "none" to leave percentiles out.'
            )
    path = Path(path)
    if path.suffix in READERS:
        # The list of Hu et al. has the names in `Term_Description`.
        table = read_table(path, [])
        column = "name" if "name" in table.columns else "Term_Description"
        if column not in table.columns:
            raise ValueError(f"{path}: has no column 'name'; its columns are {list(table.columns)}.")
        names = table[column].tolist()
    else:
        names = [line for _, line in numbered_lines(path)]
    found = list(dict.fromkeys(name.strip() for name in names if isinstance(name, str) and name.strip()))
    if not found:
        raise ValueError(f"{path}: holds no name.")
    return found
