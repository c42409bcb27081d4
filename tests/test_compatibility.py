"""What works with `SFTTrainer` works with `BFTTrainer`. The items are those of docs/compatibility.md."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import CHAT_TEMPLATE, build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset, load_from_disk
from peft import LoraConfig
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bft_trl import BFTConfig, BFTTrainer

KINDS = ("sft", "bft", "nll")
COMMON = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True}
PACKED = {"packing": True, "max_length": 96}
every_trainer = pytest.mark.parametrize("kind", KINDS)


def config(kind, folder, **options):
    options = {"max_steps": 1, "save_strategy": "no", "logging_steps": 1} | options
    if kind == "sft":
        return SFTConfig(str(folder), **COMMON, **options)
    return build_config(folder, loss_type=kind, **options)


def trainer(kind, folder, train=None, evaluation=None, *, model=None, options=None, **arguments):
    return (SFTTrainer if kind == "sft" else BFTTrainer)(
        build_model() if model is None else model,
        args=config(kind, folder, **(options or {})),
        train_dataset=Dataset.from_list(sample_rows(6)) if train is None else train,
        eval_dataset=evaluation,
        **{"processing_class": build_tokenizer()} | arguments,
    )


def raw(seed=1):
    return Dataset.from_list(sample_rows(4, seed=seed))


# --- 1: evaluate -----------------------------------------------------------------------------------------------------


@every_trainer
@pytest.mark.parametrize("options", [{}, PACKED], ids=["rows", "packed"])
def test_evaluate_takes_every_form_of_data(kind, options, tmp_path):
    """Packed or not, the nll of the same four rows is the same; of a packed set TRL makes one document per row."""
    rows = raw()
    run = trainer(kind, tmp_path, evaluation=rows, options=options)
    prepared = trainer("sft", tmp_path, evaluation=rows).eval_dataset
    name = "eval_loss" if kind == "sft" else "eval_nll"
    expected = run.evaluate()[name]
    forms = {"raw": rows, "prepared": prepared, "own": run.eval_dataset}
    for form, dataset in forms.items():
        tolerance = 0.02 if kind == "sft" and options and form == "own" else 1e-5
        assert run.evaluate(dataset)[name] == pytest.approx(expected, rel=tolerance), form
    both = run.evaluate({"a": rows, "b": run.eval_dataset})
    for key in ("a", "b"):  # TRL packs the sets of a dict twice
        found = both[name.replace("eval_", f"eval_{key}_")]
        assert found == pytest.approx(expected, rel=0.02 if kind == "sft" and options else 1e-5)
    assert run.evaluate(run.train_dataset)[name] > 0


@every_trainer
def test_an_eval_dict_assigned_after_construction(kind, tmp_path):
    run = trainer(kind, tmp_path, evaluation=raw())
    run.eval_dataset = {"a": run.eval_dataset, "b": run.train_dataset}
    assert {"eval_a_loss", "eval_b_loss"} <= run.evaluate().keys()


# --- 2: prepared data ------------------------------------------------------------------------------------------------


@every_trainer
@pytest.mark.parametrize("options", [{}, PACKED], ids=["rows", "packed"])
def test_prepared_data_serve_again(kind, options, tmp_path):
    first = trainer(kind, tmp_path, evaluation=raw(), options=options)
    first.train()
    first.train_dataset.save_to_disk(tmp_path / "data")
    for data in (first.train_dataset, load_from_disk(tmp_path / "data")):
        again = trainer(kind, tmp_path, data, options=options | {"dataset_kwargs": {"skip_prepare_dataset": True}})
        again.train()
        for key in ("input_ids", "labels"):
            assert torch.equal(
                next(iter(again.get_train_dataloader()))[key], next(iter(first.get_train_dataloader()))[key]
            )
        assert again.state.log_history[0]["loss"] == pytest.approx(first.state.log_history[0]["loss"], rel=1e-6)
        trainer(kind, tmp_path, data, options=options).train()


# --- 3: with_transform -----------------------------------------------------------------------------------------------


@every_trainer
def test_a_transform_sees_its_own_columns(kind, tmp_path):
    seen = set()

    def tokenize(rows):
        seen.update(rows)
        ids = build_tokenizer()(rows["prompt"])["input_ids"]
        return {"input_ids": ids, "labels": ids}

    data = raw().with_transform(tokenize)
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "max_length": None}
    trainer(kind, tmp_path, data, options=options).train()
    assert seen == {"prompt", "completion"}


# --- 4: conversations ------------------------------------------------------------------------------------------------


@every_trainer
def test_messages_beside_an_unused_column_of_none(kind, tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data = Dataset.from_list([{"messages": messages, "note": None, "text": None}] * 4)
    trainer(kind, tmp_path, data).train()


@every_trainer
def test_assistant_turns_with_reasoning_alone(kind, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "message['content']", "(message['content'] or '') + (message['reasoning_content'] or '')"
    )
    turn = {"role": "assistant", "content": None, "reasoning_content": "think"}
    data = Dataset.from_list([{"messages": [{"role": "user", "content": "a", "reasoning_content": None}, turn]}] * 4)
    trainer(kind, tmp_path, data, processing_class=tokenizer).train()


# --- 5: images and embeddings ----------------------------------------------------------------------------------------


def vision_model():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for message in messages %}<bos>{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<eos>{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, **small, pad_token_id=0)
    vision = CLIPVisionConfig(hidden_size=16, **small, image_size=8, patch_size=4, projection_dim=16)
    image = tokenizer.convert_tokens_to_ids("<image>")
    model_config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, pad_token_id=0)
    return LlavaForConditionalGeneration(model_config), processor


@every_trainer
@pytest.mark.parametrize("lora", [False, True])
def test_a_tiny_vision_language_model_trains(kind, lora, tmp_path):
    model, processor = vision_model()
    images = [Image.fromarray(np.full((8, 8, 3), 60 * shade, np.uint8)) for shade in range(4)]
    turns = {"prompt": [{"role": "user", "content": "What?"}], "completion": [{"role": "assistant", "content": "it"}]}
    data = Dataset.from_list([{"images": [image], **turns} for image in images])
    peft = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    options = {"max_length": None, "learning_rate": 1.0}
    run = trainer(
        kind, tmp_path, data, data, model=model, options=options, processing_class=processor, peft_config=peft
    )
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] != before


@every_trainer
def test_a_collator_that_returns_embeddings(kind, tmp_path):
    model = build_model()

    def embed(rows):
        batch = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids")).detach()
        return batch

    run = trainer(kind, tmp_path, model=model, data_collator=embed)
    run.train()
    plain = trainer(kind, tmp_path)
    plain.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-6)


# --- 6: the collator -------------------------------------------------------------------------------------------------


@every_trainer
def test_the_collator_is_trls_and_its_check_fires(kind, tmp_path):
    run = trainer(kind, tmp_path)
    assert type(run.data_collator) is DataCollatorForLanguageModeling
    masks = Dataset.from_list([{"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}])
    with pytest.raises(ValueError, match="has mask columns but no 'labels'"):
        trainer(kind, tmp_path, masks, options={"dataset_kwargs": {"skip_prepare_dataset": True}})


# --- 7: arguments ----------------------------------------------------------------------------------------------------


returns_logits = pytest.mark.filterwarnings("default:`return_outputs=True`:FutureWarning")


@returns_logits
@every_trainer
def test_positional_arguments_and_tags(kind, tmp_path):
    seen = []

    def count(prediction):
        seen.append(len(prediction.label_ids))
        return {"rows": seen[-1]}

    run = (SFTTrainer if kind == "sft" else BFTTrainer)(
        build_model(),
        config(kind, tmp_path),
        None,
        Dataset.from_list(sample_rows(4)),
        raw(),
        build_tokenizer(),
        None,
        count,
    )
    run.train(None, None, None)
    assert run.evaluate()["eval_rows"] == 4
    assert "sft" in run.model.model_tags
    assert ("bft" in run.model.model_tags) == (kind != "sft")


@pytest.mark.parametrize("trainer_class", [SFTTrainer, BFTTrainer])
def test_plain_training_arguments(trainer_class, tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", hub_token="hf_x")
    data = Dataset.from_list(sample_rows(4))
    run = trainer_class(build_model(), args, train_dataset=data, processing_class=build_tokenizer())
    run.train()
    assert run.args.hub_token == "hf_x"
    assert isinstance(run.args, BFTConfig if trainer_class is BFTTrainer else SFTConfig)


# --- 8 to 12 ---------------------------------------------------------------------------------------------------------


@returns_logits
@every_trainer
def test_a_metric_of_the_user_wins(kind, tmp_path):
    run = trainer(kind, tmp_path, evaluation=raw(), compute_metrics=lambda prediction: {"nll": -1.0, "loss": -2.0})
    metrics = run.evaluate()
    assert (metrics["eval_nll"], metrics["eval_loss"]) == (-1.0, -2.0)


@returns_logits
@every_trainer
def test_metrics_may_evaluate_another_set(kind, tmp_path):
    def nested(prediction):
        run.compute_metrics = None
        return {"inner": run.predict(run.train_dataset).metrics["test_loss"]}

    run = trainer(kind, tmp_path, evaluation=raw(), compute_metrics=nested)
    found = run.evaluate()
    plain = run.evaluate()
    assert found["eval_inner"] != plain["eval_loss"]
    for name in ("eval_loss", *([] if kind == "sft" else ["eval_nll"])):
        assert found[name] == pytest.approx(plain[name], rel=1e-5)


@every_trainer
def test_a_frozen_model_is_evaluated(kind, tmp_path):
    model = build_model()
    model.requires_grad_(False)
    run = trainer(kind, tmp_path, evaluation=raw(), model=model)
    assert run.evaluate()["eval_loss"] > 0
    with pytest.raises((ValueError, RuntimeError), match="no trainable parameter|does not require grad|optimizer"):
        run.train()


# 9 is `test_packing_is_trls`; 10 is `test_checkpoints_of_save_only_model_resume` and its neighbors; the token of 12 is
# `test_the_token_stays_in_copies_and_not_in_files`.


@pytest.mark.parametrize("kind", ["bft"])
def test_memory_does_not_grow_with_evaluations(kind, tmp_path):
    """Under 20 bytes for each row that is evaluated after the first two sets; a stored id takes 50 and more."""
    options = {"per_device_eval_batch_size": 500, "metrics_by_column": "kind"}

    def rows(seed):
        return Dataset.from_dict(
            {"input_ids": [[5, 6 + seed]] * 1000, "labels": [[5, 6]] * 1000, "kind": ["a"] * 1000}
        )

    run = trainer(kind, tmp_path, rows(0), options=options)
    tracemalloc.start()
    sizes = []
    for seed in range(5):
        run.evaluate(rows(seed))
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[4] - sizes[1] < 3 * 1000 * 20
