"""Selects a small, gene-disjoint part of a large interaction table, for a laptop.

    python examples/choose_pairs.py --train ggi_train.parquet --test ggi_valid.parquet --output_dir pairs

Writes train, valid and test.parquet (gene_a, gene_b, label) with equally many pairs of both labels; no gene is in two
files. The genes of a part are left when the gene with the fewest pairs (of its rarer label) is removed repeatedly.
With --all, all pairs are kept, and a tenth of the training genes, chosen at random, becomes the validation part.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from bft_trl.biology.pairs import read_pairs
from bft_trl.data.tables import write_parquet

logger = logging.getLogger(__name__)


def densest_genes(pairs: pd.DataFrame, size: int) -> list[str]:
    """Returns the `size` genes left after removing the gene with the lowest rarer-label degree repeatedly."""
    genes = sorted({*pairs["gene_a"], *pairs["gene_b"]})
    if len(genes) < size:
        raise ValueError(f"The table has {len(genes)} genes to choose from, fewer than {size}.")
    index = {gene: row for row, gene in enumerate(genes)}
    neighbors: list[list[tuple[int, int]]] = [[] for _ in genes]
    degree = np.zeros((len(genes), 2), dtype=int)
    columns = pairs["gene_a"].map(index), pairs["gene_b"].map(index), pairs["label"]
    for a, b, label in zip(*columns, strict=True):
        neighbors[a].append((b, label))
        neighbors[b].append((a, label))
        degree[[a, b], label] += 1
    left = np.ones(len(genes), dtype=bool)
    for _ in range(len(genes) - size):
        rarer = np.where(left, degree.min(1) * 10_000 + degree.sum(1), np.iinfo(int).max)
        removed = int(rarer.argmin())
        left[removed] = False
        for other, label in neighbors[removed]:
            degree[other, label] -= 1
    return [gene for gene, kept in zip(genes, left, strict=True) if kept]


def balance(pairs: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Returns equally many pairs of both labels; some of the more frequent one are dropped at random."""
    fewest = int(pairs["label"].value_counts().min())
    kept = [rng.choice(np.flatnonzero(pairs["label"] == label), fewest, replace=False) for label in (0, 1)]
    return pairs.iloc[np.sort(np.concatenate(kept))].reset_index(drop=True)


def split_genes(pairs: pd.DataFrame, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Returns the pairs within nine tenths of the genes ("train") and within the others ("valid")."""
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
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the three parquet files")
    parser.add_argument("--all", action="store_true", help="keep all pairs except those between two parts")
    parser.add_argument("--genes", type=int, nargs=3, default=(300, 90, 110), metavar="N", help="train, valid, test")
    parser.add_argument("--seed", type=int, default=0, help="seed of the selection")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    rng = np.random.default_rng(args.seed)
    train, test = read_pairs(args.train), read_pairs(args.test)
    if args.all:
        tested = {*test["gene_a"], *test["gene_b"]}
        shared = train["gene_a"].isin(tested) | train["gene_b"].isin(tested)
        logger.info("%d training pairs with a gene of the test pairs are dropped.", shared.sum())
        for part, chosen in (split_genes(train[~shared], rng) | {"test": test}).items():
            save(args.output_dir / f"{part}.parquet", chosen)
        return
    used: set[str] = set()
    for part, pairs, size in zip(
        ("test", "train", "valid"), (test, train, train), np.roll(args.genes, 1), strict=True
    ):
        free = pairs[~pairs["gene_a"].isin(used) & ~pairs["gene_b"].isin(used)]
        genes = set(densest_genes(free, size))
        used |= genes
        chosen = balance(free[free["gene_a"].isin(genes) & free["gene_b"].isin(genes)], rng)
        save(args.output_dir / f"{part}.parquet", chosen)


if __name__ == "__main__":
    main()
