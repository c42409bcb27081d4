"""Properties for any input: 100 examples of each in `make test`, 10,000 in `make test-long`."""

import csv
import json
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

from bft_trl.data.tables import parquet_bytes, read_gene_sets
from bft_trl.evaluation.multiple_choice import choice_scores
from bft_trl.lm_head import frozen_log_probs
from bft_trl.prompts import LETTERS, choice_answer, gene_set_answer, has_process_line, parse_choice, parse_process
from bft_trl.weighting import supervised_tokens, token_and_sample_weights

pytestmark = pytest.mark.property

seeds = st.integers(0, 2**32 - 1)
# A text file has no NUL; half of a surrogate pair is no character.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(st.one_of(characters, st.sampled_from("\",;\t\n\r'\\| ")), max_size=12)
# Prose with what the parsers look for.
pieces = ["Process", "process:", "Answer:", "answer is", " or ", "<name>", "yes", *'AB()*"\n:']
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
def test_weights_do_not_depend_on_order_or_other_samples(samples, rule, data):
    whole = weights_of(samples, **rule)
    order = data.draw(st.permutations(range(len(samples))))
    assert_near(weights_of([samples[i] for i in order], **rule), [whole[i] for i in order])
    offset = data.draw(st.lists(log_probs, min_size=1, max_size=40))
    assert_near(weights_of([offset, *samples], **rule)[1:], whole)
    assert_near([weights_of([sample], **rule)[0] for sample in samples], whole)


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
    double = hidden.detach().double().requires_grad_()
    expected, entropy, is_top1 = reference.head_scores(double[mask], weight, targets[mask], bias, scale)
    (expected_gradient,) = torch.autograd.grad((expected * counts).sum(), double)

    logits = scale * (double.detach()[mask] @ weight.double().T + (0 if bias is None else bias.double()))
    # Rounding of a logit is in proportion to the terms that it is the sum of; entropies multiply it by a logit again.
    terms = abs(scale) * (float((double.detach().abs() @ weight.double().abs().T).max()) + 3)
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
    else:
        table["genes"] = table["genes"].map(" ".join)
        # Python's csv leaves a lone \r without quotes, and then nobody can tell it from the end of a line.
        quoting = (
            csv.QUOTE_ALL if any("\r" in str(text) for row in rows for text in row.values()) else csv.QUOTE_MINIMAL
        )
        table.to_csv(path, index=False, encoding="utf-8", quoting=quoting)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
@given(rows=rows_of_sets)
def test_gene_sets_are_read_as_they_were_written(suffix, rows):
    with tempfile.TemporaryDirectory() as folder:
        table = read_gene_sets(written(folder, rows, suffix))
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    assert [row | {"genes": list(row["genes"])} for row in found] == rows
