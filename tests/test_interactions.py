"""Gene pairs: rules worked by hand, ranking beside scikit-learn, and classifiers that find what was planted."""

import logging

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from bft_trl.biology import interactions, ranking
from bft_trl.biology.classifiers import Fit, fit
from bft_trl.biology.controls import annotation_vectors, degree_features, identity_features, symbol_vectors
from bft_trl.biology.interactions import score_interactions
from bft_trl.biology.pairs import pair_features, read_pairs, share_a_term, shared_genes
from bft_trl.biology.vectors import Vectors


def write_pairs(path, rows):
    pd.DataFrame(rows, columns=["gene_a", "gene_b", "label"]).to_csv(path, index=False)
    return path


def test_repeated_contradictory_and_own_pairs_by_hand(tmp_path, caplog):
    """A-B twice and B-A once, all 1: kept once. A-C and C-A contradict each other: both go. D-D goes. B-C stays."""
    rows = [("A", "B", 1), ("A", "B", 1), ("B", "A", 1), ("A", "C", 1), ("C", "A", 0), ("D", "D", 0), ("C", "B", 0)]
    found = read_pairs(write_pairs(tmp_path / "pairs.csv", rows))
    assert found.pairs.to_numpy().tolist() == [["A", "B", 1], ["B", "C", 0]]
    assert found.report == {
        "rows": 7,
        "pairs": 2,
        "genes": 3,
        "positive": 0.5,
        "with_itself": 1,
        "repeated": 2,
        "contradictory": 1,
    }
    assert (
        "1 pairs of a gene with itself and 1 contradictory ones are left out, 1 repeated ones count once"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("A", "B", 2)], "label must be 0 or 1; found 2"),
        ([("A", None, 1)], "1 rows lack a gene or a label, the first of them row 0"),
        ([("A", "A", 1)], "no pair is left"),
        ([("A", "B", 1), ("B", "A", 0)], "no pair is left"),
    ],
)
def test_pairs_that_cannot_be_used(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write_pairs(tmp_path / "pairs.csv", rows))


def test_symbols_that_look_wrong_are_named(tmp_path, caplog):
    rows = [("Trp53", "C9orf72", 1), ("ENSG1", "HLA-A", 0), ("brca1", "BRCA1", 0)]
    read_pairs(write_pairs(tmp_path / "pairs.csv", rows))
    assert "2 of 6 genes are not written as human symbols are" in caplog.text
    assert "Trp53, brca1" in caplog.text


def test_shared_genes_and_terms_by_hand():
    one = pd.DataFrame([("A", "B", 1), ("B", "C", 0)], columns=["gene_a", "gene_b", "label"])
    other = pd.DataFrame([("A", "B", 1), ("C", "D", 0)], columns=["gene_a", "gene_b", "label"])
    assert shared_genes({"train": one, "test": other}) == {"train and test": {"genes": 3, "pairs": 1}}
    sets = pd.DataFrame({"genes": [["A", "B"], ["C"], ["D", "E"]]})
    assert share_a_term(one, sets).tolist() == [True, False]
    assert share_a_term(other, sets).tolist() == [True, False]


def test_pair_features_are_symmetric_and_worked_by_hand():
    vectors = np.array([[1.0, 2.0], [3.0, -1.0]], dtype=np.float32)
    one = pair_features(vectors, np.array([0]), np.array([1]))
    assert one.tolist() == [[3.0, -2.0, 2.0, 3.0]]
    assert (one == pair_features(vectors, np.array([1]), np.array([0]))).all()
    assert one.dtype == np.float32


def test_ranking_by_hand():
    """Scores .9 (1), .8 (0), .8 (1), .1 (0): of four positive-negative pairs 3 are right and one ties: 3.5 / 4.
    Precision at the first positive is 1, at the tie 2/3: average 5/6.
    """
    scores, labels = np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 0, 1, 0])
    one = np.ones((1, 4))
    assert ranking.auroc(scores, labels, one)[0] == 3.5 / 4
    assert ranking.average_precision(scores, labels, one)[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert np.isnan(ranking.auroc(scores, np.zeros(4), one)[0])
    assert np.isnan(ranking.average_precision(scores, np.zeros(4), one)[0])


def test_ranking_is_that_of_scikit_learn_under_any_weights():
    rng = np.random.default_rng(0)
    for _ in range(20):
        count = int(rng.integers(5, 60))
        scores, labels = rng.integers(0, 8, count) / 8, rng.integers(0, 2, count)
        labels[:2] = [0, 1]
        weights = rng.integers(0, 4, (5, count)).astype(float)
        weights[:, :2] += 1
        roc, precision = (metric(scores, labels, weights) for metric in ranking.METRICS.values())
        for row, weight in enumerate(weights):
            assert roc[row] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight))
            assert precision[row] == pytest.approx(average_precision_score(labels, scores, sample_weight=weight))


def test_resamples_are_of_genes():
    """A pair's weight is the product of how often its genes were drawn: pairs A-B, A-C, B-C of three genes have the
    weights (ab, ac, bc) with a + b + c = 3, so only (1, 1, 1), (2, 0, 0) and the like, and (0, 0, 0). E[ab] = 1 - 1/3.
    """
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    weights = np.concatenate(
        list(ranking.gene_resamples(first, second, 3, rng=np.random.default_rng(0), n_resamples=20_000))
    )
    assert {tuple(sorted(row)) for row in weights.astype(int).tolist()} == {(1, 1, 1), (0, 0, 2), (0, 0, 0)}
    assert weights.mean(0) == pytest.approx(2 / 3, abs=0.02)


def test_interval_and_p_by_hand():
    """Of five values two are at or under 0: p is 2 (2 + 1) / (5 + 1) = 1. Of 39 positive values none is: 2 / 40."""
    assert ranking.bootstrap_p(np.array([-1.0, 0, 1, 2, 3])) == 1.0
    assert ranking.bootstrap_p(np.arange(1.0, 40)) == pytest.approx(2 / 40)
    found = ranking.interval(0.5, np.array([*np.linspace(0, 1, 1001), np.nan]))
    assert found == (0.5, pytest.approx(0.025), pytest.approx(0.975))
    assert np.isnan(ranking.interval(0.5, np.array([np.nan])).low)


def test_calibration_by_hand():
    """Ten groups of one pair, but for the two at .5, which stay together: a gap of 0, where apart they had .5 each.
    The other gaps are .1, .2, .3, .4, twice. The squared errors are counted pair by pair.
    """
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9])
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    found = interactions._calibration(scores, labels)
    assert found["calibration_error"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.4) * 2 / 10)
    assert interactions._calibration(np.full(100, 0.5), np.repeat([0, 1], 50))["calibration_error"] == 0
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.09 + 0.16 + 0.25) * 2 / 10)


def test_the_classifier_is_that_of_the_best_validation_score():
    """The label is an XOR of two signs: a straight line sees nothing, trees do."""
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((1200, 4)) for _ in range(3)]
    labels = [(part[:, 0] * part[:, 1] > 0).astype(int) for part in parts]
    found = fit((parts[0], labels[0]), (parts[1], labels[1]), parts[2], seed=0)
    assert found.chosen.startswith("boosted trees")
    assert found.validation[found.chosen] == max(found.validation.values()) > 0.95
    assert max(score for name, score in found.validation.items() if "regression" in name) < 0.6
    assert roc_auc_score(labels[2], found.probabilities) > 0.95


def test_controls_by_hand():
    train = pd.DataFrame([("A", "B", 1), ("A", "C", 0), ("A", "D", 1)], columns=["gene_a", "gene_b", "label"])
    pairs = pd.DataFrame([("A", "B", 1), ("X", "C", 0)], columns=["gene_a", "gene_b", "label"])
    # A: 3 pairs, 2/3 positive. B: 1, 1. C: 1, 0. X: none, so 0 pairs and the rate of all, 2/3.
    log = np.log
    expected = [[log(4) + log(2), log(4) - log(2), 2 / 3 + 1, 1 / 3], [log(2), log(2), 2 / 3, 2 / 3]]
    assert degree_features(train, pairs) == pytest.approx(np.array(expected), abs=1e-6)
    genes = ["A", "B", "C", "X"]
    assert identity_features(genes, pairs).toarray().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    sets = pd.DataFrame({"genes": [["A", "B"], ["A", "B", "Q"], ["C"]]})
    annotated = annotation_vectors(genes, sets, seed=0)
    # A and B are in the same sets: the same vector. C shares none: at right angles. X is in none: 0.
    assert annotated[0] == pytest.approx(annotated[1], abs=1e-6)
    assert annotated[0] @ annotated[2] == pytest.approx(0, abs=1e-6)
    assert not annotated[3].any()
    letters, made_of = symbol_vectors(["MAPK1", "MAPK3", "TP53"], [Vectors(["MAPK1"], np.ones((1, 2)), {})], seed=0)
    assert made_of == "letters of the symbol"
    assert letters[0] @ letters[1] > letters[0] @ letters[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Gene-disjoint parts; the label is the sign of the product of the first numbers of both vectors, with noise."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(150)]
    vectors = rng.standard_normal((150, 4)).astype(np.float32)
    pd.DataFrame({"gene": genes, "vector": list(vectors)}).to_parquet(folder / "text.parquet")
    pd.DataFrame({"gene": genes[:140], "vector": list(vectors[:140])}).to_parquet(folder / "some.parquet")
    for part, (low, high, count) in {"train": (0, 70, 700), "valid": (70, 100, 200), "test": (100, 150, 300)}.items():
        drawn = rng.integers(low, high, (count, 2))
        signal = vectors[drawn[:, 0], 0] * vectors[drawn[:, 1], 0] + 0.2 * rng.standard_normal(count)
        rows = [(genes[a], genes[b], int(s > 0)) for (a, b), s in zip(drawn, signal, strict=True)]
        write_pairs(folder / f"{part}.csv", rows)
    return folder


def cheap_fits(monkeypatch):
    """Instead of classifiers the sum of the features, which is as good for what is kept and what is not."""
    fitted = []

    def cheap(train, valid, test, *, seed, trees=True):
        fitted.append(1)
        return Fit(seed + np.asarray(test.sum(axis=1), dtype=float).ravel(), "cheap", {"cheap": 0.5})

    monkeypatch.setattr(interactions, "fit", cheap)
    return fitted


def parts(folder):
    return [folder / f"{part}.csv" for part in ("train", "valid", "test")]


def test_a_planted_signal_is_found_and_controls_know_nothing(world, tmp_path):
    scored = score_interactions(*parts(world), [world / "text.parquet"], tmp_path)
    found, _ = interactions.figures(scored, rng=np.random.default_rng(0), n_resamples=499)
    text = found["text"]["auroc"]
    assert text.value > 0.9
    assert text.low < text.value < text.high
    assert text.value == pytest.approx(roc_auc_score(scored.test["label"], scored.probabilities["text"][0]))
    draws = [roc_auc_score(scored.test["label"], draw) for draw in scored.probabilities["random"]]
    assert len(set(draws)) == 5
    assert found["random"]["auroc"].value == pytest.approx(np.mean(draws))
    for control in ("random", "shuffled", "symbol"):
        assert found[control]["auroc"].low < 0.5 < found[control]["auroc"].high
    # Gene-disjoint: nothing is known of any gene.
    assert found["identity"]["auroc"].value == found["degree"]["auroc"].value == 0.5
    # No gene of the test is in a shipped set.
    assert scored.test["no_shared_term"].all()
    assert found["text"]["auroc_no_shared_term"] == pytest.approx(text)


def test_what_is_done_is_not_done_again_and_what_changed_is(world, tmp_path, monkeypatch):
    fitted = cheap_fits(monkeypatch)
    first = score_interactions(*parts(world), [world / "text.parquet"], tmp_path)
    assert len(fitted) == 1 + 5 + 5 + 4  # the vectors, five draws each of random and shuffled ones, other controls
    (tmp_path / "arms" / "go.json").unlink()  # as if killed before it
    table = pd.read_parquet(tmp_path / "arms" / "random.parquet")
    table.iloc[:-1].to_parquet(tmp_path / "arms" / "random.parquet")  # cut short
    (tmp_path / "arms" / "degree.json").write_text("{")
    described = tmp_path / "arms" / "text.json"
    described.write_text(described.read_text().replace('"cheap": 0.5', '"cheap": 0.7'))  # damaged, and JSON still
    (tmp_path / "arms" / "shuffled-3.parquet").write_bytes(b"PAR1")
    again = score_interactions(*parts(world), [world / "text.parquet"], tmp_path)
    assert len(fitted) == 15 + 5
    for name in first.probabilities:
        assert (first.probabilities[name] == again.probabilities[name]).all()
    score_interactions(*parts(world), [world / "text.parquet"], tmp_path, seed=1)
    assert len(fitted) == 15 + 5 + 15


def test_pairs_without_a_vector_are_counted(world, tmp_path, caplog, monkeypatch):
    cheap_fits(monkeypatch)
    scored = score_interactions(*parts(world), [world / "text.parquet", world / "some.parquet"], tmp_path)
    assert scored.coverage["text"] == 1.0
    assert scored.coverage["some"] < 1.0
    assert not {f"G{i}" for i in range(140, 150)} & {*scored.test["gene_a"], *scored.test["gene_b"]}
    assert scored.report["genes_without_vector"] == {"text": 0, "some": 10}
    assert "some lacks 10 of their genes, such as G140, G141" in caplog.text


def test_shared_genes_are_said(world, tmp_path, caplog):
    train, valid, _ = parts(world)
    with caplog.at_level(logging.WARNING):
        scored = score_interactions(train, valid, train, [world / "text.parquet"], tmp_path)
    assert "The parts share genes (train and test" in caplog.text
    assert scored.report["shared"]["train and test"]["pairs"] == scored.report["parts"]["test"]["pairs"]
    found, _ = interactions.figures(scored, rng=np.random.default_rng(0), n_resamples=99)
    assert found["identity"]["auroc"].value > 0.55


def test_one_label_only(world, tmp_path):
    table = pd.read_csv(world / "test.csv")
    one = tmp_path / "test.csv"
    table[table["label"] == 1].to_csv(one, index=False)
    train, valid, _ = parts(world)
    with pytest.raises(ValueError, match="`test`: only one label is left among"):
        score_interactions(train, valid, one, [world / "text.parquet"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", ["write_parquet", "write_text"])
def test_killed_while_an_arm_is_written(world, tmp_path, monkeypatch, moment):
    """Over an older run with another seed: neither the old table nor a new one without its description is taken."""

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    cheap_fits(monkeypatch)
    score_interactions(*parts(world), [world / "text.parquet"], tmp_path, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(interactions, moment, stopped)
        with pytest.raises(KeyboardInterrupt):
            score_interactions(*parts(world), [world / "text.parquet"], tmp_path)
    resumed = score_interactions(*parts(world), [world / "text.parquet"], tmp_path)
    fresh = score_interactions(*parts(world), [world / "text.parquet"], tmp_path / "fresh")
    for name, probabilities in fresh.probabilities.items():
        assert (resumed.probabilities[name] == probabilities).all()


def test_names_of_vectors_that_are_taken(world, tmp_path):
    for name in ("label", "gene_a", "random"):
        with pytest.raises(ValueError, match=f"'{name}' is the name of a control or of a column"):
            score_interactions(*parts(world), [tmp_path / f"{name}.parquet"], tmp_path)
    with pytest.raises(ValueError, match="two files are named 'text'"):
        score_interactions(*parts(world), [world / "text.parquet", tmp_path / "text.parquet"], tmp_path)


def test_labels_may_be_text_and_genes_may_not_be_missing(tmp_path):
    table = pd.DataFrame({"gene_a": ["A", "B"], "gene_b": ["B", " C"], "label": ["1", "0"]})
    table.to_parquet(tmp_path / "text.parquet")
    assert read_pairs(tmp_path / "text.parquet").pairs.to_numpy().tolist() == [["A", "B", 1], ["B", "C", 0]]
    table.assign(gene_a=["A", ""]).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="1 rows lack a gene or a label, the first of them row 1"):
        read_pairs(tmp_path / "text.parquet")
