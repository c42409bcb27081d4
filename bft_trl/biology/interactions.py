"""Gene-gene interactions: predict labeled pairs from gene vectors, and compare with controls."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology import task_metrics
from bft_trl.biology.controls import PairInput, pair_inputs
from bft_trl.biology.pairs import read_pairs, share_a_term
from bft_trl.biology.predictors import fit
from bft_trl.biology.profiles import file_hash
from bft_trl.biology.results import TaskResults, check_options, write_results
from bft_trl.biology.task_metrics import RANKING, Estimate, interval
from bft_trl.biology.vectors import Vectors, covered, read_named_vectors
from bft_trl.data.gene_sets import shipped_sets
from bft_trl.data.tables import read_gene_sets, write_parquet

logger = logging.getLogger(__name__)

CONTROLS = ("random", "shuffled", "degree", "go")
PAIR = ["gene_a", "gene_b", "label"]


class Scored(NamedTuple):
    """Predicted probabilities of the test pairs for each vector set and control."""

    test: pd.DataFrame  # gene_a, gene_b, label, no_shared_term
    probabilities: dict[str, np.ndarray]  # (draws, N) by name: several draws of random and shuffled vectors
    details: dict[str, dict[str, Any]]  # chosen classifier, AUROC of each on the validation pairs
    coverage: dict[str, float]


def run_interactions(
    train: Path,
    valid: Path,
    test: Path,
    vectors: Sequence[Path],
    output_dir: Path,
    *,
    gene_sets: Path | None = None,
    training_sets: Path | None = None,
    baseline: str = "random",
    seed: int = 0,
    n_resamples: int = 9999,
) -> pd.DataFrame:
    """Fits classifiers on each set of vectors and on the controls, compares them, and writes the results.

    Args:
        train, valid, test: tables of gene_a, gene_b and label; see [`read_pairs`]. `valid` chooses the classifier.
        vectors: tables of gene and vector; the file's stem is the name.
        output_dir: folder for the results; see [`write_results`]. Its predictions are used again if the inputs agree.
        gene_sets: of the control "go"; None takes those that ship.
        training_sets: gene sets of the adapter's training data, or its training rows; None takes those that ship.
        baseline: vector set or control that the page compares with.
        seed: of the classifiers, the random vectors and the bootstrap.
        n_resamples: of the bootstrap over genes.

    Returns the metrics (model, metric, value, low, high). Raises ValueError or FileNotFoundError for bad input,
    before anything is fitted.
    """
    names = [*(path.stem for path in vectors), *CONTROLS]
    check_options(output_dir, "interactions", names, baseline)
    if n_resamples < 99:
        raise ValueError(f"`n_resamples={n_resamples}` must be at least 99.")
    named = read_named_vectors(vectors, reserved=CONTROLS)
    sets = shipped_sets() if gene_sets is None else read_gene_sets(gene_sets)
    learned = shipped_sets("train") if training_sets is None else read_gene_sets(training_sets)
    splits = {"train": train, "valid": valid, "test": test}
    settings = {f"{name}_hash": file_hash(path) for name, path in splits.items()}
    pairs = {name: read_pairs(path) for name, path in splits.items()}
    scored = score_interactions(pairs, named, output_dir, sets=sets, training_sets=learned, seed=seed)
    return write_results(_results(scored, settings, seed, n_resamples), output_dir, baseline=baseline)


def score_interactions(
    pairs: Mapping[str, pd.DataFrame],
    named: Mapping[str, Vectors],
    output_dir: Path,
    *,
    sets: pd.DataFrame,
    training_sets: pd.DataFrame,
    seed: int = 0,
) -> Scored:
    """Fits the classifiers and predicts the test pairs for which every vector set has both genes.

    `pairs` are train, valid and test; other arguments as for [`run_interactions`], as tables instead of files.
    """
    genes = {name: {*split["gene_a"], *split["gene_b"]} for name, split in pairs.items()}
    for one, other in combinations(genes, 2):
        if genes[one] & genes[other]:
            logger.warning(
                "%s and %s share genes, which a classifier can memorize. Compare with the control 'degree'.",
                one,
                other,
            )
    pairs, coverage = _covered(pairs, named)
    test = pairs["test"].assign(no_shared_term=~share_a_term(pairs["test"], training_sets))
    logger.info("%d of %d test pairs share no training set.", test["no_shared_term"].sum(), len(test))
    probabilities: dict[str, np.ndarray] = {}
    details: dict[str, dict[str, Any]] = {}
    progress = tqdm(pair_inputs(pairs, named, sets, seed=seed).items(), desc="Interactions", unit="model")
    for name, given in progress:
        progress.set_postfix_str(name)
        file = output_dir / "predictions" / f"{name}.parquet"
        probabilities[name], details[name] = _predictions(file, given, pairs, seed=seed)
    return Scored(test, probabilities, details, coverage)


def _results(scored: Scored, settings: Mapping[str, Any], seed: int, n_resamples: int) -> TaskResults:
    """Metrics with intervals over genes, on all test pairs and on those of no training set ("_no_shared_term")."""
    tables = [
        _scores(draw, scored.test).assign(model=name, seed=seed + number)
        for name, draws in scored.probabilities.items()
        for number, draw in enumerate(draws)
    ]
    scores = pd.concat(tables, ignore_index=True)
    resampled = _resampled(scored, np.random.default_rng(seed), n_resamples)
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in scored.probabilities}
    for (name, metric), value in scores.groupby(["model", "metric"], sort=False)["score"].mean().items():
        estimates[name][metric] = interval(value, resampled[name, metric])
    test = scored.test

    def compare(metric: str, one: str, other: str) -> dict[str, float]:
        difference = resampled[one, metric] - resampled[other, metric]
        found = interval(estimates[one][metric].value - estimates[other][metric].value, difference)
        p = task_metrics.bootstrap_p(difference)
        return {"difference": found.value, "low": found.low, "high": found.high, "p": p, "n": len(test)}

    sizes = {"n_test": len(test), "n_no_shared_term": int(test["no_shared_term"].sum())}
    return TaskResults(
        task="interactions",
        over="genes",
        metrics=list(RANKING),
        scores=scores,
        estimates=estimates,
        compare=compare,
        coverage=scored.coverage,
        settings={**settings, **sizes, "seed": seed},
        details=scored.details,
        n_resamples=n_resamples,
    )


def _predictions(
    file: Path, given: PairInput, pairs: Mapping[str, pd.DataFrame], *, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Probabilities (draws, N) and details, from `file` if it was made from the same input."""
    tables = "".join(split[PAIR].to_csv(index=False) for split in pairs.values())
    settings = f"{tables} {seed} {version('scikit-learn')}".encode()
    key, test = hashlib.sha256(given.content + settings).hexdigest()[:16], pairs["test"][PAIR]
    table = pd.read_parquet(file) if file.is_file() else test
    if table.attrs.get("key") != key:
        labels = {name: split["label"].to_numpy() for name, split in pairs.items()}
        fits = []
        for draw in given.draws:
            train, valid = ((draw(pairs[name]), labels[name]) for name in ("train", "valid"))
            fits.append(fit(train, valid, draw(test), seed=seed))
        table = pd.concat([test.assign(draw=n, probability=found.probabilities) for n, found in enumerate(fits)])
        table.attrs = {"key": key, "chosen": fits[0].chosen, "validation": fits[0].validation}
        write_parquet(file, table)
    details = {name: table.attrs[name] for name in ("chosen", "validation")}
    return table["probability"].to_numpy().reshape(len(given.draws), len(test)), details


def _scores(probabilities: np.ndarray, test: pd.DataFrame) -> pd.DataFrame:
    """metric, unit, score of one draw."""
    labels, units = test["label"].to_numpy(), (test["gene_a"] + " " + test["gene_b"]).to_numpy()
    tables = []
    for suffix, some in _subsets(test).items():
        positive = units[some][labels[some] == 1]
        for metric, values in task_metrics.ranking_by_positive(probabilities[some], labels[some]).items():
            tables.append(pd.DataFrame({"metric": metric + suffix, "unit": positive, "score": values}))
    return pd.concat(tables, ignore_index=True).dropna()


def _resampled(scored: Scored, rng: np.random.Generator, n_resamples: int) -> dict[tuple[str, str], np.ndarray]:
    """Values (R,) by name and metric in bootstrap samples of the genes, the same ones for all names."""
    test = scored.test
    genes = {gene: row for row, gene in enumerate(sorted({*test["gene_a"], *test["gene_b"]}))}
    first, second = (test[end].map(genes).to_numpy() for end in ("gene_a", "gene_b"))
    labels = test["label"].to_numpy()
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    with tqdm(total=n_resamples, desc="Bootstrap over genes", unit="resample") as progress:
        for weights in task_metrics.gene_resamples(first, second, len(genes), rng=rng, n_resamples=n_resamples):
            for metric, ranking in RANKING.items():
                for suffix, some in _subsets(test).items():
                    for name, draws in scored.probabilities.items():
                        values = [ranking(draw[some], labels[some], weights[:, some]) for draw in draws]
                        found.setdefault((name, metric + suffix), []).append(np.mean(values, axis=0))
            progress.update(len(weights))
    return {key: np.concatenate(values) for key, values in found.items()}


def _subsets(test: pd.DataFrame) -> dict[str, np.ndarray]:
    """Suffix of the metric to a mask of the pairs; without a pair there is no metric."""
    subsets = {"": np.ones(len(test), dtype=bool), "_no_shared_term": test["no_shared_term"].to_numpy()}
    return {suffix: some for suffix, some in subsets.items() if some.any()}


def _covered(
    pairs: Mapping[str, pd.DataFrame], named: Mapping[str, Vectors]
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """The pairs for which every vector set has both genes, and the fraction of all pairs that each set has."""
    table = pd.concat([split.assign(split=name) for name, split in pairs.items()], ignore_index=True)
    kept, coverage = covered(named, table["gene_a"], table["gene_b"])
    table = table[kept]
    left = {name: table.loc[table["split"] == name, PAIR].reset_index(drop=True) for name in pairs}
    for name, split in left.items():
        if split["label"].nunique() < 2:
            ends = pairs[name]["gene_a"], pairs[name]["gene_b"]
            counts = {
                of: int(np.all([found.rows(end) >= 0 for end in ends], axis=0).sum()) for of, found in named.items()
            }
            raise ValueError(
                f"`{name}`: both labels are needed; {len(split)} of {len(ends[0])} pairs have vectors in every set. "
                f"Pairs that each set has: {', '.join(f'{of} {count}' for of, count in counts.items())}."
            )
    return left, coverage
