"""Gene pairs: rules worked by hand, ranking against scikit-learn, and classifiers that find a planted signal."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from bft_trl.biology import interactions, task_metrics
from bft_trl.biology.controls import annotation_vectors
from bft_trl.biology.interactions import score_interactions
from bft_trl.biology.pairs import degree_features, pair_features, read_pairs, share_a_term
from bft_trl.biology.predictors import Fit, fit
from bft_trl.biology.vectors import read_named_vectors
from bft_trl.data.gene_sets import shipped_sets

COLUMNS = ["gene_a", "gene_b", "label"]


def write_pairs(path, rows):
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
    return path


def test_repeated_contradictory_and_own_pairs_by_hand(tmp_path, caplog):
    """A-B twice and B-A once, all 1: kept once. A-C and C-A contradict each other: left out, as is D-D. B-C stays."""
    rows = [("A", "B", 1), ("A", "B", 1), ("B", "A", 1), ("A", "C", 1), ("C", "A", 0), ("D", "D", 0), ("C ", "B", 0)]
    found = read_pairs(write_pairs(tmp_path / "pairs.csv", rows))
    assert found.to_numpy().tolist() == [["A", "B", 1], ["B", "C", 0]]
    assert "1 pairs of a gene with itself and 1 contradictory pairs" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("A", "B", 2)], "label must be 0 or 1; found 2"),
        ([("A", "B", 1), ("A", None, 1)], "1 rows lack a gene or a label, the first is row 1"),
        ([("A", "A", 1)], "no pair is left"),
    ],
)
def test_pairs_that_cannot_be_used(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write_pairs(tmp_path / "pairs.csv", rows))


def test_shared_terms_by_hand():
    one = pd.DataFrame([("A", "B", 1), ("B", "C", 0)], columns=COLUMNS)
    sets = pd.DataFrame({"genes": [["A", "B"], ["C"], ["D", "E"]]})
    assert share_a_term(one, sets).tolist() == [True, False]


def test_features_by_hand():
    vectors = np.array([[1.0, 2.0], [3.0, -1.0]], dtype=np.float32)
    one = pair_features(vectors, np.array([0]), np.array([1]))
    assert one.tolist() == [[3.0, -2.0, 2.0, 3.0]]
    assert (one == pair_features(vectors, np.array([1]), np.array([0]))).all()
    assert one.dtype == np.float32
    train = pd.DataFrame([("A", "B", 1), ("A", "C", 0), ("A", "D", 1)], columns=COLUMNS)
    pairs = pd.DataFrame([("A", "B", 1), ("X", "C", 0)], columns=COLUMNS)
    # A: 3 pairs, 2/3 positive. B: 1, 1. C: 1, 0. X: none, so 0 pairs and the rate of all, 2/3.
    log = np.log
    expected = [[log(4) + log(2), log(4) - log(2), 2 / 3 + 1, 1 / 3], [log(2), log(2), 2 / 3, 2 / 3]]
    assert degree_features(train, pairs) == pytest.approx(np.array(expected), abs=1e-6)


def test_annotation_vectors():
    """A and B are in the same sets: the same vector. C shares none: orthogonal. X is in none: 0."""
    sets = pd.DataFrame({"genes": [["A", "B"], ["A", "B", "Q"], ["C"]]})
    annotated = annotation_vectors(["A", "B", "C", "X"], sets, seed=0)
    assert annotated[0] == pytest.approx(annotated[1], abs=1e-6)
    assert annotated[0] @ annotated[2] == pytest.approx(0, abs=1e-6)
    assert not annotated[3].any()


def test_ranking_by_hand():
    """Scores .9 (1), .8 (0), .8 (1), .1 (0): of four positive-negative pairs 3 are right and one ties: 3.5 / 4.
    Precision at the first positive is 1, at the tie 2/3: average 5/6.
    """
    scores, labels = np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 0, 1, 0])
    one = np.ones((1, 4))
    assert task_metrics.auroc(scores, labels, one)[0] == 3.5 / 4
    assert task_metrics.average_precision(scores, labels, one)[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    by_positive = task_metrics.ranking_by_positive(scores, labels)
    assert by_positive["auroc"].tolist() == [1, 0.75]
    assert by_positive["average_precision"].tolist() == [1, 2 / 3]


def test_ranking_equals_scikit_learn_under_any_weights():
    rng = np.random.default_rng(0)
    for _ in range(20):
        count = int(rng.integers(5, 60))
        scores, labels = rng.integers(0, 8, count) / 8, rng.integers(0, 2, count)
        labels[:2] = [0, 1]
        weights = rng.integers(0, 4, (5, count)).astype(float)
        weights[:, :2] += 1
        for name, reference in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
            found = task_metrics.RANKING[name](scores, labels, weights)
            assert found == pytest.approx([reference(labels, scores, sample_weight=weight) for weight in weights])
            by_positive = task_metrics.ranking_by_positive(scores, labels)[name]
            assert by_positive.mean() == pytest.approx(reference(labels, scores))


def test_resamples_are_of_genes():
    """A pair's weight is the product of how often its genes were drawn: pairs A-B, A-C, B-C of three genes have the
    weights (ab, ac, bc) with a + b + c = 3, so only (1, 1, 1), (2, 0, 0) and the like, and (0, 0, 0). E[ab] = 1 - 1/3.
    """
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    rng = np.random.default_rng(0)
    weights = np.concatenate(list(task_metrics.gene_resamples(first, second, 3, rng=rng, n_resamples=20_000)))
    assert {tuple(sorted(row)) for row in weights.astype(int).tolist()} == {(1, 1, 1), (0, 0, 2), (0, 0, 0)}
    assert weights.mean(0) == pytest.approx(2 / 3, abs=0.02)


def test_interval_and_p_by_hand():
    """Of five values two are at or under 0: p is 2 (2 + 1) / (5 + 1) = 1. Of 39 positive values none is: 2 / 40."""
    assert task_metrics.bootstrap_p(np.array([-1.0, 0, 1, 2, 3])) == 1.0
    assert task_metrics.bootstrap_p(np.arange(1.0, 40)) == pytest.approx(2 / 40)
    found = task_metrics.interval(0.5, np.array([*np.linspace(0, 1, 1001), np.nan]))
    assert found == (0.5, pytest.approx(0.025), pytest.approx(0.975))
    assert np.isnan(task_metrics.interval(0.5, np.array([np.nan])).low)


def test_the_classifier_has_the_best_validation_score():
    """The label is an XOR of two signs, which trees can separate and a linear model cannot."""
    rng = np.random.default_rng(0)
    splits = [rng.standard_normal((1200, 4)) for _ in range(3)]
    labels = [(split[:, 0] * split[:, 1] > 0).astype(int) for split in splits]
    found = fit((splits[0], labels[0]), (splits[1], labels[1]), splits[2], seed=0)
    assert found.chosen.startswith("boosted trees")
    assert found.validation[found.chosen] == max(found.validation.values()) > 0.95
    assert max(score for name, score in found.validation.items() if "regression" in name) < 0.6
    assert roc_auc_score(labels[2], found.probabilities) > 0.95


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Gene-disjoint splits; the label is the sign of the product of the first numbers of both vectors, with noise."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(150)]
    vectors = rng.standard_normal((150, 4)).astype(np.float32)
    pd.DataFrame({"gene": genes, "vector": list(vectors)}).to_parquet(folder / "text.parquet")
    pd.DataFrame({"gene": genes[:140], "vector": list(vectors[:140])}).to_parquet(folder / "some.parquet")
    for split, (low, high, count) in {"train": (0, 70, 700), "valid": (70, 100, 200), "test": (100, 150, 300)}.items():
        drawn = rng.integers(low, high, (count, 2))
        signal = vectors[drawn[:, 0], 0] * vectors[drawn[:, 1], 0] + 0.2 * rng.standard_normal(count)
        rows = [(genes[a], genes[b], int(s > 0)) for (a, b), s in zip(drawn, signal, strict=True)]
        write_pairs(folder / f"{split}.csv", rows)
    return folder


@pytest.fixture
def fitted(monkeypatch):
    """Replaces the classifiers by the sum of the features, and counts the fits."""
    calls = []

    def cheap(train, valid, test, *, seed):
        calls.append(1)
        return Fit(seed + np.asarray(test.sum(axis=1), dtype=float).ravel(), "cheap", {"cheap": 0.5})

    monkeypatch.setattr(interactions, "fit", cheap)
    return calls


def scored(world, folder, names=("text",), *, splits=None, **options):
    paths = {split: world / f"{split}.csv" for split in ("train", "valid", "test")} | (splits or {})
    pairs = {split: read_pairs(path) for split, path in paths.items()}
    named = read_named_vectors([world / f"{name}.parquet" for name in names], reserved=interactions.CONTROLS)
    sets = shipped_sets()
    return score_interactions(pairs, named, folder, sets=sets, training_sets=sets, **options)


def estimates(found):
    return interactions._results(found, {}, 0, 499).estimates


def test_a_planted_signal_is_found_and_controls_have_none(world, tmp_path):
    found = scored(world, tmp_path)
    metrics = estimates(found)
    text, labels = metrics["text"]["auroc"], found.test["label"]
    assert text.value > 0.9
    assert text.low < text.value < text.high
    assert text.value == pytest.approx(roc_auc_score(labels, found.probabilities["text"][0]))
    draws = [roc_auc_score(labels, draw) for draw in found.probabilities["random"]]
    assert len(set(draws)) == 5
    assert metrics["random"]["auroc"].value == pytest.approx(np.mean(draws))
    for control in ("random", "shuffled"):
        assert metrics[control]["auroc"].low < 0.5 < metrics[control]["auroc"].high
    # The splits share no gene, so nothing is known of any gene of the test split.
    assert metrics["degree"]["auroc"].value == 0.5
    # No gene of the test split is in a shipped set.
    assert metrics["text"]["auroc_no_shared_term"] == pytest.approx(text)


def test_predictions_are_reused_unless_the_input_changed(world, tmp_path, fitted):
    first = scored(world, tmp_path)
    assert len(fitted) == 1 + 5 + 5 + 2  # the vectors, five draws each of random and shuffled ones, other controls
    (tmp_path / "predictions" / "shuffled.parquet").unlink()  # as after a kill
    again = scored(world, tmp_path)
    assert len(fitted) == 13 + 5
    for name in first.probabilities:
        assert (first.probabilities[name] == again.probabilities[name]).all()
    assert first.details == again.details
    scored(world, tmp_path, seed=1)
    assert len(fitted) == 18 + 13


def test_pairs_without_a_vector_are_counted(world, tmp_path, caplog, fitted):
    found = scored(world, tmp_path, ["text", "some"])
    assert found.coverage["text"] == 1.0
    assert found.coverage["some"] < 1.0
    assert not {f"G{i}" for i in range(140, 150)} & {*found.test["gene_a"], *found.test["gene_b"]}
    assert "have no vector in one of the sets and are left out, such as G1" in caplog.text


def test_shared_genes_are_warned_of(world, tmp_path, caplog):
    found = scored(world, tmp_path, splits={"test": world / "train.csv"})
    assert "train and test share genes" in caplog.text
    assert estimates(found)["degree"]["auroc"].value > 0.55


def test_one_label_only(world, tmp_path):
    pairs = write_pairs(tmp_path / "test.csv", [("G100", "G101", 1)])
    with pytest.raises(ValueError, match=r"`test`: both labels are needed; 1 of 1 pairs .* each set has: text 1\."):
        scored(world, tmp_path, splits={"test": pairs})


def test_the_vector_set_with_too_few_genes_is_named(world, tmp_path):
    pairs = write_pairs(tmp_path / "test.csv", [("G100", "G101", 1), ("G140", "G141", 0), ("G142", "G143", 1)])
    with pytest.raises(ValueError, match=r"1 of 3 pairs have vectors .* each set has: text 3, some 1\."):
        scored(world, tmp_path, ["text", "some"], splits={"test": pairs})


def test_reserved_and_repeated_names_of_vectors(world, tmp_path):
    with pytest.raises(ValueError, match="'random' is the name of a control or a column"):
        read_named_vectors([tmp_path / "random.parquet"], reserved=interactions.CONTROLS)
    with pytest.raises(ValueError, match="two files are named 'text'"):
        read_named_vectors([world / "text.parquet", tmp_path / "text.parquet"], reserved=())
