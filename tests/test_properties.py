"""What holds for any input: 100 examples of each in `make test`, 10,000 in the long target."""

import csv
import json
import math
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bft_trl.data.tables import (
    ids_as_text,
    parquet_bytes,
    read_gene_sets,
    read_gmt,
    split_genes,
)
from bft_trl.evaluation.multiple_choice import choice_scores
from bft_trl.evaluation.names import recorded_name
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
        "bft_version": st.sampled_from(["v1", "v3"]),
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
            (found,) = weights_of([sample], bft_version="v1", group_size=len(sample) + more, confidence_mean=kind)
            np.testing.assert_allclose(found[2], confidence, rtol=1e-5)
            np.testing.assert_allclose(found[1], 1 - confidence, atol=1e-6)
            assert found[3] is False
    else:
        (found,) = weights_of([sample], bft_version="v3", group_size=2 * len(sample) + more)
        np.testing.assert_allclose(found[2], c.mean(), rtol=1e-5)
        np.testing.assert_allclose(found[0], np.minimum(c / (c.mean() + 1e-8), 1), rtol=1e-4, atol=1e-6)


@given(samples=samples_of_tokens)
def test_a_window_of_one_token_is_the_token(samples):
    """v1: p_conf = min c. v3: w = c / (c + 1e-8), s = 1 - min c."""
    for version in ("v1", "v3"):
        for sample, (tokens, weight, confidence, _) in zip(
            samples, weights_of(samples, bft_version=version, group_size=1), strict=True
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
        expected = 1 - confidence**gamma if rule["bft_version"] == "v1" else weight
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
