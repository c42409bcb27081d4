"""Does the 95 % interval over seeds and documents contain the true difference of two methods? Simulated studies.

    python benchmarks/seeds.py

Two methods with a few seeds each answer the same documents. A score is the sum of normal effects of the document
(sd 1), of the method on the document (sd 0.5), of the seed, and of noise; binary scores are 1 where it exceeds half
of its sd. `ratio`: variance of the mean difference by seeds over that by documents, before the threshold. `unequal`:
the seeds of the first method have three times the sd of the others. Of each setting there are 500 studies without a
difference and 500 with one of four standard errors.

Writes seeds.csv, one row per setting and method: how often the interval contains the true difference, its mean width,
how often 0 is outside without a difference (`false_positives`), and how often it is below the interval with one
(`power`).
"""

import argparse
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm
from tqdm import tqdm

from bft_trl.comparison.statistics import Interval, paired_interval, seeds_interval
from bft_trl.io import atomic_file

RESAMPLES = 999
METHOD_SD, CUT = 0.5, 0.5
RATIOS = (0.0, 0.3, 1.0, 3.0, 30.0)


class Setting(NamedTuple):
    """A kind of study."""

    scores: str
    ratio: float
    seeds: int = 3
    documents: int = 100
    noise: float = 0.5
    unequal: bool = False


CASES: list[dict[str, Any]] = [
    *({"documents": documents} for documents in (60, 100, 400)),
    {"noise": 1.0},
    {"unequal": True},
    {"seeds": 2},
    {"seeds": 5},
]
SETTINGS = [
    Setting(scores, ratio, **case) for case in CASES for scores in ("continuous", "binary") for ratio in RATIOS
]


def study(setting: Setting, rng: np.random.Generator, *, planted: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """The scores of two methods, (N, S), and the true difference."""
    by_documents = 2 * (METHOD_SD**2 + setting.noise**2 / setting.seeds) / setting.documents
    seed_sd = np.sqrt(setting.ratio * by_documents * setting.seeds / 2)
    effect = 4 * np.sqrt(by_documents * (1 + setting.ratio)) if planted else 0.0
    shape = (setting.documents, setting.seeds)
    documents = rng.standard_normal((setting.documents, 1))
    arms, means = [], []
    for mean, sd in ((effect, seed_sd * (3 if setting.unequal else 1)), (0.0, seed_sd)):
        scores = mean + documents + METHOD_SD * rng.standard_normal((setting.documents, 1))
        scores = scores + sd * rng.standard_normal(setting.seeds) + setting.noise * rng.standard_normal(shape)
        if setting.scores == "binary":
            total = np.sqrt(1 + METHOD_SD**2 + sd**2 + setting.noise**2)
            scores, mean = (scores > CUT * total).astype(float), norm.sf(CUT - mean / total)
        arms.append(scores)
        means.append(mean)
    return arms[0], arms[1], float(means[0] - means[1])


def uncorrected(a: np.ndarray, b: np.ndarray, *, rng: np.random.Generator, n_resamples: int) -> Interval:
    """The percentile interval of resampled seeds and documents."""
    rows = rng.integers(len(a), size=(n_resamples, len(a))) + len(a) * np.arange(n_resamples)[:, None]
    counts = np.bincount(rows.ravel(), minlength=rows.size).reshape(rows.shape).astype(float)
    means = np.zeros(n_resamples)
    for scores in (a, -b):
        by_seed = counts @ scores / len(a)
        seeds = rng.integers(scores.shape[1], size=by_seed.shape)
        means += np.take_along_axis(by_seed, seeds, 1).mean(1)
    return Interval(float(a.mean() - b.mean()), *map(float, np.quantile(means, (0.025, 0.975))))


METHODS = {
    "documents only": lambda a, b, **options: paired_interval(a.mean(1) - b.mean(1), **options),
    "hierarchical, uncorrected": uncorrected,
    "hierarchical, corrected": lambda a, b, **options: seeds_interval(a, b, **options)[0],
}


def simulate(setting: Setting, n_studies: int) -> list[dict[str, Any]]:
    """One row per method."""
    studies = []
    for number, planted in itertools.product(range(n_studies), (False, True)):
        rng = np.random.default_rng([SETTINGS.index(setting), number, planted])
        a, b, truth = study(setting, rng, planted=planted)
        for name, method in METHODS.items():
            _, low, high = method(a, b, rng=rng, n_resamples=RESAMPLES)
            entry = {"method": name, "coverage": low <= truth <= high, "width": high - low}
            # NaN in the other column is left out of its mean.
            studies.append(entry | ({"power": low > 0} if planted else {"false_positives": not low <= 0 <= high}))
    table = pd.DataFrame(studies).astype({"power": float, "false_positives": float})
    means = table.groupby("method", sort=False).mean().reset_index()
    return [setting._asdict() | row for row in means.to_dict("records")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500, help="of each setting and kind (default: 500)")
    parser.add_argument("--output_path", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    table = pd.DataFrame([row for setting in tqdm(SETTINGS) for row in simulate(setting, args.studies)])
    with atomic_file(args.output_path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4g")
    keys = ["seeds", "documents", "noise", "unequal", "scores", "method"]
    summary = table.groupby(keys, sort=False)["coverage"].agg(["min", "max"])
    print(summary.join(table.groupby(keys)[["false_positives", "power"]].mean()).round(3).to_string())


if __name__ == "__main__":
    main()
