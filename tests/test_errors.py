"""Options that cannot be used, and data that cannot be trained on: one clear error before training starts."""

import pytest
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from test_trainer import SGD, build, logged
from trl import SFTConfig

from bft_trl import BFTTrainer
from bft_trl.training.validation import check_parallelism


def trainer(tmp_path, rows=None, *, config=None, **options):
    return BFTTrainer(
        options.pop("model", None) or build_model(),
        args=build_config(tmp_path, **(config or {})),
        train_dataset=Dataset.from_list(sample_rows(4) if rows is None else rows),
        processing_class=build_tokenizer(),
        **options,
    )


def test_compute_loss_func(tmp_path):
    with pytest.raises(ValueError, match="`compute_loss_func`.*loss_type"):
        trainer(tmp_path, compute_loss_func=lambda *_, **__: 0)


def test_adapter_on_the_head(tmp_path):
    lora = LoraConfig(target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="lm_head"):
        trainer(tmp_path, model=build_model(tie_word_embeddings=False), peft_config=lora)


def test_plain_sft_config(tmp_path):
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(TypeError, match="`args` must be a `BFTConfig`, got `SFTConfig`"):
        BFTTrainer(build_model(), args=args, train_dataset=Dataset.from_list(sample_rows(2)))


def test_missing_column(tmp_path):
    with pytest.raises(ValueError, match=r"columns \['answer', 'question'\].*'prompt' and 'completion'"):
        trainer(tmp_path, [{"question": "a", "answer": "b"}])


def test_empty_datasets(tmp_path):
    empty = Dataset.from_dict({"text": []})
    with pytest.raises(ValueError, match="The train dataset is empty"):
        BFTTrainer(build_model(), build_config(tmp_path), None, empty, processing_class=build_tokenizer())
    with pytest.raises(ValueError, match="The eval dataset is empty"):
        trainer(tmp_path, eval_dataset={"eval": empty}, config={"metric_for_best_model": "loss"})


@pytest.mark.parametrize("form", ["stream", "prepared"])
def test_nothing_to_learn_in_a_stream_or_in_prepared_rows(form, tmp_path):
    if form == "stream":
        data = Dataset.from_list([{"prompt": "a" * 50, "completion": "b"}] * 3).to_iterable_dataset()
        config = {"max_length": 20, "max_steps": 1}
    else:
        data = Dataset.from_list([{"input_ids": [5, 6], "labels": [-100, -100]}])
        config = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    with pytest.raises(ValueError, match="no supervised token in any row"):
        BFTTrainer(build_model(), build_config(tmp_path, **config), None, data, processing_class=build_tokenizer())


@pytest.mark.parametrize(
    "cut",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "packing": True, "max_length": 96},
    ],
    ids=["padded", "packed"],
)
def test_stream_trains_as_the_dataset_does(cut, tmp_path):
    """4 rows, 3 steps of all of them: the stream's empty pulls at the end of an epoch are no steps."""
    rows, results = sample_rows(4), []
    for stream in (False, True):
        data = Dataset.from_list(rows)
        run = BFTTrainer(
            build_model(),
            build_config(tmp_path, **cut, **SGD),
            train_dataset=data.to_iterable_dataset() if stream else data,
            processing_class=build_tokenizer(),
        )
        run.train()
        results.append({name: logged(run, name) for name in ("loss", "nll", "effective_sample_size")})
    for name, values in results[0].items():
        assert results[1][name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}], "'completion' of row 1: None"),
        ([{"messages": [{"role": "user", "content": None}]}], "'messages' of row 0"),
        ([{"messages": []}], "'messages' of row 0"),
        ([{"text": 5}], "'text' of row 0: 5"),
    ],
)
def test_cells_without_text(rows, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path, rows)


def test_an_error_of_the_chat_template_is_not_taken_for_a_missing_text(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "a"}]
    data = Dataset.from_list([{"messages": turns, "text": None}])
    with pytest.raises(Exception, match="Roles must alternate"):
        BFTTrainer(build_model(), build_config(tmp_path), train_dataset=data, processing_class=tokenizer)


def test_an_error_of_the_formatting_function_is_not_changed(tmp_path):
    with pytest.raises(KeyError, match="answer"):
        trainer(tmp_path, [{"prompt": None, "q": "a"}], formatting_func=lambda row: row["q"] + row["answer"])


def test_torch_formatted_rows_are_not_dropped(tmp_path, caplog):
    data = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 3).with_format("torch")
    run = BFTTrainer(build_model(), build_config(tmp_path), train_dataset=data, processing_class=build_tokenizer())
    assert len(run.train_dataset) == 3
    assert "dropped" not in caplog.text


def test_prompt_learning_with_packing(tmp_path):
    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="`PromptTuningConfig`.*packing=False"):
        trainer(tmp_path, peft_config=tuning, config={"packing": True, "max_length": 64})
    run = trainer(tmp_path, peft_config=tuning, config={"max_steps": 1})
    run.train()
    assert logged(run, "windowed_fraction")


def test_output_dir_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match="`output_dir=.*is a file. Name a folder"):
        trainer(file)


@pytest.mark.parametrize("packing", [False, True])
def test_no_supervised_token_at_all(packing, tmp_path):
    rows = [{"prompt": "a" * 50, "completion": "b"}] * 3
    with pytest.raises(ValueError, match="no supervised token in any row.*max_length=20"):
        trainer(tmp_path, rows, config={"max_length": 20, "packing": packing})


def test_dropped_rows_are_counted(tmp_path, caplog):
    rows = [{"prompt": "a" * size, "completion": "b"} for size in (3, 50, 4)]
    kept = trainer(tmp_path, rows, config={"max_length": 20})
    assert "TRL dropped 1 of 3 rows of the train dataset" in caplog.text
    assert len(kept.train_dataset) == 2


def test_rows_without_supervised_token_weigh_nothing_in_a_batch(tmp_path):
    """Labels given beforehand and preparation skipped: the loss is that of the other rows alone."""
    tokenized = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]},
        {"input_ids": [9, 9, 5], "labels": [-100, 9, 5]},
    ]
    empty = {"input_ids": [5, 5, 5], "labels": [-100, -100, -100]}
    losses = []
    for rows in (tokenized, [*tokenized, empty]):
        run = build(
            tmp_path,
            rows,
            per_device_train_batch_size=4,
            dataset_kwargs={"skip_prepare_dataset": True},
            **SGD | {"max_steps": 1},
        )
        run.train()
        losses.append((logged(run, "loss"), logged(run, "nll"), logged(run, "effective_sample_size")))
    for with_empty, without in zip(losses[1], losses[0], strict=True):
        assert with_empty == pytest.approx(without, rel=1e-6)


def test_best_metric_with_several_evaluation_sets(tmp_path):
    sets = {name: Dataset.from_list(sample_rows(2)) for name in ("go", "qa")}
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    with pytest.raises(ValueError, match=r"eval_go_nll', 'eval_qa_nll"):
        trainer(tmp_path, eval_dataset=sets, config=best)
    run = trainer(tmp_path, eval_dataset=sets)
    metrics = run.evaluate()
    assert {"eval_go_nll", "eval_qa_nll"} <= set(metrics)


@pytest.mark.parametrize("size", ["sp_size", "cp_size", "tp_size"])
def test_parallelism_over_the_sequence(size):
    from accelerate.parallelism_config import ParallelismConfig

    with pytest.raises(ValueError, match="parallelism are not supported.*DDP, FSDP or ZeRO"):
        check_parallelism(ParallelismConfig(**{size: 2}))
    check_parallelism(ParallelismConfig(dp_replicate_size=2))
    check_parallelism(None)
