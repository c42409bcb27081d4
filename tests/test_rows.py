"""Row numbers through TRL's preparation and packing, and the weights and metrics that use them."""

from types import SimpleNamespace

import pytest
import torch
from conftest import broken_model, build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from transformers.training_args import OptimizerNames
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bft_trl import BFTTrainer
from bft_trl.training.callbacks import FiniteCheck
from bft_trl.training.rows import COLUMNS, MAX_VALUES, ROW, VALUE, RowColumns


def trainer(folder, rows, *, eval_rows=None, model=None, data_collator=None, **config):
    return BFTTrainer(
        model or build_model(),
        build_config(folder, **{"max_steps": 2, "per_device_train_batch_size": 4} | config),
        data_collator,
        Dataset.from_list(rows) if isinstance(rows, list) else rows,
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
        processing_class=build_tokenizer(),
    )


def texts_by_row(run, tokenizer):
    """Row number -> the text of all its tokens, as the batches of the run have them."""
    found = {}
    for batch in run.get_train_dataloader():
        padding = batch["attention_mask"] == 0 if "attention_mask" in batch else torch.zeros_like(batch[ROW]).bool()
        for ids, numbers in zip(batch["input_ids"], batch[ROW].masked_fill(padding, -1), strict=True):
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
    run = trainer(tmp_path, rows, log_samples=True, **how)
    assert texts_by_row(run, build_tokenizer()) == {
        number: row["prompt"] + row["completion"] for number, row in enumerate(rows)
    }


@pytest.mark.filterwarnings("default:The `'keep_end'` truncation mode:FutureWarning")
@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
@pytest.mark.parametrize("log_samples", [False, True])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_packing_is_trls(strategy, log_samples, truncation, tmp_path):
    config = {"packing": True, "max_length": 48, "packing_strategy": strategy, "truncation_mode": truncation}
    config["shuffle_dataset"] = True
    ours = trainer(tmp_path, sample_rows(12), log_samples=log_samples, **config).train_dataset
    theirs = SFTTrainer(
        build_model(),
        SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **config),
        train_dataset=Dataset.from_list(sample_rows(12)),
        processing_class=build_tokenizer(),
    ).train_dataset
    for column in ("input_ids", "labels", "seq_lengths"):
        assert ours[column][:] == theirs[column][:]


def test_the_default_adds_no_column(tmp_path):
    run = trainer(tmp_path, sample_rows(2), eval_rows=sample_rows(2))
    assert COLUMNS.keys().isdisjoint(run.train_dataset.column_names + run.eval_dataset.column_names)
    assert type(run.data_collator) is DataCollatorForLanguageModeling


def test_rows_of_another_trainer_are_numbered_anew(tmp_path):
    """Prepared data contain the column values of one trainer; another trainer must not use them."""
    rows = [row | {"a": "xy"[i % 2], "b": "vw"[i // 2]} for i, row in enumerate(sample_rows(4))]
    prepared = trainer(tmp_path, rows, metrics_by_column="a", log_samples=True).train_dataset.select([2, 0, 3])
    second = trainer(tmp_path, prepared, metrics_by_column="b", log_samples=True)
    assert second.train_dataset[ROW][:] == [0, 1, 2]
    assert [second._values[value] for value in second.train_dataset[VALUE]] == ["w", "v", "w"]
    third = trainer(tmp_path, rows)
    third.evaluate(prepared)
    assert "eval_nll/x" not in third.state.log_history[-1]


def test_metrics_by_value_of_a_dict_of_packed_sets(tmp_path):
    rows = [row | {"kind": "ab"[i % 2]} for i, row in enumerate(sample_rows(6))]
    run = trainer(tmp_path, rows, metrics_by_column="kind", packing=True, max_length=96)
    alone = run.evaluate(Dataset.from_list(rows))
    together = run.evaluate({"x": Dataset.from_list(rows)})
    assert together["eval_x_nll/a"] == pytest.approx(alone["eval_nll/a"], rel=1e-6)


def test_metrics_by_value_that_cannot_act_warn(tmp_path, caplog):
    run = trainer(tmp_path, [row | {"kind": "a"} for row in sample_rows(4)], metrics_by_column="kind")
    run.evaluate(Dataset.from_list(sample_rows(2)))
    assert "`metrics_by_column` has no effect on evaluation sets without" in caplog.text


@pytest.mark.parametrize("attribute", ["train_dataset", "data_collator"])
def test_weights_that_get_lost_after_construction_are_an_error(attribute, tmp_path):
    run = trainer(tmp_path, [row | {"weight": 1.0} for row in sample_rows(4)], weight_column="weight")
    setattr(run, attribute, getattr(trainer(tmp_path, sample_rows(4)), attribute))
    with pytest.raises(ValueError, match="has no column '_bft_weight', which `weight_column` needs"):
        run.train()


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
        tmp_path,
        [row | {"weight": weight} for row, weight in zip(rows, weights, strict=True)],
        weight_column="weight",
        **config,
    )
    assert together["loss"] == pytest.approx((2 * alone[0] + 0.5 * alone[1] + alone[3]) / 3, rel=1e-4)
    assert "Dropped 1 of 4 rows" in caplog.text
    ignored = one_step(tmp_path, [row | {"weight": weight} for row, weight in zip(rows, weights, strict=True)])
    assert ignored["loss"] == pytest.approx(sum(alone) / 4, rel=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_metrics_by_value_are_those_of_their_rows_alone(packing, tmp_path):
    rows = sample_rows(6, seed=4)
    sources = ["go", "qa", "go", None, "qa", "go"]
    config = {"packing": True, "max_length": 256} if packing else {}
    marked = [row | {"from": source} for row, source in zip(rows, sources, strict=True)]
    together = one_step(tmp_path, marked, metrics_by_column="from", **config)
    for name in ("go", "qa", "none"):
        of_value = [row for row, source in zip(rows, sources, strict=True) if str(source).lower() == name]
        alone = one_step(tmp_path, of_value)
        for metric in ("nll", "sample_weight", "group_confidence"):
            assert together[f"{metric}/{name}"] == pytest.approx(alone[metric], rel=1e-4), (metric, name)
    run = trainer(tmp_path, marked, eval_rows=marked, metrics_by_column="from", **config)
    metrics = run.evaluate()
    assert metrics["eval_nll/go"] == pytest.approx(together["nll/go"], rel=1e-4)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("weight", [1.0, -1.0], r"`weight_column='weight'`: row 1 .* -1.0, which is not a weight"),
        ("weight", [1.0, float("nan")], "row 1 .* nan"),
        ("weight", ["1", "2"], "row 0 .* '1'"),
        ("weight", [1.0, None], "row 1 .* nan"),
        ("weight", [0, 0], "is 0 in every row"),
        ("other", [1, 1], r"`weight_column='weight'` is not in the train dataset, which has \['completion', 'other'"),
    ],
)
def test_columns_that_cannot_be_used(column, values, words, tmp_path):
    rows = [row | {column: value} for row, value in zip(sample_rows(2), values, strict=True)]
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, rows, weight_column="weight")


def test_column_values(tmp_path):
    data = Dataset.from_dict({"kind": [str(number) for number in range(MAX_VALUES + 1)]})
    columns = RowColumns(loss_type="bft", metrics_by_column="kind")
    with pytest.raises(ValueError, match="51 different values, such as '0': at most 50"):
        columns.add(data, "train", training=True)
    columns = RowColumns(loss_type="bft", metrics_by_column="kind")
    assert columns.add(Dataset.from_dict({"kind": ["", None, ""]}), "train", training=True)[VALUE][:] == [0, 1, 0]
    assert columns.values == ["", "none"]
    with pytest.raises(
        ValueError, match=r"`metrics_by_column='kind'` is not in the train dataset, which has \['id'\]"
    ):
        columns.add(Dataset.from_dict({"id": [1]}), "train", training=True)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_baselines_know_no_weights_but_zero(loss_type, tmp_path):
    rows = sample_rows(3, seed=1)
    with pytest.raises(ValueError, match="mean over tokens of `loss_type=.* has none"):
        trainer(tmp_path, [row | {"weight": 2.0} for row in rows], loss_type=loss_type, weight_column="weight")
    weighted = [row | {"weight": weight} for row, weight in zip(rows, (1, 0, 1), strict=True)]
    kept = one_step(tmp_path, weighted, loss_type=loss_type, weight_column="weight")
    alone = one_step(tmp_path, [rows[0], rows[2]], loss_type=loss_type)
    assert kept["loss"] == pytest.approx(alone["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("option", "value"), [("weight_column", "weight"), ("metrics_by_column", "weight"), ("log_samples", True)]
)
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("stream", "it needs a `Dataset`, not an `IterableDataset`"),
        ("collator", "a custom `data_collator`"),
        ("transform", "a dataset with `with_transform` shows only the columns of its transform"),
        ("packed", "the rows of a packed dataset contain several documents"),
    ],
)
def test_data_that_carry_no_numbers_raise(form, words, option, value, tmp_path):
    data = Dataset.from_list([row | {"weight": 1.0} for row in sample_rows(4)])
    if form == "stream":
        data = data.to_iterable_dataset()
    if form == "transform":
        data = data.with_transform(lambda rows: {"input_ids": [[5, 6]] * len(rows["prompt"])})
    if form == "packed":
        data = trainer(tmp_path, data.to_list(), packing=True, max_length=64).train_dataset
    with pytest.raises(ValueError, match=f"`{option}={value!r}` cannot be used: {words}"):
        trainer(tmp_path, data, data_collator=(lambda rows: rows) if form == "collator" else None, **{option: value})


@pytest.mark.parametrize(("log_samples", "named"), [(False, "log_samples=True"), (True, r"rows \[1\]")])
def test_a_loss_that_is_not_finite_ends_the_run(log_samples, named, tmp_path):
    """Row 1 alone has the letter z, whose embedding is broken: the run ends before the step."""
    rows = [{"prompt": "a", "completion": text} for text in ("aaaa", "azaz", "aa", "bbb", "abab")]
    model = broken_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = trainer(tmp_path, rows, model=model, per_device_train_batch_size=5, log_samples=log_samples)
    with pytest.raises(FloatingPointError, match=f"not finite in step 1, for 1 samples .*{named}.*The step was not"):
        run.train()
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
    assert not any(tmp_path.glob("checkpoint-*"))


def test_a_layerwise_optimizer_takes_no_step_of_a_loss_that_is_not_finite(tmp_path):
    """It steps within the backward pass, before the check of other optimizers."""
    run = trainer(tmp_path, [{"prompt": "a", "completion": "azaz"}] * 2, model=broken_model())
    run.create_optimizer()
    run.args.optim = OptimizerNames.GALORE_ADAMW_LAYERWISE
    steps = []
    for parameter in run.model.parameters():
        parameter.register_post_accumulate_grad_hook(steps.append)
    with pytest.raises(FloatingPointError, match="not finite in step 1"):
        run.train()
    assert not steps


def test_a_gradient_that_overflows_ends_the_run(tmp_path):
    run = trainer(tmp_path, sample_rows(4))
    weight = next(parameter for parameter in run.model.parameters() if parameter.dim() == 2)
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 1. The step was not taken"):
        run.train()
    assert torch.equal(weight, before)


def test_float16_skips_a_step_with_a_warning(caplog):
    """The loss scaling takes the step back by itself; the optimizer's scaler is what tells float16."""
    model = torch.nn.Linear(1, 1)
    model.weight.grad = torch.tensor([[float("inf")]])
    optimizer = SimpleNamespace(scaler=object())
    FiniteCheck().on_pre_optimizer_step(None, SimpleNamespace(global_step=0), None, model=model, optimizer=optimizer)
    assert "not finite at step 1; the loss scaling of float16 skips it" in caplog.text


def test_evaluation_warns_of_a_loss_that_is_not_finite(tmp_path, caplog):
    trainer(
        tmp_path, sample_rows(2), eval_rows=[{"prompt": "a", "completion": "azaz"}], model=broken_model()
    ).evaluate()
    assert "The loss is not finite in the evaluation" in caplog.text
