"""Row numbers survive TRL's preparation and packing; weights and groups act by them."""

import pytest
import torch
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from bft_trl import BFTTrainer
from bft_trl.training.rows import MAX_GROUPS, ROW, DataRows


def trainer(folder, rows, *, eval_rows=None, **config):
    return BFTTrainer(
        build_model(),
        build_config(folder, **{"max_steps": 2, "per_device_train_batch_size": 4} | config),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
        processing_class=build_tokenizer(),
    )


def texts_by_row(run, tokenizer):
    """Row number -> the text of all its tokens, as the batches of the run have them."""
    found = {}
    for batch in run.get_train_dataloader():
        for ids, numbers in zip(batch["input_ids"], batch[ROW], strict=True):
            for number in set(numbers.tolist()) - {-1}:
                assert number not in found
                found[number] = tokenizer.decode(ids[numbers == number], skip_special_tokens=True)
    return found


@pytest.mark.parametrize(
    "how",
    [{}, {"packing": True, "max_length": 96}, {"padding_free": True, "max_length": None}, {"shuffle_dataset": True}],
)
def test_every_token_carries_the_number_of_its_row(how, tmp_path):
    rows = sample_rows(12)
    run = trainer(tmp_path, rows, **how)
    assert texts_by_row(run, build_tokenizer()) == {
        number: row["prompt"] + row["completion"] for number, row in enumerate(rows)
    }


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_packing_is_trls(strategy, shuffle, tmp_path):
    config = {"packing": True, "max_length": 48, "packing_strategy": strategy, "shuffle_dataset": shuffle}
    ours = trainer(tmp_path, sample_rows(12), **config).train_dataset
    theirs = SFTTrainer(
        build_model(),
        SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **config),
        train_dataset=Dataset.from_list(sample_rows(12)),
        processing_class=build_tokenizer(),
    ).train_dataset
    assert ours["input_ids"][:] == theirs["input_ids"][:]
    assert ours["labels"][:] == theirs["labels"][:]
    assert ours["seq_lengths"][:] == theirs["seq_lengths"][:]


def one_step(folder, rows, **config):
    """The loss of one step over all rows, before any weight moves."""
    run = trainer(folder, rows, max_steps=1, per_device_train_batch_size=len(rows), learning_rate=0.0, **config)
    run.train()
    return run.state.log_history[0]


@pytest.mark.parametrize("packing", [False, True])
def test_weights_multiply_and_zero_drops(packing, tmp_path, caplog):
    """The mean of the rows' own losses, each times its weight, without the row of weight 0."""
    rows = sample_rows(4, seed=3)
    weights = [2.0, 0.5, 0.0, 1.0]
    alone = [one_step(tmp_path, [row])["loss"] for row in rows]
    config = {"packing": True, "max_length": 256} if packing else {}
    together = one_step(
        tmp_path, [row | {"weight": weight} for row, weight in zip(rows, weights, strict=True)], **config
    )
    assert together["loss"] == pytest.approx((2 * alone[0] + 0.5 * alone[1] + alone[3]) / 3, rel=1e-4)
    assert "Dropped 1 of 4 rows" in caplog.text
    ignored = one_step(
        tmp_path, [row | {"weight": weight} for row, weight in zip(rows, weights, strict=True)], weight_column=None
    )
    assert ignored["loss"] == pytest.approx(sum(alone) / 4, rel=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_figures_of_groups_are_those_of_their_rows_alone(packing, tmp_path):
    rows = sample_rows(6, seed=4)
    sources = ["go", "qa", "go", None, "qa", "go"]
    config = {"packing": True, "max_length": 256} if packing else {}
    marked = [row | {"from": source} for row, source in zip(rows, sources, strict=True)]
    together = one_step(tmp_path, marked, group_column="from", **config)
    for name in ("go", "qa", "none"):
        of_group = [row for row, source in zip(rows, sources, strict=True) if str(source).lower() == name]
        alone = one_step(tmp_path, of_group)
        for figure in ("nll", "sample_weight", "group_confidence"):
            assert together[f"{figure}/{name}"] == pytest.approx(alone[figure], rel=1e-4), (figure, name)
    run = trainer(tmp_path, marked, eval_rows=marked, group_column="from", **config)
    metrics = run.evaluate()
    assert metrics["eval_nll/go"] == pytest.approx(together["nll/go"], rel=1e-4)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("weight", [1.0, -1.0], r"`weight_column='weight'`: row 1 .* -1.0, which is no weight"),
        ("weight", [1.0, float("nan")], "row 1 .* nan"),
        ("weight", ["1", "2"], "row 0 .* '1'"),
        ("weight", [0, 0], "is 0 in every row"),
        ("kind", [1, 2], r"`group_column='group'` is not in the train dataset, which has \['completion', 'kind'"),
        ("group", ["", ""], None),
    ],
)
def test_columns_that_cannot_be_used(column, values, words, tmp_path):
    rows = [row | {column: value} for row, value in zip(sample_rows(2), values, strict=True)]
    group = None if column == "weight" else "group"
    if words is None:
        assert trainer(tmp_path, rows, group_column=group)._groups == [""]
        return
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, rows, group_column=group)


def test_too_many_groups():
    data = Dataset.from_list([{"group": str(number)} for number in range(MAX_GROUPS + 1)])
    with pytest.raises(ValueError, match="51 different values, such as '0': at most 50"):
        DataRows(group_column="group").mark(data, "train", training=True)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_baselines_know_no_weights_but_zero(loss_type, tmp_path):
    rows = sample_rows(3, seed=1)
    with pytest.raises(ValueError, match="mean over tokens of `loss_type=.* has none"):
        trainer(tmp_path, [row | {"weight": 2.0} for row in rows], loss_type=loss_type)
    kept = one_step(
        tmp_path, [row | {"weight": weight} for row, weight in zip(rows, (1, 0, 1), strict=True)], loss_type=loss_type
    )
    alone = one_step(tmp_path, [rows[0], rows[2]], loss_type=loss_type)
    assert kept["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_what_has_no_row_numbers_is_refused_or_said(tmp_path, caplog):
    stream = Dataset.from_list([row | {"weight": 1.0} for row in sample_rows(4)]).to_iterable_dataset()
    common = {"processing_class": build_tokenizer()}
    with pytest.raises(ValueError, match="`weight_column='weight'` cannot be honoured: the rows of a streamed"):
        BFTTrainer(build_model(), build_config(tmp_path, max_steps=1), train_dataset=stream, **common)
    config = build_config(tmp_path, max_steps=1, group_column="weight", weight_column=None)
    with pytest.raises(ValueError, match="`group_column='weight'` cannot be honoured: a `data_collator` of your own"):
        BFTTrainer(
            build_model(),
            config,
            data_collator=lambda rows: rows,
            train_dataset=Dataset.from_list(sample_rows(2)),
            **common,
        )
    config = build_config(tmp_path, max_steps=1, weight_column=None)
    run = BFTTrainer(build_model(), config, train_dataset=stream, **common)
    assert "Samples are not recorded" in caplog.text
    run.train()
    assert not (tmp_path / "samples").exists()


def test_a_loss_that_is_not_finite_names_the_samples(tmp_path):
    """Row "b" alone holds the letter z, whose embedding is broken: the run ends before the step, and says so."""
    texts = {"a": "aaaa", "b": "azaz", "c": "aa", "d": "bbb", "e": "abab"}
    rows = [{"id": name, "prompt": "a", "completion": text} for name, text in texts.items()]
    model = build_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[build_tokenizer()("z")["input_ids"][0]] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = BFTTrainer(
        model,
        build_config(tmp_path, max_steps=3, per_device_train_batch_size=5),
        train_dataset=Dataset.from_list(rows),
        processing_class=build_tokenizer(),
    )
    with pytest.raises(FloatingPointError, match=r"not finite in step 1, for 1 samples \(id: b\). The step was not"):
        run.train()
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
    assert not any(tmp_path.glob("checkpoint-*"))


def test_a_gradient_that_overflows_ends_the_run(tmp_path):
    rows = [row | {"id": f"row{number}"} for number, row in enumerate(sample_rows(4))]
    run = trainer(tmp_path, rows)
    weight = next(parameter for parameter in run.model.parameters() if parameter.dim() == 2)
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 1 .samples of the step: row"):
        run.train()
    assert torch.equal(weight, before)


def test_float16_skips_a_step_and_says_which(tmp_path, caplog):
    """The loss scaling takes the step back by itself; a scaler's presence is all that tells float16 here."""
    run = trainer(tmp_path, [row | {"id": f"row{number}"} for number, row in enumerate(sample_rows(4))])
    run._step_rows = [2, 0]
    run.accelerator.scaler = object()
    assert run._get_grad_norm(run.model, grad_norm=float("inf")) == float("inf")
    assert "samples of the step: row2, row0); float16's loss scaling skips it" in caplog.text


def test_evaluation_says_which_samples_are_not_finite(tmp_path, caplog):
    model = build_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[build_tokenizer()("z")["input_ids"][0]] = float("nan")
    run = BFTTrainer(
        model,
        build_config(tmp_path),
        train_dataset=Dataset.from_list(sample_rows(2)),
        eval_dataset=Dataset.from_list([{"id": "odd", "prompt": "a", "completion": "azaz"}]),
        processing_class=build_tokenizer(),
    )
    run.evaluate()
    assert "not finite in the evaluation, for 1 samples (id: odd)" in caplog.text
