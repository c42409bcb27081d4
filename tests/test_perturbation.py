"""Perturbation response: metrics by hand and against cell-eval, changes by hand, predictors against scikit-learn."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

from bft_trl.biology import predictors
from bft_trl.biology import task_metrics as metrics
from bft_trl.biology.cells import Changes, changes_of_cells
from bft_trl.biology.perturbation import score_perturbations, target_genes_left_out
from bft_trl.biology.vectors import Vectors

EVERYTHING = np.ones((2, 4), dtype=bool)
PREDICTED = np.array([[1.0, -1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
TRUE = np.array([[2.0, -1.0, 1.0, 2.0], [1.0, -1.0, 3.0, 1.0]])


def test_pearson_by_hand():
    """Row 0: means .5 and 1; deviations (.5, -1.5, -.5, 1.5) and (1, -2, 0, 1): products .5 + 3 + 0 + 1.5 = 5, squares
    5 and 6, so 5 / sqrt(30). Row 1 predicts the same for all: 0. A true change that is the same for all has none.
    """
    assert metrics.pearson_delta(PREDICTED, TRUE, EVERYTHING) == pytest.approx([5 / 30**0.5, 0])
    assert np.isnan(metrics.pearson_delta(PREDICTED, np.ones((2, 4)), EVERYTHING)).all()


def test_pearson_of_the_most_changed_genes_by_hand():
    """Row 0: |true| is 2, 1, 1, 2; the two greatest are genes 0 and 3, true (2, 2): constant, no correlation. With
    three the tie of genes 1 and 2 goes by position: (1, -1, 2) against (2, -1, 2): deviations (1/3, -5/3, 4/3) and
    (1, -2, 1).
    """
    assert np.isnan(metrics.pearson_delta(PREDICTED, TRUE, EVERYTHING, top=2)[0])
    expected = (1 / 3 + 10 / 3 + 4 / 3) / np.sqrt((1 + 25 + 16) / 9 * 6)
    assert metrics.pearson_delta(PREDICTED, TRUE, EVERYTHING, top=3)[0] == pytest.approx(expected)


def test_errors_by_hand_with_a_gene_left_out():
    """Row 0 without gene 0: errors 0, -1, 0 of three. Row 1: -1, 1, -3, -1 of four."""
    keep = EVERYTHING.copy()
    keep[0, 0] = False
    assert metrics.mse(PREDICTED, TRUE, keep) == pytest.approx([1 / 3, 12 / 4])
    assert metrics.mae(PREDICTED, TRUE, keep) == pytest.approx([1 / 3, 6 / 4])


def test_sign_accuracy_by_hand():
    """Row 0, genes 0, 1, 2 significant: right, right, and a predicted 0, which is wrong. Row 1: none is."""
    significant = np.array([[True, True, True, False], [False] * 4])
    found = metrics.sign_accuracy(PREDICTED, TRUE, EVERYTHING, significant)
    assert found[0] == pytest.approx(2 / 3)
    assert np.isnan(found[1])


def test_discrimination_by_hand():
    """True changes 0, 1, 10 (one gene). Predictions 0.2, 10, 4: the first is nearest to its own (rank 0: score 1). The
    second is at distance 9 from its own, 10 and 0 from the others: one is nearer (1 - 1/2). The third: own at 6, the
    others at 4 and 3: both nearer (0). A prediction in the middle of two ties by half: .5 between 0 and 1: rank 1/2.
    """
    true = np.array([[0.0], [1.0], [10.0]])
    keep = np.ones((3, 1), dtype=bool)
    assert metrics.discrimination(np.array([[0.2], [10.0], [4.0]]), true, keep).tolist() == [1, 0.5, 0]
    assert metrics.discrimination(np.array([[0.5], [0.5], [0.5]]), true, keep).tolist() == [0.75, 0.75, 0]
    assert np.isnan(metrics.discrimination(np.zeros((1, 1)), np.zeros((1, 1)), keep[:1])).all()


def test_metrics_agree_with_cell_eval():
    """cell-eval on AnnData of which every cell is its group's mean: Pearson and errors are equal; its discrimination
    score divides the rank by P where ours divides by P - 1. Both leave out the target gene there.
    """
    from cell_eval import metrics as theirs
    from cell_eval._types import PerturbationAnndataPair

    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(12)]
    true, predicted = rng.standard_normal((2, 6, 12))
    control = rng.random(12) + 5

    def cells(changes):
        expression = np.concatenate([[control, control], np.repeat(control + changes, 2, axis=0)])
        names = np.repeat(["control", *genes[:6]], 2)
        return anndata.AnnData(expression, obs=pd.DataFrame({"target": names}), var=pd.DataFrame(index=genes))

    pair = PerturbationAnndataPair(real=cells(true), pred=cells(predicted), pert_col="target", control_pert="control")
    everything = np.ones_like(true, dtype=bool)
    changes = Changes(genes[:6], genes, true, true, true > 0)
    for ours, other in (
        (metrics.pearson_delta(predicted, true, everything), theirs.pearson_delta(pair)),
        (metrics.mse(predicted, true, everything), theirs.mse_delta(pair)),
        (metrics.mae(predicted, true, everything), theirs.mae_delta(pair)),
    ):
        assert ours == pytest.approx([other[gene] for gene in genes[:6]], abs=1e-6)
    ours = metrics.discrimination(predicted, true, target_genes_left_out(changes))
    other = theirs.discrimination_score(pair, metric="l1")
    assert (1 - ours) * 5 / 6 == pytest.approx([1 - other[gene] for gene in genes[:6]])


def cells_of(rows):
    """An AnnData of three genes from (perturbation, expression) rows."""
    names, values = zip(*rows, strict=True)
    obs = pd.DataFrame({"target": names}, index=[f"c{i}" for i in range(len(names))])
    return anndata.AnnData(np.array(values, dtype=np.float64), obs=obs, var=pd.DataFrame(index=["A", "B", "X"]))


def many_cells(rng, *, counts=False, perturbations=("A", "B", "C")):
    """40 control cells and 20 of each perturbation."""
    rows = []
    for name in ("ctrl", *perturbations):
        for _ in range(40 if name == "ctrl" else 20):
            values = rng.poisson(6, 3) if counts else rng.random(3) * 4
            rows.append((name, values + (name == "A") * np.array([0, 3, 0])))
    return cells_of(rows)


def changes_of(cells, **options):
    defaults = {"column": "target", "control": "ctrl", "rng": np.random.default_rng(0)}
    return changes_of_cells(cells, **defaults | options)


def test_changes_by_hand():
    """Two cells of each perturbation, and two controls, (1.5, 1, 1) and (3.5, 1, 1), one in each half: the changes of
    A, whose mean is (4, 2, 1), are (2.5, 1, 0) against the one and (0.5, 1, 0) against the other.
    """
    rows = [("ctrl", (1.5, 1, 1)), ("ctrl", (3.5, 1, 1)), ("A", (3.25, 2, 1)), ("A", (4.75, 2, 1))]
    rows += [("B", (1, 1, 0.5)), ("B", (1, 1, 1.5)), ("X+ctrl", (2, 2, 2)), ("X+ctrl", (2, 2, 2.5))]
    found = changes_of(cells_of(rows), min_cells=1)
    assert found.perturbations == ["A", "B", "X"]
    both = {tuple(np.round(changes[0], 6)) for changes in (found.train, found.test)}
    assert both == {(2.5, 1, 0), (0.5, 1, 0)}


def test_significance_is_welch_with_benjamini_hochberg():
    """Against scipy on the same dense cells, with the second half of the controls."""
    cells = many_cells(np.random.default_rng(1))
    found = changes_of(cells)
    control = np.flatnonzero(cells.obs["target"] == "ctrl")
    half = np.array_split(np.random.default_rng(0).permutation(control), 2)[1]
    for row, name in enumerate(found.perturbations):
        perturbed = cells.X[cells.obs["target"] == name]
        p = stats.ttest_ind(perturbed, cells.X[half], equal_var=False).pvalue
        assert found.significant[row].tolist() == (stats.false_discovery_control(p) < 0.05).tolist()
        assert found.test[row] == pytest.approx(perturbed.mean(0) - cells.X[half].mean(0))
    assert found.significant[0, 1]  # A raises B by 3


def test_counts_are_normalized_to_the_median_of_the_controls():
    """Totals of the controls are 4 and 8: median 6. A cell (2, 2, 0) becomes log1p of (3, 3, 0)."""
    cells = cells_of([("ctrl", (4, 0, 0)), ("ctrl", (0, 8, 0)), *((name, (2, 2, 0)) for name in "ABC")])
    cells.X = sparse.csr_matrix(cells.X)
    found = changes_of(cells, raw_counts=True, min_cells=1)
    total = found.train + found.test  # 2 x mean of A minus both controls, log1p(6) each in one gene
    assert total[0] == pytest.approx([2 * np.log(4) - np.log(7), 2 * np.log(4) - np.log(7), 0])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"column": "gene"}, "perturbation_column='gene'.*obs has"),
        (None, {"control": "NT"}, "control='NT'.*0 control cells, and 20 are needed.*'ctrl'"),
        ("linear", {}, "X contains values up to .* take log1p"),
        ("counts", {}, "X contains whole numbers only.*For raw counts, add --raw_counts"),
        (None, {"raw_counts": True}, "contains numbers that are not counts"),
        ("nan", {}, "NaN, infinite or negative values"),
    ],
)
def test_cells_that_cannot_be_used(change, options, message):
    cells = many_cells(np.random.default_rng(0), counts=change == "counts")
    if change == "linear":
        cells.X = cells.X * 100.5
    if change == "nan":
        cells.X[0, 0] = np.nan
    with pytest.raises(ValueError, match=message):
        changes_of(cells, **options)


def test_perturbations_with_few_cells_and_cells_without_a_label_are_left_out(caplog):
    cells = many_cells(np.random.default_rng(0), perturbations=("A", "B", "C", "D"))
    cells = cells[(cells.obs["target"] != "D") | (np.cumsum(cells.obs["target"] == "D") <= 2)].copy()
    labels = cells.obs["target"].astype(object).replace("ctrl", "ctrl+ctrl")
    labels.iloc[[0, 1, 2]] = ["", None, "+"]  # three of the forty controls
    cells.obs["target"] = labels
    found = changes_of(cells)
    assert found.perturbations == ["A", "B", "C"]
    assert "fewer than 10 cells and are left out: D (2)" in caplog.text


def standardized(train, test):
    center = train.mean(0)
    length = np.sqrt(((train - center) ** 2).sum(1).mean())
    return (train - center) / length, (test - center) / length


def test_predictors_are_those_of_scikit_learn():
    """On the changes themselves, with an intercept, instead of on weights."""
    rng = np.random.default_rng(0)
    train, test, changes = rng.standard_normal((12, 5)), rng.standard_normal((4, 5)), rng.standard_normal((12, 7))
    a, b = standardized(train, test)
    mean = changes.mean(0)
    distances = ((a[:, None] - a[None]) ** 2).sum(-1)
    width = np.median(distances[np.triu_indices(12, 1)])
    seen = set()
    for name, weights_of in predictors.candidates(train, test).items():
        weights = weights_of()
        family, _, penalty = name.partition(", penalty ")
        if family == "ridge":
            reference = Ridge(alpha=float(penalty)).fit(a, changes).predict(b)
        elif family == "kernel ridge":
            model = KernelRidge(alpha=float(penalty), kernel="rbf", gamma=1 / width)
            reference = model.fit(a, changes - mean).predict(b) + mean
        else:
            neighbors = KNeighborsRegressor(int(family.split()[0]), metric="cosine").fit(train, changes)
            reference = neighbors.predict(test)
        assert weights @ changes == pytest.approx(reference, abs=1e-8), name
        seen.add(family)
    assert seen == {"ridge", "kernel ridge", *(f"{k} nearest neighbors" for k in (1, 3, 5, 10))}


def test_inner_errors_from_the_gram_matrix_are_those_of_the_changes():
    """The chosen predictor has the smallest squared error, summed over predictions that are written out."""
    rng = np.random.default_rng(3)
    vectors, changes = rng.standard_normal((15, 4)), rng.standard_normal((15, 30))
    changes[:, :10] += vectors[:, :1] * 3
    folds = predictors.fold_rows(15, 3, np.random.default_rng(5))
    errors = {}
    for test in folds:
        train = np.setdiff1d(np.arange(15), test)
        for name, weights_of in predictors.candidates(vectors[train], vectors[test]).items():
            errors[name] = errors.get(name, 0) + ((weights_of() @ changes[train] - changes[test]) ** 2).sum()
    best = predictors._best(vectors, changes @ changes.T, np.random.default_rng(5))
    assert best == min(errors, key=errors.__getitem__)
    assert best.startswith("ridge")


def test_predictions_do_not_depend_on_the_changes_of_their_fold():
    rng = np.random.default_rng(0)
    vectors, changes = rng.standard_normal((12, 4)), rng.standard_normal((12, 6))
    folds = predictors.fold_rows(12, 4, np.random.default_rng(1))
    other = changes.copy()
    other[folds[2]] = rng.standard_normal((3, 6)) * 100
    first, chosen = predictors.predict_unseen(vectors, changes, folds, rng=np.random.default_rng(2))
    second, chosen_too = predictors.predict_unseen(vectors, other, folds, rng=np.random.default_rng(2))
    assert (first[folds[2]] == second[folds[2]]).all()
    assert chosen[2] == chosen_too[2]
    assert sorted(np.concatenate(folds)) == list(range(12))


def simulated(rng, names):
    """Changes that are linear in the vectors of the genes; the first perturbation's own gene changes by -50."""
    vectors = rng.standard_normal((len(names), 6))
    changes = vectors @ rng.standard_normal((6, 40)) + 0.3 * rng.standard_normal((len(names), 40))
    changes[0, -1] = -50.0
    genes = [*(f"G{i}" for i in range(39)), names[0]]
    return Changes(names, genes, changes, changes, np.ones_like(changes, dtype=bool)), Vectors(
        names, vectors.astype(np.float32)
    )


TWENTY = [f"P{i}" for i in range(20)]


def test_a_planted_response_is_found_without_the_target_gene():
    changes, vectors = simulated(np.random.default_rng(0), TWENTY)
    scored = score_perturbations(changes, {"text": vectors})
    means = scored.scores.groupby(["metric", "model"])["score"].mean()
    assert means["pearson_delta", "text"] > 0.9
    assert means["discrimination", "text"] > 0.95
    assert means["pearson_delta"][["random", "shuffled", "training_mean", "no_change"]].max() < 0.3
    expected = np.mean([np.mean(np.delete(row, 39) ** 2 if i == 0 else row**2) for i, row in enumerate(changes.test)])
    assert means["mse", "no_change"] == pytest.approx(expected)
    assert scored.coverage == {"text": 1.0}
    assert scored.n_folds == 20
    # Another set that comes first and has other dimensions changes no score.
    other = Vectors(vectors.genes, np.random.default_rng(1).standard_normal((20, 3)))
    again = score_perturbations(changes, {"other": other, "text": vectors}).scores
    for name in ("text", "training_mean"):
        one, two = (table[table["model"] == name].reset_index(drop=True) for table in (scored.scores, again))
        assert one.equals(two)


def test_perturbations_without_a_vector_are_counted(caplog):
    changes, full = simulated(np.random.default_rng(0), TWENTY)
    some = full._replace(genes=full.genes[:15], values=full.values[:15])
    scored = score_perturbations(changes, {"full": full, "some": some})
    assert scored.coverage == {"full": 1.0, "some": 0.75}
    assert scored.changes.perturbations == [name for name in changes.perturbations if name in some.genes]
    assert "5 of 20 have no vector in one of the sets and are left out, such as P15" in caplog.text
    few = full._replace(genes=[*full.genes[:2], "Q"], values=full.values[:3])
    with pytest.raises(ValueError, match="2 of 20 perturbations have a vector in every set, and 3 are needed"):
        score_perturbations(changes, {"few": few})
