"""Few genes with many labelled pairs: a small, gene-disjoint version of a large interaction table, for a laptop.

    python examples/choose_pairs.py --train ggi_train.parquet --test ggi_valid.parquet --output_dir pairs

Writes train, valid and test.parquet (gene_a, gene_b, label) with as many pairs of either label and no gene in two of
them. The genes of a part are what is left when the gene with the fewest pairs (of its rarer label) is taken out again
and again. With --all nothing is thinned out: a tenth of the training genes, at random, becomes the validation part.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from bft_trl.biology.pairs import read_pairs
from bft_trl.data.tables import write_parquet

logger = logging.getLogger(__name__)


def densest(pairs: pd.DataFrame, size: int) -> list[str]:
    """The `size` genes that peeling by the rarer label's degree leaves; ties go by symbol."""
    genes = sorted({*pairs["gene_a"], *pairs["gene_b"]})
    if len(genes) < size:
        raise ValueError(f"The table has {len(genes)} genes that are free to choose, fewer than {size}.")
    index = {gene: row for row, gene in enumerate(genes)}
    first, second = pairs["gene_a"].map(index).to_numpy(), pairs["gene_b"].map(index).to_numpy()
    label = pairs["label"].to_numpy()
    neighbours: list[list[tuple[int, int]]] = [[] for _ in genes]
    degree = np.zeros((len(genes), 2), dtype=int)
    for a, b, positive in zip(first, second, label, strict=True):
        neighbours[a].append((b, positive))
        neighbours[b].append((a, positive))
        degree[[a, b], positive] += 1
    left = np.ones(len(genes), dtype=bool)
    for _ in range(len(genes) - size):
        rarer = np.where(left, degree.min(1) * 10_000 + degree.sum(1), np.iinfo(int).max)
        out = int(rarer.argmin())
        left[out] = False
        for other, positive in neighbours[out]:
            degree[other, positive] -= 1
    return [gene for gene, kept in zip(genes, left, strict=True) if kept]


def balanced(pairs: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """As many pairs of either label: some of the more frequent one are left out at random."""
    fewest = int(pairs["label"].value_counts().min())
    kept = [rng.choice(np.flatnonzero(pairs["label"] == label), fewest, replace=False) for label in (0, 1)]
    return pairs.iloc[np.sort(np.concatenate(kept))].reset_index(drop=True)


def split_genes(pairs: pd.DataFrame, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Training and validation pairs without a gene in common: within nine tenths of the genes, and the rest."""
    genes = np.array(sorted({*pairs["gene_a"], *pairs["gene_b"]}))
    held_out = set(rng.choice(genes, len(genes) // 10, replace=False))
    inside = pairs["gene_a"].isin(held_out).astype(int) + pairs["gene_b"].isin(held_out)
    parts = {"train": pairs[inside == 0].reset_index(drop=True), "valid": pairs[inside == 2].reset_index(drop=True)}
    for part, chosen in parts.items():
        if chosen["label"].nunique() < 2:
            raise ValueError(f"The table is too small: {len(chosen)} pairs for the part {part!r}, not of both labels.")
    return parts


def save(path: Path, pairs: pd.DataFrame) -> None:
    write_parquet(path, pairs)
    n_genes = len({*pairs["gene_a"], *pairs["gene_b"]})
    logger.info("%s: %d pairs of %d genes, %.3f positive", path.stem, len(pairs), n_genes, pairs["label"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="pairs for the training and the validation part")
    parser.add_argument("--test", type=Path, required=True, help="pairs for the test part")
    parser.add_argument("--all", action="store_true", help="keep all pairs but those between two parts")
    parser.add_argument(
        "--genes", type=int, nargs=3, default=(300, 90, 110), metavar="N", help="of train, valid and test"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for train.parquet, valid.parquet, test.parquet"
    )
    parser.add_argument("--seed", type=int, default=0, help="which pairs of the more frequent label go")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    rng = np.random.default_rng(args.seed)
    tables = {"train": read_pairs(args.train).pairs, "test": read_pairs(args.test).pairs}
    for part, pairs in tables.items():
        if pairs["label"].nunique() < 2:
            parser.error(f"--{part}: all pairs have the same label")
    if min(args.genes) < 2:
        parser.error(f"--genes: {min(args.genes)} is too few for a pair")
    if args.all:
        tested = {*tables["test"]["gene_a"], *tables["test"]["gene_b"]}
        seen = tables["train"]["gene_a"].isin(tested) | tables["train"]["gene_b"].isin(tested)
        if seen.any():
            logger.warning("%d training pairs with a gene of the test pairs are left out.", seen.sum())
        tables["train"] = tables["train"][~seen]
        for part, chosen in split_genes(tables["train"], rng).items():
            save(args.out / f"{part}.parquet", chosen)
        save(args.out / "test.parquet", tables["test"])
        return
    taken: set[str] = set()
    for part, size in zip(("test", "train", "valid"), (args.genes[2], *args.genes[:2]), strict=True):
        pairs = tables["test" if part == "test" else "train"]
        free = pairs[~pairs["gene_a"].isin(taken) & ~pairs["gene_b"].isin(taken)]
        genes = set(densest(free, size))
        taken |= genes
        chosen = balanced(free[free["gene_a"].isin(genes) & free["gene_b"].isin(genes)], rng)
        save(args.out / f"{part}.parquet", chosen)


if __name__ == "__main__":
    main()
