"""What holds for any input: 200 examples of each in `make test`, 10,000 in the long target."""

import csv
import gc
import itertools
import json
import math
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import scipy.stats
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bft_trl.biology import task_metrics
from bft_trl.biology.pairs import read_pairs
from bft_trl.comparison.statistics import (
    MCNEMAR,
    cross_validated,
    holm,
    paired_interval,
    paired_test,
    smallest_difference,
)
from bft_trl.data.tables import (
    ids_as_text,
    parquet_bytes,
    read_gene_sets,
    read_gmt,
    split_genes,
)
from bft_trl.evaluation.multiple_choice import choice_scores
from bft_trl.evaluation.names import recorded_name
from bft_trl.evaluation.rouge import ROUGE, rouge_scores
from bft_trl.evaluation.similarity import background_percentile, cosine_similarity
from bft_trl.lm_head import frozen_log_probs
from bft_trl.prompts import (
    LETTERS,
    choice_answer,
    choice_prompt,
    gene_set_answer,
    has_process_line,
    lettered,
    parse_choice,
    parse_process,
)
from bft_trl.weighting import supervised_tokens, token_and_sample_weights

pytestmark = pytest.mark.property

seeds = st.integers(0, 2**32 - 1)
# A text file has no NUL; half of a surrogate pair is no character.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(st.one_of(characters, st.sampled_from("\",;\t\n\r'\\| ")), max_size=12)
# Prose with what the parsers look for.
pieces = [
    "Process",
    "process:",
    "Answer:",
    "answer is",
    "A",
    "B",
    " or ",
    "(",
    ")",
    "*",
    '"',
    "\n",
    ":",
    "<name>",
    "yes",
]
answers = st.lists(st.one_of(st.sampled_from(pieces), texts), max_size=12).map("".join)


# --- weights ---------------------------------------------------------------------------------------------------------

log_probs = st.floats(-18, 0, width=32)
samples_of_tokens = st.lists(st.lists(log_probs, min_size=1, max_size=12), min_size=1, max_size=6)
rules = st.fixed_dictionaries(
    {
        "version": st.sampled_from(["v1", "v3"]),
        "group_size": st.integers(1, 16),
        "confidence_mean": st.sampled_from(["geometric", "arithmetic"]),
        "confidence_gamma": st.floats(0.25, 4),
        "min_token_weight": st.sampled_from([0.0, 0.1, 1.0]),
    }
)


def weights_of(samples, **rule):
    """Per sample: its token weights, and sample weight, group confidence and whether the window acts."""
    lengths = torch.tensor([len(sample) for sample in samples])
    found = token_and_sample_weights(torch.tensor([x for sample in samples for x in sample]), lengths, **rule)
    rows = zip(found.sample.tolist(), found.group_confidence.tolist(), found.windowed.tolist(), strict=True)
    return [(part.tolist(), *row) for part, row in zip(found.token.split(lengths.tolist()), rows, strict=True)]


def assert_near(found, expected):
    """Running sums in float64 begin elsewhere: float32 values may differ in their last bits."""
    for (tokens, sample, confidence, acts), wanted in zip(found, expected, strict=True):
        # c / C_loc loses digits where C_loc is small beside what the running sum has seen.
        np.testing.assert_allclose(tokens, wanted[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose([sample, confidence], wanted[1:3], rtol=1e-5, atol=1e-6)
        assert acts == wanted[3]


@given(samples=samples_of_tokens, rule=rules, data=st.data())
def test_weights_know_neither_the_order_of_the_samples_nor_the_others(samples, rule, data):
    whole = weights_of(samples, **rule)
    order = data.draw(st.permutations(range(len(samples))))
    assert_near(weights_of([samples[i] for i in order], **rule), [whole[i] for i in order])
    offset = data.draw(st.lists(log_probs, min_size=1, max_size=40))
    assert_near(weights_of([offset, *samples], **rule)[1:], whole)
    assert_near([weights_of([sample], **rule)[0] for sample in samples], whole)


@given(sample=st.lists(log_probs, min_size=1, max_size=20), more=st.integers(0, 9), mean=st.sampled_from(["v1", "v3"]))
def test_a_window_over_the_whole_sample_is_its_mean(sample, more, mean):
    """v1 is one window from g = L on, v3 from g = 2 L on, where every token's window is the sample."""
    c = np.exp(np.array(sample, dtype=np.float64))
    if mean == "v1":
        for kind, confidence in (("geometric", math.exp(np.mean(sample))), ("arithmetic", c.mean())):
            (found,) = weights_of([sample], version="v1", group_size=len(sample) + more, confidence_mean=kind)
            np.testing.assert_allclose(found[2], confidence, rtol=1e-5)
            np.testing.assert_allclose(found[1], 1 - confidence, atol=1e-6)
            assert found[3] is False
    else:
        (found,) = weights_of([sample], version="v3", group_size=2 * len(sample) + more)
        np.testing.assert_allclose(found[2], c.mean(), rtol=1e-5)
        np.testing.assert_allclose(found[0], np.minimum(c / (c.mean() + 1e-8), 1), rtol=1e-4, atol=1e-6)


@given(samples=samples_of_tokens)
def test_a_window_of_one_token_is_the_token(samples):
    """v1: p_conf = min c. v3: w = c / (c + 1e-8), s = 1 - min c."""
    for version in ("v1", "v3"):
        for sample, (tokens, weight, confidence, _) in zip(
            samples, weights_of(samples, version=version, group_size=1), strict=True
        ):
            c = np.exp(np.array(sample, dtype=np.float64))
            np.testing.assert_allclose(confidence, c.min(), rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(weight, 1 - c.min(), atol=1e-6)
            np.testing.assert_allclose(tokens, c if version == "v1" else c / (c + 1e-8), rtol=1e-4, atol=1e-6)


@given(samples=samples_of_tokens, rule=rules, floor=st.floats(0, 1, width=32), gamma=st.floats(0.25, 4))
def test_floor_and_gamma_do_what_they_say_and_nothing_else(samples, rule, floor, gamma):
    plain = weights_of(samples, **rule | {"min_token_weight": 0.0, "confidence_gamma": 1.0})
    floored = weights_of(samples, **rule | {"min_token_weight": floor, "confidence_gamma": 1.0})
    bent = weights_of(samples, **rule | {"min_token_weight": 0.0, "confidence_gamma": gamma})
    for (tokens, weight, confidence, _), with_floor, with_gamma in zip(plain, floored, bent, strict=True):
        assert with_floor[0] == [max(token, floor) for token in tokens]
        assert with_floor[1:3] == (weight, confidence)
        assert with_gamma[0] == tokens
        expected = 1 - confidence**gamma if rule["version"] == "v1" else weight
        np.testing.assert_allclose(with_gamma[1], min(max(expected, 0), 1), atol=1e-6)


@given(
    rows=st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=5), min_size=1, max_size=4),
    packed=st.booleans(),
)
def test_supervised_tokens_equal_the_loop(rows, packed):
    """`rows`: for each position, is it supervised, and does a document begin there?"""
    mask = torch.tensor([[supervised for supervised, _ in row] for row in rows])
    document = torch.tensor([[begins for _, begins in row] for row in rows]).int().cumsum(1)
    values = torch.arange(mask.numel(), dtype=torch.float32).view(mask.shape)
    found = supervised_tokens(values, mask, document if packed else None)
    samples: dict[tuple[int, int], list[float]] = {}
    for row in range(len(rows)):
        for at in range(5):
            if mask[row, at]:
                key = row, int(document[row, at]) if packed else 0
                samples.setdefault(key, []).append(float(values[row, at]))
    assert found.lengths.tolist() == [len(sample) for sample in samples.values()]
    assert found.log_probs.tolist() == [value for sample in samples.values() for value in sample]
    assert found.row.tolist() == [row for row, _ in samples]


@given(samples=st.lists(st.lists(log_probs, min_size=1, max_size=6), min_size=1, max_size=5), rule=rules)
def test_packed_in_one_row_is_as_a_row_for_each(samples, rule):
    longest = max(map(len, samples))
    padded = torch.tensor([sample + [-99.0] * (longest - len(sample)) for sample in samples])
    mask = torch.tensor([[at < len(sample) for at in range(longest)] for sample in samples])
    packed = torch.tensor([[x for sample in samples for x in sample]])
    document = torch.tensor([[number for number, sample in enumerate(samples) for _ in sample]])
    one = supervised_tokens(padded, mask)
    other = supervised_tokens(packed, torch.ones_like(packed, dtype=torch.bool), document)
    for a, b in zip(
        token_and_sample_weights(*one[:2], **rule), token_and_sample_weights(*other[:2], **rule), strict=True
    ):
        assert torch.equal(a, b)


# --- head ------------------------------------------------------------------------------------------------------------


@given(
    seed=seeds,
    tokens=st.integers(1, 5),
    vocabulary=st.integers(1, 9),
    width=st.integers(1, 5),
    with_bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.37, -2.0]),
    size=st.sampled_from([0.01, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    chunk_rows=st.integers(0, 6),
)
def test_frozen_head_equals_full_logits(seed, tokens, vocabulary, width, with_bias, scale, size, dtype, chunk_rows):
    """Values and gradients, the latter of the masked positions of a batch too: zero there."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (size * torch.randn(tokens, width, generator=generator)).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype)
    bias = torch.randn(vocabulary, generator=generator).to(dtype) if with_bias else None
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    mask = torch.rand(tokens, generator=generator) < 0.7
    counts = torch.rand(int(mask.sum()), generator=generator, dtype=torch.float64)
    chunk_bytes = max(1, chunk_rows * vocabulary * dtype.itemsize)

    scores = frozen_log_probs(
        hidden[mask], weight, targets[mask], bias=bias, logit_scale=scale, chunk_bytes=chunk_bytes
    )
    (gradient,) = torch.autograd.grad((scores.log_probs * counts).sum(), hidden)
    assert gradient[~mask].abs().sum() == 0
    if not mask.any():
        return
    twin = hidden.detach().double().requires_grad_()
    expected, entropy, is_top1 = reference.head_scores(twin[mask], weight, targets[mask], bias, scale)
    (expected_gradient,) = torch.autograd.grad((expected * counts).sum(), twin)

    logits = scale * (twin.detach()[mask] @ weight.double().T + (0 if bias is None else bias.double()))
    # Rounding of a logit is in proportion to the terms that it is the sum of; entropies multiply it by a logit again.
    terms = abs(scale) * (float((twin.detach().abs() @ weight.double().abs().T).max()) + 3)
    near = torch.finfo(dtype).eps * 32 * (1 + terms)
    torch.testing.assert_close(scores.log_probs.double(), expected.detach(), atol=near, rtol=0)
    torch.testing.assert_close(scores.entropy.double(), entropy.detach(), atol=near * (1 + terms), rtol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=near * 8, rtol=0)
    top = logits.topk(min(2, vocabulary), -1).values
    clear = torch.ones(len(top), dtype=torch.bool) if vocabulary == 1 else top[:, 0] - top[:, 1] > near
    assert torch.equal(scores.is_top1[clear], is_top1[clear])


# --- prompts ---------------------------------------------------------------------------------------------------------


@example(answer='process:"process:')
@example(answer='Process: " *a')
@given(answer=answers)
def test_what_is_parsed_is_parsed_from_what_is_rendered_of_it(answer):
    name = parse_process(answer)
    assert name is None or (name == name.strip() != "" and "\n" not in name)
    if name is not None:
        assert has_process_line(answer)
        assert parse_process(gene_set_answer(name)) == name


@given(
    name=st.text(st.characters(categories=["L", "N", "Zs"], include_characters="-,'()/[]:."), min_size=1, max_size=30),
    definition=st.one_of(st.none(), answers),
    genes=st.dictionaries(st.text("ABC123", min_size=1), texts, max_size=4),
)
def test_a_rendered_name_is_read_again(name, definition, genes):
    """Any name of words; whatever the definition says, "Process: other" as well."""
    name = name.strip()
    assume(name.lower() not in ("", "process") and not re.match(r"process\s*:", name, re.IGNORECASE))
    assert parse_process(gene_set_answer(name, definition=definition, gene_names=genes)) == name


@example(answer='" a "')
@given(answer=st.one_of(answers, st.none(), st.floats()))
def test_any_recorded_answer_is_a_name_or_none(answer):
    name = recorded_name(answer)
    assert name is None or (isinstance(name, str) and name == name.strip() != "")
    if name is not None:
        assert recorded_name(name) is None or isinstance(recorded_name(name), str)


some_labels = st.sampled_from([list("AB"), list(LETTERS), ["yes", "no", "maybe"], ["1", "2", "3"]])


@given(reasoning=answers, labels=some_labels, data=st.data())
def test_a_rendered_choice_is_read_again(reasoning, labels, data):
    label = data.draw(st.sampled_from(labels))
    answer = choice_answer(label, reasoning=reasoning)
    assert parse_choice(answer, labels) == label
    assert choice_scores(answer, labels=labels, target=label) == {"acc": 1.0, "readable": 1.0}


@given(answer=answers, labels=some_labels)
def test_any_answer_is_one_of_the_labels_or_none(answer, labels):
    label = parse_choice(answer, labels)
    assert label is None or label in labels
    assert choice_scores(answer, labels=labels, target=labels[0])["readable"] == float(label is not None)


@given(question=texts.filter(str.strip), options=st.lists(texts, min_size=2, max_size=10), reasoning=st.booleans())
def test_a_prompt_has_all_of_the_question(question, options, reasoning):
    choices = lettered(options)
    assert list(choices) == list(LETTERS[: len(options)])
    prompt = choice_prompt(question, choices, reasoning=reasoning)
    assert prompt.startswith(question)
    if any(options):
        assert all(f"{letter}. {option}" in prompt for letter, option in choices.items())


# --- tables ----------------------------------------------------------------------------------------------------------

symbols = st.text("ABCXYZ0123456789-", min_size=1, max_size=6)
rows_of_sets = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(characters, min_size=1, max_size=6).filter(lambda text: text.strip() == text),
            "name": texts.filter(str.strip),
            "genes": st.lists(symbols, min_size=1, max_size=4),
            "definition": st.one_of(st.none(), texts.filter(str.strip).map(lambda text: f"x{text}")),
        }
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row["id"],
)


def written(folder, rows, suffix):
    """A table as other programs write it: json by Python's module, the rest by pandas."""
    path = Path(folder) / f"t{suffix}"
    table = pd.DataFrame(rows)
    if suffix == ".parquet":
        path.write_bytes(parquet_bytes(table))
    elif suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    else:
        table["genes"] = table["genes"].map(" ".join)
        # Python's csv leaves a lone \r without quotes, and then nobody can tell it from the end of a line.
        quoting = (
            csv.QUOTE_ALL if any("\r" in str(text) for row in rows for text in row.values()) else csv.QUOTE_MINIMAL
        )
        table.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t", encoding="utf-8", quoting=quoting)
    return path


@pytest.mark.parametrize(
    "suffix",
    [".parquet", ".csv", ".json", *(pytest.param(suffix, marks=pytest.mark.long) for suffix in (".tsv", ".jsonl"))],
)
@given(rows=rows_of_sets)
def test_gene_sets_are_read_as_they_were_written(suffix, rows):
    with tempfile.TemporaryDirectory() as folder:
        table = read_gene_sets(written(folder, rows, suffix))
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    assert [row | {"genes": list(row["genes"])} for row in found] == rows


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\n\r_("), min_size=1, max_size=9)
            .map(str.strip)
            .filter(bool),
            texts.map(lambda text: re.sub(r"[\t\n\r]", " ", text)),
            st.lists(symbols, min_size=1, max_size=4, unique=True),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda row: row[0],
    ),
    ending=st.sampled_from(["", "\n", "\r\n"]),
)
def test_gmt_is_read_as_it_was_written(rows, ending):
    assume(not rows[0][0].startswith("\ufeff"))  # a byte order mark, at the beginning of a file
    lines = ["\t".join([term, described, *genes]) for term, described, genes in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.gmt"
        path.write_text((ending or "\n").join(lines) + ending, encoding="utf-8", newline="")
        table = read_gmt(path)
    assert list(zip(table["id"], table["name"], table["genes"], strict=True)) == [
        (term, term, genes) for term, _, genes in rows
    ]


@given(genes=st.one_of(texts, st.lists(st.one_of(texts, st.none()), max_size=4), st.none()))
def test_genes_are_split_once_and_for_all(genes):
    found = split_genes(genes)
    assert all(gene and gene == gene.strip() for gene in found)
    assert split_genes(found) == found
    if isinstance(genes, str):
        assert split_genes(", ".join(found)) == found


@given(ids=st.lists(st.one_of(st.none(), st.integers(-(2**53), 2**53), texts), max_size=6))
def test_ids_become_text_once_and_for_all(ids):
    found = ids_as_text(pd.Series(ids, dtype=object, name="id"), where="t.csv")
    assert [None if value is None else str(value) for value in ids] == found.tolist()
    assert ids_as_text(found, where="t.csv").tolist() == found.tolist()
    with_gap = ids_as_text(pd.Series([1.0, None, *(float(i) for i in range(3))]), where="t.csv")
    assert with_gap.tolist() == ["1", None, "0", "1", "2"]


@given(rows=st.lists(st.tuples(*[st.sampled_from("ABCD")] * 2, st.integers(0, 1)), min_size=1, max_size=12))
def test_pairs_equal_the_loop(rows):
    """Pairs are unordered: agreeing ones count once, contradictory ones and those of a gene with itself not at all."""
    known: dict[tuple[str, str], set[int]] = {}
    for a, b, label in rows:
        if a != b:
            known.setdefault((min(a, b), max(a, b)), set()).add(label)
    expected = sorted((*pair, *labels) for pair, labels in known.items() if len(labels) == 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.csv"
        pd.DataFrame(rows, columns=["gene_a", "gene_b", "label"]).to_csv(path, index=False)
        if not expected:
            with pytest.raises(ValueError, match=r"pairs\.csv: no pair is left"):
                read_pairs(path)
            return
        found = read_pairs(path)
    assert list(found.itertuples(index=False, name=None)) == expected


# --- statistics ------------------------------------------------------------------------------------------------------

eighths = st.integers(-16, 16).map(lambda x: x / 8)  # sums of them are exact
paired_scores = st.lists(st.tuples(eighths, eighths), min_size=1, max_size=7)
binary_scores = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def both(pairs):
    return (np.array(part, dtype=float) for part in zip(*pairs, strict=True))


@given(pairs=paired_scores, seed=seeds)
def test_permutation_test_equals_enumeration(pairs, seed):
    """Twice the smaller share of all 2^N exchanges whose mean difference is as great, or as small; at most 1."""
    a, b = both(pairs)
    assume(not np.isin([a, b], (0, 1)).all())
    found = paired_test(a, b, rng=np.random.default_rng(seed), n_resamples=200)
    difference = (a - b).tolist()
    sums = [
        sum(map(math.prod, zip(difference, signs, strict=True))) for signs in itertools.product((1, -1), repeat=len(a))
    ]
    as_great = sum(total >= sum(difference) for total in sums) / len(sums)
    as_small = sum(total <= sum(difference) for total in sums) / len(sums)
    assert found.p == pytest.approx(min(1.0, 2 * min(as_great, as_small)), abs=1e-12)
    assert 0 < found.p <= 1
    assert paired_test(b, a, rng=np.random.default_rng(seed), n_resamples=200).p == pytest.approx(found.p, abs=1e-12)


@given(pairs=binary_scores)
def test_mcnemar_equals_the_binomial_sum(pairs):
    """Of the n pairs that differ, k go one way: min(1, 2 sum_{i <= min(k, n - k)} C(n, i) / 2^n)."""
    a, b = both(pairs)
    found = paired_test(a, b, rng=np.random.default_rng(0))
    counts = Counter(pairs)
    k, n = counts[1, 0], counts[1, 0] + counts[0, 1]
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(min(k, n - k) + 1)) / 2**n)
    assert found.name == MCNEMAR
    assert found.p == pytest.approx(expected, rel=1e-9)
    assert paired_test(b, a, rng=np.random.default_rng(0)).p == pytest.approx(found.p, rel=1e-12)


@given(differences=st.lists(eighths, min_size=1, max_size=12).map(np.array), seed=seeds)
def test_bootstrap_interval(differences, seed):
    """Around the mean, within the differences, and mirrored for the models exchanged."""
    one, other = (
        paired_interval(sign * differences, rng=np.random.default_rng(seed), n_resamples=199) for sign in (1, -1)
    )
    assert one.mean == pytest.approx(differences.mean())
    assert differences.min() - 1e-12 <= one.low <= one.mean + 1e-12
    assert one.mean - 1e-12 <= one.high <= differences.max() + 1e-12
    np.testing.assert_allclose([other.mean, other.low, other.high], [-one.mean, -one.high, -one.low], atol=1e-12)


@given(scores=st.lists(eighths, min_size=1, max_size=9).map(np.array), n_train=st.integers(1, 50))
def test_cross_validated_interval_and_p(scores, n_train):
    """With ever more training units it is the t-test of one sample, but for the least p that so many signs allow."""
    interval, p = cross_validated(scores, n_train=n_train)
    mirrored, same_p = cross_validated(-scores, n_train=n_train)
    assert interval.low <= interval.mean <= interval.high
    assert min(1.0, 2.0 ** (1 - len(scores))) <= p <= 1
    assert same_p == pytest.approx(p)
    np.testing.assert_allclose([mirrored.low, mirrored.high], [-interval.high, -interval.low], atol=1e-12)
    if len(scores) > 1 and np.ptp(scores) > 0:
        plain = scipy.stats.ttest_1samp(scores, 0)
        limit, limit_p = cross_validated(scores, n_train=10**18)
        assert limit_p == pytest.approx(max(plain.pvalue, 2.0 ** (1 - len(scores))), rel=1e-9)
        np.testing.assert_allclose(limit[1:], plain.confidence_interval(0.95), atol=1e-9)
        assert interval.high - interval.low >= limit.high - limit.low
        assert p >= limit_p - 1e-12


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """statsmodels' multipletests collects garbage in each call: what is there already is set aside."""
    gc.freeze()
    yield
    gc.unfreeze()


@given(p_values=st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_its_definition(p_values):
    """max over the smaller ones of (m - rank) p, at most 1: never below p, never above Bonferroni's, in p's order."""
    found = holm(p_values)
    ordered = sorted(range(len(p_values)), key=lambda i: p_values[i])
    highest = 0.0
    for rank, i in enumerate(ordered):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        assert found[i] == pytest.approx(highest)
        assert p_values[i] - 1e-15 <= found[i] <= min(1.0, len(p_values) * p_values[i]) + 1e-12


@given(differences=st.lists(st.integers(-1, 1), min_size=1, max_size=30).map(lambda d: np.array(d, dtype=float)))
def test_smallest_difference_is_none_or_positive(differences):
    for binary in (True, False):
        found = smallest_difference(differences, binary=binary)
        if len(differences) < 2 or (not binary and np.ptp(differences) == 0):
            assert found is None
        else:
            assert found is not None
            assert 0 < found <= (1 if binary else np.inf)
    twice = np.concatenate([differences, differences])
    if np.ptp(differences) > 0:  # twice as many documents show less
        assert smallest_difference(twice, binary=False) < smallest_difference(differences, binary=False)


# --- scores ----------------------------------------------------------------------------------------------------------

names = st.lists(
    st.sampled_from(
        ["DNA", "repair", "of", "the", "cell", "cycle's", "(G2)", "a-b", "x/y", "3'-kind", "Größe", "..."]
    ),
    max_size=6,
)


@given(reference_words=names, answer_words=names)
def test_rouge(reference_words, answer_words):
    reference_text, answer = " ".join(reference_words), " ".join(answer_words)
    scores = rouge_scores([reference_text, reference_text], [answer, reference_text])
    for metric in ROUGE:
        assert 0 <= scores[metric][0] <= 1
    unbracketed = [word for word in reference_words if "(" not in word]
    plain = " ".join(unbracketed)
    # rouge_score's words are runs of a-z and 0-9
    words = re.findall(r"[a-z0-9]+", plain.lower())
    own = rouge_scores([plain], [plain])
    assert own["rouge1"][0] == own["rougeL"][0] == float(bool(words))
    assert own["rouge2"][0] == float(len(words) > 1)
    assert scores["rougeL"][0] <= scores["rouge1"][0] + 1e-12
    other = " ".join(word for word in answer_words if "(" not in word)
    there, back = rouge_scores([plain], [other]), rouge_scores([other], [plain])
    assert all(there[metric][0] == pytest.approx(back[metric][0]) for metric in ROUGE)


@given(seed=seeds, n=st.integers(1, 4), m=st.integers(1, 6), width=st.integers(1, 4))
def test_percentile_equals_the_loop(seed, n, m, width):
    rng = np.random.default_rng(seed)

    def unit(count):
        drawn = rng.standard_normal((count, width))
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    said, true, background = unit(n), unit(n), unit(m)
    found = background_percentile(said, true, background)
    for i in range(n):
        own = sum(a * b for a, b in zip(said[i], true[i], strict=True))
        others = [sum(a * b for a, b in zip(said[i], row, strict=True)) for row in background]
        assume(all(abs(other - own - 1e-6) > 1e-9 for other in others))
        assert found[i] == pytest.approx(100 * (1 - sum(other > own + 1e-6 for other in others) / m))
    assert cosine_similarity(said, said) == pytest.approx(np.ones(n))
    assert (np.abs(cosine_similarity(said, true)) <= 1).all()


# --- biology ---------------------------------------------------------------------------------------------------------


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=12),
    seed=seeds,
)
def test_ranking_equals_the_definition(pairs, seed):
    """AUROC: fraction of positive-negative pairs in the right order, ties by half. AP: mean precision at positives."""
    scores, labels, weights = (np.array(part, dtype=float) for part in zip(*pairs, strict=True))
    weighted = (
        [(s, w) for s, label, w in pairs if label for _ in range(w)],
        [s for s, label, w in pairs if not label for _ in range(w)],
    )
    positive, negative = [s for s, _ in weighted[0]], weighted[1]
    (auroc,) = task_metrics.auroc(scores, labels, weights[None])
    if positive and negative:
        wins = sum((p > q) + 0.5 * (p == q) for p in positive for q in negative)
        assert auroc == pytest.approx(wins / len(positive) / len(negative))
        (mirrored,) = task_metrics.auroc(-scores, labels, weights[None])
        assert auroc + mirrored == pytest.approx(1)
    else:
        assert np.isnan(auroc)
    (precision,) = task_metrics.average_precision(scores, labels, weights[None])
    if positive:
        at_least = [
            sum(q >= p for q in positive) / (sum(q >= p for q in positive) + sum(q >= p for q in negative))
            for p in positive
        ]
        assert precision == pytest.approx(np.mean(at_least))
    else:
        assert np.isnan(precision)


@given(values=st.lists(st.one_of(eighths, st.just(math.nan)), max_size=12).map(lambda v: np.array(v, dtype=float)))
def test_bootstrap_p_is_a_probability_and_symmetric(values):
    p = task_metrics.bootstrap_p(values)
    assert 0 < p <= 1
    assert task_metrics.bootstrap_p(-values) == p
    found = task_metrics.interval(0.0, values)
    kept = values[np.isfinite(values)]
    if len(kept):
        assert kept.min() <= found.low <= found.high <= kept.max()
    else:
        assert np.isnan([found.low, found.high]).all()


@given(seed=seeds, n_genes=st.integers(2, 5), n_pairs=st.integers(1, 6), n_resamples=st.integers(1, 9))
def test_resampled_weights_are_products_of_counts(seed, n_genes, n_pairs, n_resamples):
    """Of all ordered pairs the weights are the products of all counts, which sum to n: (sum)^2 = n^2."""
    every = np.array(list(itertools.product(range(n_genes), repeat=2)))
    batches = task_metrics.gene_resamples(*every.T, n_genes, rng=np.random.default_rng(seed), n_resamples=n_resamples)
    found = np.concatenate(list(batches))
    assert found.shape == (n_resamples, n_genes**2)
    assert (found.sum(1) == n_genes**2).all()
    square = found.reshape(n_resamples, n_genes, n_genes)
    counts = np.sqrt(square.diagonal(axis1=1, axis2=2))
    assert np.array_equal(counts[:, :, None] * counts[:, None], square)


@given(seed=seeds, n=st.integers(2, 4), genes=st.integers(2, 6), top=st.one_of(st.none(), st.integers(2, 5)))
def test_metrics_equal_their_definitions(seed, n, genes, top):
    """With whole numbers, so that there are ties and changes of 0; each perturbation leaves other genes out."""
    rng = np.random.default_rng(seed)
    predicted, true = (rng.integers(-2, 3, (n, genes)).astype(float) for _ in range(2))
    keep, significant = rng.random((n, genes)) < 0.8, rng.random((n, genes)) < 0.5
    keep[:, 0] = True
    pearson = task_metrics.pearson_delta(predicted, true, keep, top=top)
    squared, absolute = task_metrics.mse(predicted, true, keep), task_metrics.mae(predicted, true, keep)
    signs = task_metrics.sign_accuracy(predicted, true, keep, significant)
    ranks = task_metrics.discrimination(predicted, true, keep)
    for row in range(n):
        kept = [g for g in range(genes) if keep[row, g]]
        errors = [predicted[row, g] - true[row, g] for g in kept]
        assert squared[row] == pytest.approx(sum(e * e for e in errors) / len(kept))
        assert absolute[row] == pytest.approx(sum(map(abs, errors)) / len(kept))
        called = [g for g in kept if significant[row, g]]
        right = [predicted[row, g] * true[row, g] > 0 for g in called]
        assert signs[row] == pytest.approx(np.mean(right) if right else np.nan, nan_ok=True)
        best = sorted(kept, key=lambda g: -abs(true[row, g]))[:top]
        said, known = ([values[row, g] for g in best] for values in (predicted, true))
        if len(set(known)) < 2:
            assert np.isnan(pearson[row])
        elif len(set(said)) < 2:
            assert pearson[row] == 0
        else:
            assert pearson[row] == pytest.approx(scipy.stats.pearsonr(said, known).statistic, abs=1e-9)
        distance = [sum(abs(predicted[row, g] - true[other, g]) for g in kept) for other in range(n)]
        others = [d for other, d in enumerate(distance) if other != row]
        nearer = sum(d < distance[row] for d in others) + sum(d == distance[row] for d in others) / 2
        assert ranks[row] == pytest.approx(1 - nearer / (n - 1))
