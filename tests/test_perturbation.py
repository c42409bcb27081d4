"""Perturbation response: metrics by hand and beside cell-eval, changes by hand, predictors beside scikit-learn."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

from bft_trl.biology import metrics, predictors
from bft_trl.biology.cells import Changes, changes_of_cells, changes_of_table, read_anndata
from bft_trl.biology.perturbation import METRICS, score_perturbations, target_genes_left_out

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
    changes = Changes(genes[:6], genes, true, true, None, {})
    for ours, other in (
        (metrics.pearson_delta(predicted, true, everything), theirs.pearson_delta(pair)),
        (metrics.mse(predicted, true, everything), theirs.mse_delta(pair)),
        (metrics.mae(predicted, true, everything), theirs.mae_delta(pair)),
    ):
        assert ours == pytest.approx([other[gene] for gene in genes[:6]], abs=1e-6)
    ours = metrics.discrimination(predicted, true, target_genes_left_out(changes))
    other = theirs.discrimination_score(pair, metric="l1")
    assert (1 - ours) * 5 / 6 == pytest.approx([1 - other[gene] for gene in genes[:6]])


def cells_of(rows, *, genes=("A", "B", "X"), column="target"):
    """An AnnData from (perturbation, expression) rows."""
    names, values = zip(*rows, strict=True)
    obs = pd.DataFrame({column: names}, index=[f"c{i}" for i in range(len(names))])
    return anndata.AnnData(np.array(values, dtype=np.float64), obs=obs, var=pd.DataFrame(index=list(genes)))


def many_cells(rng, *, counts=False, perturbations=("A", "B", "C"), n_control=40):
    rows = []
    for name in ("ctrl", *perturbations):
        for _ in range(n_control if name == "ctrl" else 20):
            values = rng.poisson(6, 3) if counts else rng.random(3) * 4
            rows.append((name, values + (name == "A") * np.array([0, 3, 0])))
    return cells_of(rows)


def test_changes_by_hand():
    """Two cells of each perturbation, and two controls, (1.5, 1, 1) and (3.5, 1, 1), one in each half: the changes of
    A, whose mean is (4, 2, 1), are (2.5, 1, 0) against the one and (0.5, 1, 0) against the other.
    """
    rows = [("ctrl", (1.5, 1, 1)), ("ctrl", (3.5, 1, 1))]
    rows += [
        ("A", (3.25, 2, 1)),
        ("A", (4.75, 2, 1)),
        ("B", (1, 1, 0.5)),
        ("B", (1, 1, 1.5)),
        ("X+ctrl", (2, 2, 2)),
    ] * 1
    rows += [("X+ctrl", (2, 2, 2.5))]
    found = changes_of_cells(
        cells_of(rows), column="target", control="ctrl", min_cells=1, rng=np.random.default_rng(0)
    )
    assert found.perturbations == ["A", "B", "X"]
    both = {tuple(np.round(changes[0], 6)) for changes in (found.train, found.test)}
    assert both == {(2.5, 1, 0), (0.5, 1, 0)}
    assert found.report["cells"] == {"A": 2, "B": 2, "X": 2}
    assert found.report["control_cells"] == [1, 1]


def test_significance_is_welch_with_benjamini_hochberg():
    """Against scipy on the same dense cells, whichever half of the controls is used for the test."""
    cells = many_cells(np.random.default_rng(1))
    found = changes_of_cells(cells, column="target", control="ctrl", rng=np.random.default_rng(0))
    control = np.flatnonzero(cells.obs["target"] == "ctrl")
    half = np.array_split(np.random.default_rng(0).permutation(control), 2)[1]
    for row, name in enumerate(found.perturbations):
        perturbed = cells.X[cells.obs["target"] == name]
        p = stats.ttest_ind(perturbed, cells.X[half], equal_var=False).pvalue
        assert found.significant[row].tolist() == (stats.false_discovery_control(p) < 0.05).tolist()
        assert found.test[row] == pytest.approx(perturbed.mean(0) - cells.X[half].mean(0))
    assert found.significant[0, 1]  # A raises B by 3


def test_counts_are_normalised_to_the_median_of_the_controls():
    """Totals of the controls are 4 and 8: median 6. A cell (2, 2, 0) becomes log1p of (3, 3, 0)."""
    rows = [("ctrl", (4, 0, 0)), ("ctrl", (0, 8, 0))]
    rows += [(name, (2, 2, 0)) for name in "ABC"]
    cells = cells_of(rows)
    cells.X = sparse.csr_matrix(cells.X)
    found = changes_of_cells(
        cells, column="target", control="ctrl", counts=True, min_cells=1, rng=np.random.default_rng(0)
    )
    total = found.train + found.test  # 2 x mean of A minus both controls, log1p(6) each in one gene
    assert total[0] == pytest.approx([2 * np.log(4) - np.log(7), 2 * np.log(4) - np.log(7), 0])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"column": "gene"}, "perturbation_column='gene'.*obs has"),
        (None, {"control": "NT"}, "control='NT'.*0 control cells, and 20 are needed.*'ctrl'"),
        (None, {"min_cells": 0}, "min_cells=0. must be 1 or more"),
        (None, {"control": "zzz"}, "control='zzz'.*0 control cells"),
        ("linear", {}, "far above log expression: take log1p"),
        (None, {"min_cells": 21}, "control cells, and 42 are needed|leaves 0 perturbations"),
        ("counts", {}, "raw counts, where log expression is expected. Add --counts"),
        ("many counts", {}, "raw counts, where log expression is expected. Add --counts"),
        (None, {"counts": True}, "hold.* numbers that are no counts"),
        ("negative", {}, "negative values .down to -1"),
        ("nan", {}, "1 values that are NaN"),
    ],
)
def test_cells_that_cannot_be_used(change, options, message):
    cells = many_cells(np.random.default_rng(0), counts=change in ("counts", "many counts"))
    if change == "many counts":
        cells.X = cells.X * 50
    if change == "linear":
        cells.X = cells.X * 100.5
    if change == "negative":
        cells.X[0, 0] = -1
    if change == "nan":
        cells.X[0, 0] = np.nan
    with pytest.raises(ValueError, match=message):
        changes_of_cells(cells, **{"column": "target", "control": "ctrl", "rng": np.random.default_rng(0)} | options)


def test_a_perturbation_of_two_cells_is_left_out_and_named(caplog):
    cells = many_cells(np.random.default_rng(0), perturbations=("A", "B", "C", "D"))
    keep = (cells.obs["target"] != "D") | (np.cumsum(cells.obs["target"] == "D") <= 2)
    with caplog.at_level(logging.WARNING):
        found = changes_of_cells(cells[keep], column="target", control="ctrl", rng=np.random.default_rng(0))
    assert found.report["left_out"] == {"D": 2}
    assert "fewer than 10 cells and are left out: D (2)" in caplog.text


def test_cells_without_a_label_are_no_controls(caplog):
    cells = many_cells(np.random.default_rng(0))
    labels = cells.obs["target"].astype(object).copy()
    labels.iloc[[0, 1, 2]] = ["", None, "+"]  # three of the forty controls
    cells.obs["target"] = labels
    found = changes_of_cells(cells, column="target", control="ctrl", rng=np.random.default_rng(0))
    assert sum(found.report["control_cells"]) == 37
    assert found.perturbations == ["A", "B", "C"]
    assert "3 cells have no perturbation and are left out" in caplog.text
    cells.obs["target"] = labels.replace("ctrl", "ctrl+ctrl")
    assert (
        sum(
            changes_of_cells(cells, column="target", control="ctrl", rng=np.random.default_rng(0)).report[
                "control_cells"
            ]
        )
        == 37
    )


def test_an_h5ad_cut_short(tmp_path):
    whole = tmp_path / "whole.h5ad"
    many_cells(np.random.default_rng(0)).write_h5ad(whole)
    cut = tmp_path / "cut.h5ad"
    for length in (0, 100, whole.stat().st_size // 2, whole.stat().st_size - 1):
        cut.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(ValueError, match="cut.h5ad: cannot be read as h5ad, was it cut short"):
            read_anndata(cut)
    with pytest.raises(FileNotFoundError, match="none.h5ad: no such file"):
        read_anndata(tmp_path / "none.h5ad")
    assert read_anndata(whole).shape == (100, 3)


def delta_table(tmp_path, rows, name="delta.csv"):
    pd.DataFrame(rows, columns=["perturbation", "gene", "delta"]).to_csv(tmp_path / name, index=False)
    return tmp_path / name


def test_changes_of_a_table(tmp_path, caplog):
    rows = [(name, gene, i) for i, (name, gene) in enumerate((n, g) for n in ("B+A", "C+ctrl", "D") for g in "YX")]
    found = changes_of_table(delta_table(tmp_path, rows), control="ctrl")
    assert found.perturbations == ["A+B", "C", "D"]
    assert found.genes == ["X", "Y"]
    assert found.train.tolist() == [[1, 0], [3, 2], [5, 4]]
    assert found.significant is None
    assert "no column 'fdr': no sign accuracy" in caplog.text
    with pytest.raises(ValueError, match="no finite delta of 'Y' under 'D'.*each perturbation needs each gene"):
        changes_of_table(delta_table(tmp_path, [row for row in rows if row[:2] != ("D", "Y")]))
    with pytest.raises(ValueError, match="'D' and 'X' stand together more than once"):
        changes_of_table(delta_table(tmp_path, [*rows, ("D", "X", 1)]))
    with pytest.raises(ValueError, match="'delta' must be numbers"):
        changes_of_table(delta_table(tmp_path, [*rows, ("E", "X", "x")]))
    with pytest.raises(ValueError, match="1 rows lack a perturbation or a gene, the first is row 6"):
        changes_of_table(delta_table(tmp_path, [*rows, (None, "X", 1)]))
    with_controls = [*rows, ("ctrl", "X", 9), ("ctrl+ctrl", "X", 9)]
    assert changes_of_table(delta_table(tmp_path, with_controls), control="ctrl").perturbations == ["A+B", "C", "D"]
    with pytest.raises(ValueError, match="1 perturbations; at least 3"):
        changes_of_table(delta_table(tmp_path, rows[:2]))


def standardised(train, test):
    centre = train.mean(0)
    length = np.sqrt(((train - centre) ** 2).sum(1).mean())
    return (train - centre) / length, (test - centre) / length


def test_predictors_are_those_of_scikit_learn():
    """On the changes themselves, with an intercept, instead of on weights."""
    rng = np.random.default_rng(0)
    train, test, changes = rng.standard_normal((12, 5)), rng.standard_normal((4, 5)), rng.standard_normal((12, 7))
    a, b = standardised(train, test)
    mean = changes.mean(0)
    distances = ((a[:, None] - a[None]) ** 2).sum(-1)
    width = np.median(distances[np.triu_indices(12, 1)])
    seen = set()
    for name, weigh in predictors.candidates(train, test).items():
        weights = weigh()
        family, _, penalty = name.partition(", penalty ")
        if family == "ridge":
            twin = Ridge(alpha=float(penalty)).fit(a, changes).predict(b)
        elif family == "kernel ridge":
            model = KernelRidge(alpha=float(penalty), kernel="rbf", gamma=1 / width)
            twin = model.fit(a, changes - mean).predict(b) + mean
        else:
            neighbours = KNeighborsRegressor(int(family.split()[0]), metric="cosine").fit(train, changes)
            twin = neighbours.predict(test)
        assert weights @ changes == pytest.approx(twin, abs=1e-8), name
        seen.add(family)
    assert seen == {"ridge", "kernel ridge", *(f"{k} nearest neighbours" for k in (1, 3, 5, 10))}


def test_inner_errors_from_the_gram_matrix_are_those_of_the_changes():
    """The chosen predictor has the smallest squared error, summed over predictions that are written out."""
    rng = np.random.default_rng(3)
    vectors, changes = rng.standard_normal((15, 4)), rng.standard_normal((15, 30))
    changes[:, :10] += vectors[:, :1] * 3
    folds = predictors.fold_rows(15, 3, np.random.default_rng(5))
    errors = {}
    for test in folds:
        train = np.setdiff1d(np.arange(15), test)
        for name, weigh in predictors.candidates(vectors[train], vectors[test]).items():
            errors[name] = errors.get(name, 0) + ((weigh() @ changes[train] - changes[test]) ** 2).sum()
    best = predictors._best(vectors, changes @ changes.T, np.eye(15, dtype=bool), np.random.default_rng(5))
    assert best == min(errors, key=errors.__getitem__)
    assert best.startswith("ridge")


def test_what_is_predicted_is_not_looked_at():
    """Other changes of a fold leave its predictions as they are, and its chosen predictor."""
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


def test_what_shares_a_gene_is_not_looked_at_either(tmp_path):
    """Eight genes, alone and in every pair, under vectors that mean nothing: seen in a pair, a gene would be known."""
    rng = np.random.default_rng(0)
    genes = [f"P{i}" for i in range(8)]
    names = [*genes, *(f"{a}+{b}" for i, a in enumerate(genes) for b in genes[i + 1 :])]
    effect = {gene: rng.standard_normal(30) for gene in genes}
    changes = np.array([sum(effect[gene] for gene in name.split("+")) for name in names])
    data = Changes(names, [f"G{i}" for i in range(30)], changes, changes, None, {})
    path = write_vectors(tmp_path / "noise.parquet", genes, rng.standard_normal((8, 5)))
    scored = score_perturbations(data, [path], tmp_path / "out")
    singles = scored.scores[scored.scores["perturbation"].isin(genes)].groupby("name")["pearson_delta"].mean()
    assert singles[["noise", "random", "shuffled", "training_mean"]].max() < 0.3
    # P0 is predicted from the 7 + 21 perturbations without it, whatever those with it were.
    related = np.array([[bool({*a.split("+")} & {*b.split("+")}) for b in names] for a in names])
    train = predictors.training_rows(np.array([0]), related)
    assert [names[row] for row in train] == [name for name in names if "P0" not in name]
    assert scored.report["n_train"] == 6 + 15  # a pair shares a gene with more


@pytest.mark.parametrize(("count", "folds"), [(3, None), (4, 2), (5, 2)])
def test_the_fewest_perturbations(tmp_path, count, folds):
    changes, vectors = simulated(np.random.default_rng(0), planted=1.0, names=[f"P{i}" for i in range(count)])
    path = write_vectors(tmp_path / "text.parquet", list(vectors), list(vectors.values()))
    scored = score_perturbations(changes, [path], tmp_path / "out", folds=folds)
    assert np.isfinite(scored.predicted["text"]).all()


def test_sums_of_single_perturbations_by_hand():
    found = predictors.additive(["A", "B", "A+B", "A+C"], np.array([[1.0, 2], [10, 20], [0, 0], [0, 0]]))
    assert found[2].tolist() == [11, 22]
    assert np.isnan(found[[0, 1, 3]]).all()


def write_vectors(path, genes, values):
    pd.DataFrame({"gene": genes, "vector": list(np.asarray(values, dtype=np.float32))}).to_parquet(path)
    return path


def simulated(rng, *, planted, names=None, n_genes=40):
    names = names or [f"P{i}" for i in range(20)]
    genes = [f"G{i}" for i in range(n_genes - 1)] + [names[0]]
    singles = sorted({gene for name in names for gene in name.split("+")})
    vectors = {gene: rng.standard_normal(6) for gene in singles}
    weights = rng.standard_normal((6, n_genes)) * planted
    effect = {gene: vectors[gene] @ weights + 0.3 * rng.standard_normal(n_genes) for gene in singles}
    changes = np.array([sum(effect[gene] for gene in name.split("+")) for name in names])
    changes[0, -1] = -50.0  # its own gene
    significant = np.ones_like(changes, dtype=bool)
    return Changes(names, genes, changes, changes, significant, {"left_out": {}}), vectors


def test_a_planted_response_is_found_and_the_target_gene_left_out(tmp_path):
    changes, vectors = simulated(np.random.default_rng(0), planted=1.0)
    path = write_vectors(tmp_path / "text.parquet", list(vectors), list(vectors.values()))
    scored = score_perturbations(changes, [path], tmp_path / "out")
    table = scored.scores.groupby(["target_gene", "name"])[list(METRICS)].mean()
    left_out = table.loc["left out"]
    assert left_out.loc["text", "pearson_delta"] > 0.9
    assert left_out.loc["text", "discrimination"] > 0.95
    for control in ("random", "shuffled", "training_mean", "no_change"):
        assert left_out.loc[control, "pearson_delta"] < 0.3
    assert left_out.loc["no_change", "mse"] == pytest.approx(
        np.mean([np.mean(np.delete(row, 39) ** 2 if i == 0 else row**2) for i, row in enumerate(changes.test)])
    )
    # With its own gene, at -50, the first perturbation's error is far greater.
    assert table.loc["kept"].loc["text", "mse"] > left_out.loc["text", "mse"] + 50**2 / 40 / 20 / 2
    assert scored.coverage == {"text": 1.0}
    assert scored.report["folds"] == "leave one out"
    # The same again, and the same beside another set that comes first and has other dimensions.
    other = write_vectors(tmp_path / "other.parquet", list(vectors), np.random.default_rng(1).standard_normal((20, 3)))
    for paths in ([path], [other, path]):
        again = score_perturbations(changes, paths, tmp_path / "out").scores
        for name in ("text", "training_mean"):
            one, two = (table[table["name"] == name].reset_index(drop=True) for table in (scored.scores, again))
            assert one.equals(two)


def test_double_perturbations_have_summed_vectors_and_an_additive_baseline(tmp_path):
    names = [*(f"P{i}" for i in range(8)), "P0+P1", "P2+P3", "P4+Q"]
    changes, vectors = simulated(np.random.default_rng(0), planted=1.0, names=names)
    path = write_vectors(tmp_path / "text.parquet", list(vectors), list(vectors.values()))
    scored = score_perturbations(changes, [path], tmp_path / "out")
    assert scored.report["with_additive"] == ["P0+P1", "P2+P3"]
    additive = scored.scores[scored.scores["name"] == "additive"]
    assert set(additive["perturbation"]) == {"P0+P1", "P2+P3"}
    # Ranked among all eleven, as the others are, not among the two that have a sum.
    for row, one in ((8, "P0+P1"), (9, "P2+P3")):
        distances = np.abs(np.delete(changes.test - scored.predicted["additive"][row], [39], axis=1)).sum(1)
        nearer = (distances < distances[row]).sum()
        chosen = additive[(additive["perturbation"] == one) & (additive["target_gene"] == "kept")]
        if one == "P2+P3":  # P0 is a gene of the data, and left out where it is perturbed
            distances = np.abs(changes.test - scored.predicted["additive"][row]).sum(1)
            nearer = (distances < distances[row]).sum()
            assert chosen["discrimination"].item() == pytest.approx(1 - nearer / 10)
    assert scored.predicted["additive"][8] == pytest.approx(changes.train[0] + changes.train[1])


def test_perturbations_without_a_vector_are_counted(tmp_path, caplog):
    changes, vectors = simulated(np.random.default_rng(0), planted=1.0)
    genes = list(vectors)
    full = write_vectors(tmp_path / "full.parquet", genes, [vectors[gene] for gene in genes])
    some = write_vectors(tmp_path / "some.parquet", genes[:15], [vectors[gene] for gene in genes[:15]])
    scored = score_perturbations(changes, [full, some], tmp_path / "out", folds=3)
    assert scored.coverage == {"full": 1.0, "some": 0.75}
    assert scored.changes.perturbations == [name for name in changes.perturbations if name in genes[:15]]
    assert "5 of 20 perturbations have no vector in one of the sets" in caplog.text
    few = write_vectors(tmp_path / "few.parquet", [*genes[:2], "Q"], [vectors[gene] for gene in genes[:3]])
    with pytest.raises(ValueError, match="2 of 20 perturbations have a vector in every set, and 3 are needed"):
        score_perturbations(changes, [few], tmp_path / "out")
    with pytest.raises(ValueError, match="folds=21.*at most 20"):
        score_perturbations(changes, [full], tmp_path / "out", folds=21)
    with pytest.raises(ValueError, match="'random' is the name of a control"):
        score_perturbations(changes, [tmp_path / "random.parquet"], tmp_path / "out")
