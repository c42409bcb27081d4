"""Scores of names and choices against reference implementations, and worked out by hand."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from nltk.stem.porter import PorterStemmer

from bft_trl.cli.main import main
from bft_trl.evaluation.baselines import CONSTANT, choice_baselines, enrichment_baseline, name_baselines
from bft_trl.evaluation.multiple_choice import choice_scores
from bft_trl.evaluation.names import Scorer, copies_genes, proposed_name, recorded_name, score_names
from bft_trl.evaluation.rouge import cleaned_answer, cleaned_reference, rouge_scores
from bft_trl.evaluation.scores import read_scores
from bft_trl.evaluation.similarity import background_percentile, cosine_similarity
from bft_trl.prompts import choice_answer, choice_prompt, lettered, parse_choice

WORDS = "regulation of DNA repair, cell-cycle positive mRNA (nuclear) transport IL-2/STAT5 signalling".split()  # noqa: SIM905


def f_measure(common, a, b):
    return 2 * common / (a + b) if common else 0.0


def rouge_reference(reference, answer):
    """Lin (2004): shared n-grams with multiplicity, and the longest common subsequence by plain recursion on lists."""
    stem = PorterStemmer().stem

    def words(text):
        found = re.findall("[a-z0-9]+", text.lower())
        return [stem(word) if len(word) > 3 else word for word in found]

    def longest(a, b):
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return longest(a[:-1], b[:-1]) + 1
        return max(longest(a[:-1], b), longest(a, b[:-1]))

    a = words(reference.replace('"', "").replace("-", " ").replace("/", " "))
    b = words(re.sub(r"\([^)]*\)", "", answer).replace('"', "").replace("-", " ").replace("/", " "))
    scores = {}
    for n in (1, 2):
        grams = [Counter(zip(*(t[i:] for i in range(n)), strict=False)) for t in (a, b)]
        scores[f"rouge{n}"] = f_measure(sum((grams[0] & grams[1]).values()), *(sum(g.values()) for g in grams))
    return scores | {"rougeL": f_measure(longest(a, b), len(a), len(b))}


def test_rouge_equals_the_reference():
    rng = np.random.default_rng(0)
    drawn = [[" ".join(rng.choice(WORDS, rng.integers(0, 7))) for _ in range(40)] for _ in range(2)]
    scores = rouge_scores(*drawn)
    for i, (reference, answer) in enumerate(zip(*drawn, strict=True)):
        expected = rouge_reference(reference, answer)
        assert {metric: scores[metric][i] for metric in expected} == pytest.approx(expected)


def test_rouge_by_hand():
    """'positive regulation' in 'regulation of growth': 1 of 2 and 1 of 3 words, F = 2/5; no shared pair."""
    scores = rouge_scores(["positive regulation"], ["regulation of growth"])
    assert [scores[m][0] for m in ("rouge1", "rouge2", "rougeL")] == pytest.approx([0.4, 0, 0.4])


def test_cleaning_is_geneagents():
    assert cleaned_reference('"IL-2/STAT5" (human), signalling') == "IL 2 STAT5 (human)  signalling"
    assert cleaned_answer('"IL-2/STAT5" (human), signalling') == "IL 2 STAT5   signalling"


@pytest.mark.parametrize("answer", ["", "()", "細胞週期", "клеточный цикл", "-/,"])
def test_rouge_of_what_has_no_latin_word_is_zero(answer):
    assert rouge_scores(["cell cycle"], [answer])["rouge1"].tolist() == [0]


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def test_percentile_equals_the_loop():
    rng = np.random.default_rng(1)
    background, answers = unit(rng, 31, 5), unit(rng, 300, 5)  # more answers than a chunk
    truth = rng.integers(0, 31, 300)
    percentiles = background_percentile(answers, background[truth], background)
    for answer, row, percentile in zip(answers.astype(float), truth, percentiles, strict=True):
        own = sum(answer * background[row])
        closer = sum(sum(answer * other) > own + 1e-6 for other in background.astype(float))
        assert percentile == pytest.approx(100 * (1 - closer / 31))


def test_percentile_by_hand():
    """Of four background names at 0, 60, 90 and 180 degrees from the answer, one is closer than the true one at 60."""
    angles = np.deg2rad([0, 60, 90, 180])
    background = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    answer = np.array([[1, 0]], dtype=np.float32)
    assert background_percentile(answer, background[1:2], background).tolist() == [75]
    assert background_percentile(answer, background[:1], background).tolist() == [100]
    assert cosine_similarity(answer, background[1:2]) == pytest.approx([0.5])
    with pytest.raises(ValueError, match="`background` is empty"):
        background_percentile(answer, answer, background[:0])


class Letters:
    """An encoder that counts letters: by hand, 'ab' and 'b' have the cosine 1 / sqrt(2)."""

    fingerprint = "letters"

    def encode(self, texts):
        counts = np.array([[text.count(c) for c in "abcdefgh"] for text in texts], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def test_names_with_encoder_by_hand():
    """Background a, b, h. The answer b to the true name ab: only 'b' is closer (1 > .71), so 100 (1 - 1/3)."""
    encoder = Letters()
    background = encoder.encode(["a", "b", "h"])
    table = score_names(["ab", "ab", "c"], ["b", None, "c (h)"], Scorer(encoder, background))
    assert table["similarity"].tolist() == pytest.approx([2**-0.5, 0, 1])
    assert table["percentile"].tolist() == pytest.approx([200 / 3, 0, 100])
    assert table["answer_rate"].tolist() == [1, 0, 1]
    assert "similarity" not in score_names(["ab"], ["b"])


def test_dots_and_refusals_are_no_answers():
    answers = ["...", "System of unrelated proteins", "DNA repair"]
    assert score_names(["DNA repair"] * 3, answers)["answer_rate"].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "genes", "copied"),
    [
        ("LDLRAP1, SCP2D1, ANXA2, SCP2", ["LDLRAP1", "SCP2D1", "ANXA2", "SCP2"], True),
        ("anxa2 scp2 ldlrap1", ["LDLRAP1", "SCP2D1", "ANXA2", "SCP2"], True),  # in lower case, another order, fewer
        ("HLA-DRA-HLA-DRB1-CD74", ["HLA-DRA", "HLA-DRB1", "CD74"], True),
        ("HLA DRA and HLADRB1", ["HLA-DRA", "HLA-DRB1", "CD74"], True),
        ("1. SCP-2\n2. ANXA 2", ["SCP2", "ANXA2"], True),
        ("Genes involved in SCP2, ANXA2", ["SCP2", "ANXA2"], True),
        ("SCP2, ANXA2, LDLRAP1 transport", ["SCP2", "ANXA2", "LDLRAP1"], True),  # 3 genes, 1 other word
        ("JAK2/STAT3 signaling", ["JAK2", "STAT3"], False),  # 2 genes, 1 other word
        ("Genes: TP53/MDM2; ATM", ["TP53", "MDM2", "ATM"], True),
        ("TP53", ["TP53", "MDM2"], True),
        ("SCP2D1", ["SCP2"], False),  # a longer symbol is another gene
        ("MAPK signaling", ["MAPK1", "MAPK3"], False),
        ("Notch signaling pathway", ["NOTCH1", "DLL1"], False),
        ("p53-mediated apoptosis", ["TP53", "BAX"], False),
        ("KIT signaling", ["KIT", "KITLG"], False),  # 1 gene, 1 other word
        ("WNT5A-Induced Non-Canonical Wnt Signaling", ["WNT5A", "FZD5"], False),
        ("Cholesterol transport (LDLRAP1, SCP2D1, SCP2)", ["LDLRAP1", "SCP2D1", "SCP2"], False),
        ("", ["TP53"], False),
        ("DNA repair", [], False),
    ],
)
def test_copies_of_the_genes(name, genes, copied):
    assert copies_genes(name, genes) == copied
    assert proposed_name(name, genes) == (None if copied else name)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("DNA repair", "DNA repair"),
        ("Process: DNA repair\n\nBecause.", "DNA repair"),
        ("Process: Process: DNA repair", "DNA repair"),
        ("I think:\n**Process:** DNA repair", "DNA repair"),
        ("This is an essay.\nIt names nothing.", None),
        ("Process:", None),
        ("  ", None),
        (float("nan"), None),
        ("<b>DNA</b> repair", "<b>DNA</b> repair"),
        ("DNA修復", "DNA修復"),
        ("process of DNA repair", "process of DNA repair"),
        ("**Process:**", None),
        ("# Process : <name>", None),
    ],
)
def test_recorded_names(answer, name):
    assert recorded_name(answer) == name


def test_a_huge_answer_is_scored():
    answer = "DNA repair " * 10_000
    assert score_names(["DNA repair"], [answer])["rouge1"][0] == pytest.approx(4 / 20_002)


# --- baselines -------------------------------------------------------------------------------------------------------


def test_name_baselines():
    names = ["x", "y", "x", "z"]
    genes = [["A"], ["B", "C"], ["D"], []]
    full = {"A": "DNA repair protein 1", "B": "Zinc finger DNA repair helicase", "C": "helicase like and DNA ligase"}
    baselines = name_baselines(names, genes, rng=np.random.default_rng(0), gene_names=full)
    constant, frequent, others, copies, words = baselines.values()
    assert constant == [CONSTANT] * 4
    assert frequent == ["x"] * 4
    assert sorted(others) == sorted(names)
    assert copies == ["A", "B, C", "D", ""]
    # dna and helicase are in both names of B and C; zinc is the first of the other words
    assert words == ["dna repair", "dna helicase zinc", "", ""]
    again = name_baselines(names, genes, rng=np.random.default_rng(0))
    assert again == {name: baselines[name] for name in list(baselines)[:4]}
    # no set gets its own name, whatever the seed
    many = [str(i) for i in range(7)]
    for seed in range(50):
        others = name_baselines(many, [["A"]] * 7, rng=np.random.default_rng(seed))["another set's name"]
        assert all(a != b for a, b in zip(many, others, strict=True))
    with pytest.raises(ValueError, match="`names` has 1 entry"):
        name_baselines(["x"], [["A"]], rng=np.random.default_rng(0))


def test_choice_baselines():
    baselines = choice_baselines(["yes", "no", "yes"], [3, 3, 3])
    assert baselines["chance"] == pytest.approx([1 / 3] * 3)
    assert baselines["most frequent answer"].tolist() == [1, 0, 1]


def test_enrichment_finds_the_planted_term():
    """Of 45 genes, A to D make a term of their own; the other term holds all."""
    background = [f"G{i}" for i in range(40)]
    library = {"DNA repair": list("ABCD"), "everything": [*"abcde", *background]}
    assert enrichment_baseline([["a", "B", "C"], ["UNKNOWN"]], library) == ["DNA repair", ""]


# --- multiple choice -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Answer: B", "B"),
        ("First A seems right.\n\n**Answer: (C)**", "C"),
        ("Answer: A\nNo, wait.\nAnswer: D", "D"),
        ("Answer: b", "B"),
        ("The answer is C because of the heart.", "C"),
        ("Answer: B. A vitamin", "B"),
        ("Answer: <A>", "A"),
        ("(D).", "D"),
        ("Answer: C, because B is wrong", "C"),
        ("Answer: A or B", None),
        ("Answer: A, B", None),
        ("Answer: B and C", None),
        ("Answer: B; C", None),
        ("Answer: B (or C)", None),
        ("Answer: B | C", None),
        ("Answer: B C", None),
        ("Answer: (A) (B)", None),
        ("Answer: A, Answer: B", None),
        ("Answer: B. Metoprolol or C. Verapamil", None),
        ("Answer: B, a beta blocker", "B"),
        ("The answer is B and a repeat dose", "B"),
        ("Answer: B. Vitamin C", "B"),
        ("Answer: B. C. difficile", "B"),
        ("Answer: B, C. difficile", "B"),
        ("Answer: \\boxed{B}", "B"),
        ("Answer: `B`", "B"),
        ("Answer: A/D", None),
        ("Answer: A patient needs rest", None),
        ("Answer: E", None),
        ("I like A", None),
        ("", None),
        ("答案: B", None),
        ("x" * 100_000, None),
    ],
)
def test_choices_are_read(answer, label):
    assert parse_choice(answer, "ABCD") == label
    assert choice_scores(answer, labels="ABCD", target="B") == {
        "acc": float(label == "B"),
        "readable": float(label is not None),
    }


def test_words_as_labels():
    labels = ["yes", "no", "maybe"]
    answers = ("Answer: No.", "maybe", "Answer: yes or no", "Answer: nothing", "Answer: Yes, no doubt")
    assert [parse_choice(a, labels) for a in answers] == ["no", "maybe", None, None, "yes"]


def test_a_long_answer_is_read_quickly():
    """Nested repetition would take minutes here, and quadratic search half a minute."""
    code = (
        "from bft_trl.prompts import parse_choice, parse_process\n"
        "from bft_trl.evaluation.rouge import cleaned_answer\n"
        "parse_choice('answer ' * 20000 + '* ' * 20000, 'ABCD'); parse_choice('Answer: A' + ' (' * 50000, 'ABCD')\n"
        "parse_process(chr(10) * 200000); parse_process('Process' + '*' * 200000); cleaned_answer('(' * 200000)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_choice_prompt_and_answer():
    letters = choice_prompt("Which?", lettered(["heart", "lung"]), context="A study.", reasoning=True)
    assert letters == (
        "A study.\n\nWhich?\n\nA. heart\nB. lung\n\n"
        'Think step by step, then write "Answer: <letter>" on the last line.'
    )
    words = choice_prompt("Is it?", {"yes": "", "no": "", "maybe": ""})
    assert words == 'Is it?\n\nWrite "Answer: <yes, no or maybe>" and nothing else.'
    assert choice_answer("A") == "Answer: A"
    assert parse_choice(choice_answer("B", reasoning="Because A is wrong."), "AB") == "B"
    with pytest.raises(ValueError, match="`question` is empty"):
        choice_prompt("  ", {"A": "x"})
    with pytest.raises(ValueError, match="`options` has 1 entries"):
        lettered(["x"])


# --- bft-trl score ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    references = tmp_path / "references.csv"
    references.write_text("id,name,genes\n1,DNA repair,A B\n2,cell cycle,C D\n3,ion transport,E F\n")
    predictions = tmp_path / "predictions.jsonl"
    answers = {"good": ["DNA repair", "cell cycle", "ion transport"], "poor": ["DNA damage", "", "growth"]}
    rows = [
        {"id": str(i + 1), "predicted_name": name, "model": model}
        for model, names in answers.items()
        for i, name in enumerate(names)
    ]
    predictions.write_text("\n".join(json.dumps(row) for row in rows))
    return predictions, references


def score(files, out, *extra):
    predictions, references = files
    command = ["score", "--predictions", str(predictions), "--references", str(references), "--output_dir", str(out)]
    return main([*command, *extra])


def summary_of(out):
    return pd.read_csv(out / "summary.csv").set_index(["model", "metric"])


def test_score_by_hand(files, tmp_path):
    """poor: 'DNA damage' shares 1 of 2 words, F 0.5; the others 0: mean 1/6, standard error (0.5 / 3) exactly.

    Deviations from 1/6 are 2/6, -1/6, -1/6: their sum of squares is 6/36, over 2 is 1/12, over 3 is 1/36, root 1/6.
    """
    assert score(files, tmp_path / "out", "--baselines") == 0
    summary = summary_of(tmp_path / "out")
    assert summary.loc[("good", "rougeL"), ["n", "mean", "stderr"]].tolist() == [3, 1, 0]
    assert summary.loc[("poor", "rouge1"), ["mean", "stderr"]].tolist() == pytest.approx([1 / 6, 1 / 6])
    assert summary.loc[("poor", "answer_rate"), "mean"] == pytest.approx(2 / 3)
    scores, settings = read_scores(tmp_path / "out")
    assert scores.columns.tolist() == ["task", "metric", "unit", "model", "seed", "score"]
    # models, metrics and sets; baselines have no answer rate
    assert len(scores) == 2 * 4 * 3 + 4 * 3 * 3
    assert [name for name, model in settings["models"].items() if model["kind"] == "baseline"] == [
        'baseline: constant "regulation of cell process"',
        "baseline: most frequent name",
        "baseline: another set's name",
        "baseline: the genes",
    ]
    task = settings["tasks"]["gene_sets"]
    assert (task["scorer_version"], task["encoder_fingerprint"], task["background_fingerprint"]) == ("3", None, None)
    answers = pd.read_parquet(tmp_path / "out" / "answers.parquet").set_index(["model", "unit"])
    assert answers.loc[("poor", "1"), ["reference", "answer"]].tolist() == ["DNA repair", "DNA damage"]


def test_score_with_a_library(files, tmp_path):
    """Two terms with the same readable name are one answer; a GO library on GO sets is marked as an oracle."""
    gmt = tmp_path / "lib.gmt"
    gmt.write_text("GOBP_DNA_REPAIR\tx\tA\tB\nDNA REPAIR\tx\tC\tD\nother\tx\tE\tF\tG\n")
    assert score(files, tmp_path / "o", "--gmt", str(gmt)) == 0
    assert summary_of(tmp_path / "o").loc["enrichment: lib.gmt", "kind"].unique() == ["enrichment"]
    scores = read_scores(tmp_path / "o")[0].query("model == 'enrichment: lib.gmt' and metric == 'rouge1'")
    assert scores["score"].tolist() == [1, 0, 0]
    go = tmp_path / "go.csv"
    go.write_text("id,name,genes\nGO:1,DNA repair,A B\nGO:2,cell cycle,C D\n")
    gmt.write_text("DNA repair (GO:0000001)\tx\tA\tB\ncell cycle (GO:0000002)\tx\tC\tD\tE\n")
    answers = tmp_path / "a.csv"
    answers.write_text("id,predicted_name\nGO:1,x\nGO:2,y\n")
    assert score((answers, go), tmp_path / "p", "--gmt", str(gmt)) == 0
    oracle = summary_of(tmp_path / "p").loc["oracle: lib.gmt (a GO library on GO sets)", "rouge1"]
    assert (oracle["kind"], oracle["mean"]) == ("oracle", 1)


def test_missing_predictions(files, tmp_path, capsys):
    answers = tmp_path / "some.csv"
    answers.write_text("id,predicted_name\n1,DNA repair\n3,ion transport\n")
    assert score((answers, files[1]), tmp_path / "o") == 2
    message = capsys.readouterr().err
    assert "model 'some' has no prediction for id '2'" in message
    assert '`missing="empty"` scores' in message
    for missing, expected in {"empty": [3, 2 / 3], "skip": [2, 1]}.items():
        assert score((answers, files[1]), tmp_path / missing, "--missing", missing) == 0
        found = summary_of(tmp_path / missing).loc[("some", "rouge1"), ["n", "mean"]].tolist()
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ("id,predicted_name\n1,a\n9,b\n", None, "not among the references: id '9'"),
        ("id,predicted_name\n1,a\n1,b\n2,c\n3,d\n", None, "two answers for id '1'"),
        ("id,name\n1,a\n", None, r"p.csv: has no column ['predicted_name']"),
        (
            "id,predicted_name,model\n1,a,\n2,b,m\n3,c,m\n",
            None,
            "bad name of a model (none, or one that begins with baseline:, oracle: or enrichment:) nan",
        ),
        ("id,predicted_name,model\n1,a,oracle: x\n2,b,m\n3,c,m\n", None, "enrichment:) 'oracle: x'"),
        ("id,predicted_name\n1,a\n,b\n3,c\n", None, "p.csv: no id in row (counted from 0) 1"),
        (None, "id,name,genes\n1,x,A\n1,y,B\n", "r.csv: repeated id '1'"),
        (None, "id,name,genes\n1,,A\n2,y,B\n", "r.csv: no name for id '1'"),
        (None, "id,title,genes\n1,x,A\n", r"r.csv: has no column ['name']"),
        (None, "id,name\n1,x\n", r"r.csv: has no column ['genes']"),
    ],
)
def test_bad_score_input_is_one_line_and_nothing_is_written(predictions, references, words, files, tmp_path, capsys):
    p, r = tmp_path / "p.csv", tmp_path / "r.csv"
    p.write_text(predictions or "id,predicted_name\n1,a\n2,b\n3,c\n")
    r.write_text(references or files[1].read_text())
    assert score((p, r), tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert message.startswith("bft-trl: error: ")
    assert words in message
    assert not (tmp_path / "out" / "scores.parquet").exists()


def test_bad_score_options(files, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    for flags, words in {
        ("--output_dir", str(tmp_path / "out" / "deeper")): "is a file",
        ("--seed", "-1"): "`seed=-1` must be 0 or more",
        ("--background", "names.txt"): "needs `encoder`",
        ("--task", "bft_medmcqa"): "Set either `references`",
        ("--source", "go"): "has no column source; its columns are ['id', 'predicted_name', 'model']",
    }.items():
        assert score(files, tmp_path / "o", *flags) == 2
        assert words in capsys.readouterr().err


def test_importing_the_metrics_loads_neither_torch_nor_trl():
    code = (
        "import sys, bft_trl.evaluation.names, bft_trl.evaluation.baselines, bft_trl.models\n"
        "sys.exit(bool({'torch', 'trl', 'rouge_score', 'sentence_transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
