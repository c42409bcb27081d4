"""Do the biology tasks find a planted signal, and none in null data? 200 simulations of each.

    python benchmarks/simulations.py

Writes simulations.csv, one row per simulation: the metric, its interval, the metric of the same fitted predictor on a
large new sample ("truth"), and the difference to the control (random vectors, the training mean). As in real data,
pairs share genes of different propensity to interact, and perturbations share a common response.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from bft_trl.biology.pairs import pair_features
from bft_trl.biology.predictors import fit, fold_rows, predict_unseen
from bft_trl.biology.task_metrics import auroc, bootstrap_p, gene_resamples, interval, pearson_delta
from bft_trl.comparison.statistics import ALPHA, cross_validated, paired_interval
from bft_trl.io import atomic_file

DIMENSION = 16
GENES = {"train": 120, "valid": 60, "test": 90}
PAIRS = {"train": 1200, "valid": 300, "test": 400}
PERTURBATIONS, RESPONDING = 25, 100
NEW = 4000
RESAMPLES = 1999


def interactions(rng: np.random.Generator, *, planted: bool) -> dict[str, float]:
    """AUROC of fitted classifiers on gene-disjoint parts; with `planted` the label depends on four dimensions."""
    parts = {part: _pairs(rng, GENES[part], PAIRS[part], planted=planted) for part in GENES}
    # New genes with few pairs each: the interval on the test part should contain this value.
    new = _pairs(rng, 2000, NEW, planted=planted)
    probabilities = {}
    for arm in ("vectors", "random"):
        values = {
            part: vectors if arm == "vectors" else rng.standard_normal(vectors.shape)
            for part, (vectors, *_) in parts.items()
        }
        values["new"] = new[0] if arm == "vectors" else rng.standard_normal(new[0].shape)
        features = {part: pair_features(values[part], *found[1:3]) for part, found in (parts | {"new": new}).items()}
        both = np.concatenate([features["test"], features["new"]])
        probabilities[arm] = fit(
            (features["train"], parts["train"][3]), (features["valid"], parts["valid"][3]), both, seed=0
        ).probabilities
    _, first, second, labels = parts["test"]
    weights = np.concatenate(list(gene_resamples(first, second, GENES["test"], rng=rng, n_resamples=RESAMPLES)))
    tested = {arm: found[: len(labels)] for arm, found in probabilities.items()}
    resampled = {arm: auroc(scores, labels, weights) for arm, scores in tested.items()}
    one = np.ones((1, len(labels)))
    value = float(auroc(tested["vectors"], labels, one)[0])
    found = interval(value, resampled["vectors"])
    # The usual interval: resample pairs as if they were independent.
    by_pairs = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=RESAMPLES).astype(float)
    naive = interval(value, auroc(tested["vectors"], labels, by_pairs))
    return {
        "value": value,
        "low": found.low,
        "high": found.high,
        "naive_low": naive.low,
        "naive_high": naive.high,
        "truth": float(auroc(probabilities["vectors"][len(labels) :], new[3], np.ones((1, NEW)))[0]),
        "difference": value - float(auroc(tested["random"], labels, one)[0]),
        "p": bootstrap_p(resampled["vectors"] - resampled["random"]),
    }


def _pairs(
    rng: np.random.Generator, n_genes: int, n_pairs: int, *, planted: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    vectors = rng.standard_normal((n_genes, DIMENSION))
    first, second = rng.integers(n_genes, size=(2, n_pairs))
    second = np.where(first == second, (second + 1) % n_genes, second)
    propensity = rng.standard_normal(n_genes)
    logit = propensity[first] + propensity[second]
    if planted:
        logit = logit + (vectors[first, :4] * vectors[second, :4]).sum(1)
    return vectors, first, second, (rng.random(n_pairs) < 1 / (1 + np.exp(-logit))).astype(int)


def perturbation(rng: np.random.Generator, *, planted: bool) -> dict[str, float]:
    """Delta-Pearson, leaving one perturbation out; with `planted` the response depends linearly on the vector."""
    total = PERTURBATIONS + NEW
    vectors = rng.standard_normal((total, DIMENSION))
    changes = rng.standard_normal(RESPONDING) * 0.5 + rng.standard_normal((total, RESPONDING))
    if planted:
        changes += vectors @ rng.standard_normal((DIMENSION, RESPONDING)) / 2
    seen, own = vectors[:PERTURBATIONS], changes[:PERTURBATIONS]
    folds = fold_rows(PERTURBATIONS, PERTURBATIONS, rng)
    predicted, _ = predict_unseen(seen, own, folds, rng=rng)
    everything = np.ones_like(own, dtype=bool)
    mean = (own.sum(0) - own) / (PERTURBATIONS - 1)
    ours, control = pearson_delta(predicted, own, everything), pearson_delta(mean, own, everything)
    found, _ = cross_validated(ours, n_train=PERTURBATIONS - 1)
    # The usual interval: as if the predictors of the perturbations were independent.
    naive = paired_interval(ours, rng=rng, n_resamples=RESAMPLES)
    new = np.arange(PERTURBATIONS, total)
    # One fold of new perturbations, predicted from the same training perturbations.
    guessed, _ = predict_unseen(vectors, changes, [new], rng=rng)
    truth = pearson_delta(guessed[new], changes[new], np.ones((NEW, RESPONDING), dtype=bool)).mean()
    return {
        "value": found.mean,
        "low": found.low,
        "high": found.high,
        "naive_low": naive.low,
        "naive_high": naive.high,
        "truth": float(truth),
        "difference": float((ours - control).mean()),
        "p": cross_validated(ours - control, n_train=PERTURBATIONS - 1)[1],
    }


TASKS = {"perturbation": perturbation, "interactions": interactions}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean metric, how often the interval contains the truth, and how often a gain was found, per task and kind."""
    table = table.assign(
        covered=(table["low"] <= table["truth"]) & (table["truth"] <= table["high"]),
        naive_covered=(table["naive_low"] <= table["truth"]) & (table["truth"] <= table["naive_high"]),
        found=(table["p"] < ALPHA) & (table["difference"] > 0),
        loss=(table["p"] < ALPHA) & (table["difference"] < 0),
    )
    return table.groupby(["task", "planted"])[
        ["value", "truth", "difference", "covered", "naive_covered", "found", "loss"]
    ].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200, help="of each (default: 200)")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="the others' rows stay")
    parser.add_argument("--output_path", type=Path, default=Path(__file__).with_name("simulations.csv"))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.output_path.exists():
        before = pd.read_csv(args.output_path)
        rows = before[~before["task"].isin(args.tasks)].to_dict("records")
    for task in (TASKS[name] for name in args.tasks):
        for planted in (False, True):
            for seed in tqdm(range(args.simulations), desc=f"{task.__name__}, {'planted' if planted else 'null'}"):
                found = task(np.random.default_rng(seed), planted=planted)
                rows.append({"task": task.__name__, "planted": planted, "seed": seed} | found)
            with atomic_file(args.output_path) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.5g")
    print(summary(pd.DataFrame(rows)).round(3).to_string())


if __name__ == "__main__":
    main()
