"""`bft-trl interactions`: do vectors of genes tell which of them interact, and better than what knows no text?"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from bft_trl.biology import ranking
from bft_trl.biology.classifiers import Fit, fit
from bft_trl.biology.controls import annotation_vectors, degree_features, identity_features, symbol_vectors
from bft_trl.biology.pairs import pair_features, read_pairs, share_a_term, shared_genes
from bft_trl.biology.vectors import Vectors, check_task, random_like, read_named_vectors, shuffled
from bft_trl.data.gene_sets import shipped_sets
from bft_trl.data.tables import read_gene_sets, read_json_object, read_table, write_parquet
from bft_trl.io import write_text

logger = logging.getLogger(__name__)

PARTS = ("train", "valid", "test")
# Of pairs.parquet: names that no file of vectors can have.
COLUMNS = ("gene_a", "gene_b", "label", "no_shared_term")
# Random and shuffled vectors are drawn so often up to so many training pairs, and once above.
DRAWS = 5
FEW = 50
SMALL = 20_000
CONTROLS = ("random", "shuffled", "identity", "degree", "symbol", "go")


class Scored(NamedTuple):
    """Probabilities of the test pairs under each vector set and control, and how they came about.

    `probabilities` is (draws, N) by name: several for random and shuffled vectors, one for the others.
    """

    test: pd.DataFrame  # gene_a, gene_b, label, no_shared_term
    probabilities: dict[str, np.ndarray]
    details: dict[str, dict[str, Any]]  # chosen, validation, made_of
    vectors: dict[str, Vectors]
    coverage: dict[str, float]
    report: dict[str, Any]


def score_interactions(
    train: Path,
    valid: Path,
    test: Path,
    vectors: Sequence[Path],
    out: Path,
    *,
    go: Path | None = None,
    training_sets: Path | None = None,
    seed: int = 0,
) -> Scored:
    """Fits classifiers on each set of vectors and on the controls; what is done stays in `out`/arms.

    A run that was killed goes on from there, and one with another set of vectors repeats nothing.

    All are compared on the pairs of which every vector set has both genes; the share that each has is its coverage.

    Args:
        train, valid, test: tables of gene_a, gene_b and label; see [`read_pairs`]. `valid` chooses the classifier.
        vectors: tables of gene and vector; the file's stem is the name.
        out: folder.
        go: gene sets for the control "go"; None takes those that ship with the package.
        training_sets: gene sets of which the adapter's training data were made; None takes those that ship.
        seed: of everything random.

    Raises ValueError or FileNotFoundError, before any fitting, for tables, vectors and options that cannot be used.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed={seed}` must be at least 0 and under 2**32.")
    named = read_named_vectors(vectors, reserved=(*CONTROLS, *COLUMNS))
    check_task(out, "interactions")
    read = {name: read_pairs(path) for name, path in zip(PARTS, (train, valid, test), strict=True)}
    annotated = shipped_sets() if go is None else read_gene_sets(go)
    learned = shipped_sets("train") if training_sets is None else _read_sets(training_sets)
    shared = shared_genes({name: part.pairs for name, part in read.items()})
    if any(found["genes"] for found in shared.values()):
        logger.warning(
            "The parts share genes (%s): a classifier can do well by remembering genes. The controls 'identity' and "
            "'degree' say how well.",
            ", ".join(f"{which} {found['genes']}" for which, found in shared.items() if found["genes"]),
        )
    pairs, coverage = _covered({name: part.pairs for name, part in read.items()}, named)
    for name, part in pairs.items():
        if part["label"].nunique() < 2:
            raise ValueError(f"`{name}`: only one label is left among {len(part)} pairs; both are needed.")
    genes = sorted({gene for part in pairs.values() for end in ("gene_a", "gene_b") for gene in part[end]})
    pairs["test"] = pairs["test"].assign(no_shared_term=~share_a_term(pairs["test"], learned))
    arms = _arms(genes, pairs, named, annotated, seed=seed)
    probabilities: dict[str, np.ndarray] = {}
    details: dict[str, dict[str, Any]] = {}
    tables = "".join(part[["gene_a", "gene_b", "label"]].to_csv(index=False) for part in pairs.values())
    progress = tqdm(total=sum(map(len, arms.values())), desc="Interactions", unit="arm")
    for name, draws in arms.items():
        fits = []
        for draw, arm in enumerate(draws):
            progress.set_postfix_str(name)
            file = out / "arms" / f"{name}{f'-{draw + 1}' if draw else ''}.parquet"
            fits.append(_kept(file, arm, pairs, tables, seed=seed))
            progress.update()
        probabilities[name] = np.stack([one.probabilities for one in fits])
        details[name] = {"chosen": fits[0].chosen, "validation": fits[0].validation}
        details[name] |= {"made_of": draws[0].made_of, "draws": len(draws)}
    progress.close()
    report: dict[str, Any] = {
        "parts": {name: part.report for name, part in read.items()},
        "shared": shared,
        "seed": seed,
    }
    everyone = {gene for part in read.values() for end in ("gene_a", "gene_b") for gene in part.pairs[end]}
    report["genes_without_vector"] = {name: len(everyone - set(found.genes)) for name, found in named.items()}
    report["compared_on"] = {name: len(part) for name, part in pairs.items()}
    report["no_shared_term"] = int(pairs["test"]["no_shared_term"].sum())
    logger.info(
        "%d of %d test pairs stand together in no training set: no_shared_term is on these.",
        *(report["no_shared_term"], len(pairs["test"])),
    )
    return Scored(pairs["test"], probabilities, details, named, coverage, report)


def figures(
    scored: Scored, *, rng: np.random.Generator, n_resamples: int = 9999
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, np.ndarray]]]:
    """AUROC and average precision with 95 % intervals, and calibration, by name.

    The former on all test pairs and on those that share no term of the training data ("_no_shared_term"), the latter
    as Brier score and expected calibration error.

    Returns:
        figures, and for each metric the bootstrap values (R,) by name, from the same resamples of genes for all.
    """
    test = scored.test
    genes = sorted({*test["gene_a"], *test["gene_b"]})
    index = {gene: row for row, gene in enumerate(genes)}
    first, second = (test[end].map(index).to_numpy() for end in ("gene_a", "gene_b"))
    labels = test["label"].to_numpy()
    masks = {"": np.ones(len(test), dtype=bool), "_no_shared_term": test["no_shared_term"].to_numpy()}
    resampled: dict[str, dict[str, list[np.ndarray]]] = {}
    resamples = ranking.gene_resamples(first, second, len(genes), rng=rng, n_resamples=n_resamples)
    progress = tqdm(total=n_resamples, desc="Bootstrap over genes", unit="resample")
    for weights in resamples:
        for metric, ranked in ranking.METRICS.items():
            for name, scores in scored.probabilities.items():
                for key, some in masks.items():
                    values = _mean_over_draws(ranked, scores[:, some], labels[some], weights[:, some])
                    resampled.setdefault(metric + key, {}).setdefault(name, []).append(values)
        progress.update(len(weights))
    progress.close()
    joined = {
        metric: {name: np.concatenate(values) for name, values in by_name.items()}
        for metric, by_name in resampled.items()
    }
    one = np.ones((1, len(test)))
    found: dict[str, dict[str, Any]] = {}
    for name, scores in scored.probabilities.items():
        found[name] = {}
        for metric, ranked in ranking.METRICS.items():
            for key, some in masks.items():
                value = float(_mean_over_draws(ranked, scores[:, some], labels[some], one[:, some])[0])
                found[name][metric + key] = ranking.interval(value, joined[metric + key][name])
        calibration = [_calibration(draw, labels) for draw in scores]
        found[name] |= {key: float(np.mean([each[key] for each in calibration])) for key in calibration[0]}
    return found, joined


def _mean_over_draws(
    ranked: Callable[..., np.ndarray], scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The mean of a metric over draws (draws, N), under each weighting, (R,); NaN where there is no pair."""
    if not len(labels):
        return np.full(len(weights), np.nan)
    return np.mean([ranked(draw, labels, weights) for draw in scores], axis=0)


class _Arm(NamedTuple):
    features: Callable[[pd.DataFrame], Any]
    content: str  # hash of what the features are made of
    made_of: str
    trees: bool = True


def _arms(
    genes: Sequence[str],
    pairs: Mapping[str, pd.DataFrame],
    named: Mapping[str, Vectors],
    sets: pd.DataFrame,
    *,
    seed: int,
) -> dict[str, list[_Arm]]:
    """The vector sets and the controls, by name; several draws of random and shuffled vectors."""
    index = {gene: row for row, gene in enumerate(genes)}

    def of_vectors(values: np.ndarray, made_of: str) -> _Arm:
        def features(part: pd.DataFrame) -> np.ndarray:
            return pair_features(values, part["gene_a"].map(index).to_numpy(), part["gene_b"].map(index).to_numpy())

        return _Arm(features, hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(), made_of)

    for_random, for_shuffled = np.random.default_rng(seed).spawn(2)
    train = pairs["train"]
    wanted = {name: found.values[found.rows(genes)] for name, found in named.items()}
    name, first = next(iter(named.items()))
    covered = first._replace(genes=list(genes), values=wanted[name])
    draws = range(DRAWS if len(train) <= SMALL else 1)
    arms = {name: [of_vectors(values, "vectors")] for name, values in wanted.items()}
    noise = f"random vectors, as many numbers as {name}"
    arms["random"] = [of_vectors(random_like(covered, for_random).values, noise) for _ in draws]
    others = f"the vectors of {name}, each of another gene"
    arms["shuffled"] = [of_vectors(shuffled(covered, for_shuffled).values, others) for _ in draws]
    of_train = hashlib.sha256(train.to_csv(index=False).encode()).hexdigest()
    which = "which genes, one number each"
    arms["identity"] = [_Arm(lambda part: identity_features(genes, part), of_train, which, trees=False)]
    arms["degree"] = [_Arm(lambda part: degree_features(train, part), of_train, "training pairs of each gene")]
    arms["symbol"] = [of_vectors(*symbol_vectors(genes, list(named.values()), seed=seed))]
    terms = f"TF-IDF of {len(sets)} gene sets, SVD"
    arms["go"] = [of_vectors(annotation_vectors(genes, sets, seed=seed), terms)]
    return arms


def _kept(file: Path, arm: _Arm, pairs: Mapping[str, pd.DataFrame], tables: str, *, seed: int) -> Fit:
    """The fit of an arm, from `file` where it is there, whole, made of the same things."""
    versions = [version("bft-trl"), version("scikit-learn")]
    key = hashlib.sha256("\0".join([arm.content, tables, str(seed), *versions]).encode()).hexdigest()[:16]
    described = file.with_suffix(".json")
    test = pairs["test"][["gene_a", "gene_b", "label"]]
    if file.is_file() and described.is_file():
        try:
            made = read_json_object(described)
            if made["key"] == key and made["digest"] == _digest(made):
                table = read_table(file, [*test.columns, "probability"])
                if table[test.columns].equals(test) and np.isfinite(table["probability"]).all():
                    return Fit(table["probability"].to_numpy(), made["chosen"], made["validation"])
                logger.warning("%s is damaged: fitting anew.", file)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s): fitting anew.", file, error)
    labelled = [(arm.features(pairs[part]), pairs[part]["label"].to_numpy()) for part in ("train", "valid")]
    found = fit(labelled[0], labelled[1], arm.features(test), seed=seed, trees=arm.trees)
    described.unlink(missing_ok=True)  # it vouches for the table
    write_parquet(file, test.assign(probability=found.probabilities))
    made = {"key": key, "chosen": found.chosen, "validation": found.validation, "made_of": arm.made_of}
    write_text(described, json.dumps(made | {"digest": _digest(made)}, indent=2) + "\n")
    return found


def _digest(made: Mapping[str, Any]) -> str:
    """Of what was chosen, and how it did on the validation part."""
    return hashlib.sha256(json.dumps([made["chosen"], made["validation"]]).encode()).hexdigest()[:16]


def _covered(
    pairs: Mapping[str, pd.DataFrame], named: Mapping[str, Vectors]
) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """The pairs of which every vector set has both genes, and the share of all pairs that each set has."""
    inside = {
        name: {
            part: table["gene_a"].isin(set(found.genes)) & table["gene_b"].isin(set(found.genes))
            for part, table in pairs.items()
        }
        for name, found in named.items()
    }
    total = sum(len(table) for table in pairs.values())
    coverage = {name: float(sum(mask.sum() for mask in masks.values()) / total) for name, masks in inside.items()}
    kept = {}
    for part, table in pairs.items():
        mask = np.logical_and.reduce([masks[part].to_numpy() for masks in inside.values()])
        kept[part] = table[mask].reset_index(drop=True)
        if not mask.all():
            lost = table[~mask]
            logger.warning("%s: %d of %d pairs have no vector in one of the sets.", part, len(lost), len(mask))
            for name, found in named.items():
                genes = sorted({*lost["gene_a"], *lost["gene_b"]} - set(found.genes))
                if genes:
                    logger.warning("%s lacks %d of their genes, such as %s.", name, len(genes), ", ".join(genes[:5]))
        if not mask.any():
            raise ValueError(f"`{part}`: no pair has vectors of both genes in every set; coverage is {coverage}.")
    if len(kept["test"]) < FEW:
        logger.warning("Only %d test pairs are left: no figure or interval says much.", len(kept["test"]))
    return kept, coverage


def _read_sets(path: Path) -> pd.DataFrame:
    """Gene sets, from training rows as well: all that is asked for is their genes."""
    table = read_table(path, []) if path.suffix == ".parquet" else None
    return read_gene_sets(path) if table is None or "genes" not in table else table


def _calibration(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Brier score, and the expected calibration error over ten groups of about as many pairs; ties stay together."""
    from scipy.stats import rankdata

    groups = ((rankdata(scores) - 0.5) * 10 / len(scores)).astype(int)
    gaps = [abs((scores - labels)[groups == group].sum()) for group in np.unique(groups)]
    return {"brier": float(np.mean((scores - labels) ** 2)), "calibration_error": float(sum(gaps) / len(scores))}
