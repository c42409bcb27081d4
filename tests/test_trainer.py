"""Equivalence classes of the trainer: what must not change the loss, and what it must equal."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import bitsandbytes
import pytest
import reference
import torch
from conftest import DEVICES, build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer
from two_ranks import BY_VALUE, CASES, METRICS, SGD, case_trainer, outcome

from bft_trl import BFTTrainer
from bft_trl.training.batches import RecordingForward


def build(tmp_path, rows=None, *, model=None, eval_rows=None, callbacks=None, **config):
    return BFTTrainer(
        build_model() if model is None else model,
        args=build_config(tmp_path, **config),
        train_dataset=Dataset.from_list(sample_rows(8) if rows is None else rows),
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
        processing_class=build_tokenizer(),
        callbacks=callbacks,
    )


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights_of(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


class FirstGradient(TrainerCallback):
    """Keeps the gradient that reaches the optimizer in the first step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 0:
            self.value = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


# --- nll and dft are TRL's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
@pytest.mark.parametrize("packing", [False, True])
def test_nll_and_dft_equal_trl_bit_for_bit(loss_type, packing, tmp_path):
    lora = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.1}
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "max_length": 96,
        "packing": packing,
        "shuffle_dataset": True,
    }
    results = []
    for kind, trainer_class in ((SFTConfig, SFTTrainer), (None, BFTTrainer)):
        args = build_config(tmp_path, loss_type=loss_type, lm_head_backend="trl", **options)
        if kind is SFTConfig:
            shared = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
            shared |= {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
            args = SFTConfig(str(tmp_path), loss_type=loss_type, **shared, **options)
        trainer = trainer_class(
            build_model(),
            args=args,
            train_dataset=Dataset.from_list(sample_rows(8)),
            processing_class=build_tokenizer(),
            peft_config=LoraConfig(**lora),
        )
        trainer.train()
        results.append((logged(trainer, "loss"), logged(trainer, "grad_norm"), weights_of(trainer)))
    (loss, norm, weights), (our_loss, our_norm, our_weights) = results
    assert our_loss == loss
    assert our_norm == norm
    assert torch.equal(our_weights, weights)


# --- the same step however it is cut ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [{"bft_version": "v1"}, {"bft_version": "v3"}, {"bft_version": "v1", "token_weighting": False}]
)
@pytest.mark.parametrize("rows", [8, 7])
def test_accumulation_changes_nothing(rule, rows, tmp_path):
    """Batch x accumulation 8x1, 4x2, 2x4, 1x8 with padding; with 7 rows the last micro-batch is ragged.

    The expected loss and gradient come from full logits and the loop reference.
    """
    data = sample_rows(rows)
    model = build_model()
    tokenizer = build_tokenizer()
    ids = [
        (tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"] + "<eos>")["input_ids"]) for row in data
    ]
    longest = max(len(prompt) + len(answer) for prompt, answer in ids)
    inputs, labels = torch.zeros(rows, longest, dtype=torch.long), torch.full((rows, longest), -100)
    for row, (prompt, answer) in enumerate(ids):
        inputs[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    if rule.get("token_weighting", True):
        version = rule["bft_version"]
        expected = reference.bft_loss(model(input_ids=inputs).logits, labels, version=version, group_size=8)
        expected_gradient = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(model.parameters()))])

    runs = []
    for batch, steps in ((8, 1), (4, 2), (2, 4), (1, 8)):
        cut = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        gradient = FirstGradient()
        trainer = build(tmp_path, data, callbacks=[gradient], **(SGD | cut | rule))
        trainer.train()
        runs.append((trainer, gradient.value))
    first, first_gradient = runs[0]
    if rule.get("token_weighting", True):
        assert logged(first, "loss")[0] == pytest.approx(expected.item(), abs=1e-6)
        assert (first_gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
    for trainer, gradient in runs[1:]:
        assert logged(trainer, "loss") == pytest.approx(logged(first, "loss"), abs=1e-6)
        assert (gradient - first_gradient).norm() <= 1e-5 * first_gradient.norm()
        assert (weights_of(trainer) - weights_of(first)).abs().max() <= 1e-5
        for name in METRICS:
            assert logged(trainer, name) == pytest.approx(logged(first, name), rel=1e-5), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("version", ["v1", "v3"])
def test_packed_equals_unpacked(attention, version, tmp_path):
    """A packed document is a sample of its own: the same loss, step and metrics as one row per document."""
    rows = sample_rows(8)
    common = SGD | {"bft_version": version, "max_length": 96}
    runs = []
    for packing, batch, steps in ((False, 8, 1), (True, 8, 1), (True, 1, 8), (True, 2, 4)):
        torch.manual_seed(0)
        model = build_model(attn_implementation=attention)
        cut = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "packing": packing}
        trainer = build(tmp_path, rows, model=model, eval_rows=rows, **(common | cut))
        if packing:
            assert len(trainer.train_dataset) < len(rows)
        trainer.train()
        runs.append((trainer, trainer.evaluate()))
    first, first_evaluation = runs[0]
    for trainer, evaluation in runs[1:]:
        assert logged(trainer, "loss") == pytest.approx(logged(first, "loss"), abs=1e-6)
        assert (weights_of(trainer) - weights_of(first)).abs().max() <= 1e-5
        for name in METRICS:
            assert logged(trainer, name) == pytest.approx(logged(first, name), rel=1e-5), name
            assert evaluation[f"eval_{name}"] == pytest.approx(first_evaluation[f"eval_{name}"], rel=1e-5), name


PEERS = [
    {"loss_type": "bft", "token_weight_power": 0.5, "anchor_coef": 0.5},
    {"loss_type": "eaft", "anchor_coef": 0.5},
]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: "-".join(map(str, peer.values())))
def test_peers_do_not_depend_on_batches_and_packing(peer, tmp_path):
    """7 rows in one batch, in ragged micro-batches and packed; also what is logged and evaluated."""
    rows, runs = sample_rows(7), []
    for packing, batch, steps in ((False, 7, 1), (False, 4, 2), (False, 1, 7), (True, 7, 1), (True, 1, 7)):
        cut = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "packing": packing}
        trainer = BFTTrainer(
            build_model(),
            args=build_config(tmp_path, max_length=96, per_device_eval_batch_size=3, **SGD | cut | peer),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            processing_class=build_tokenizer(),
            peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.train()
        runs.append((trainer, trainer.evaluate()))
    names = ("loss", "nll", "token_weight", *(["anchor_kl"] if "anchor_coef" in peer else []))
    (first, first_evaluation), *others = runs
    assert ("eval_anchor_kl" in first_evaluation) == ("anchor_coef" in peer)
    if "anchor_coef" in peer:
        divergences = logged(first, "anchor_kl")
        assert divergences[0] == 0  # an adapter starts as no change
        assert min(divergences[1:]) > 0
    for trainer, evaluation in others:
        assert (weights_of(trainer) - weights_of(first)).abs().max() <= 1e-5
        for name in names:
            assert logged(trainer, name) == pytest.approx(logged(first, name), rel=1e-4, abs=1e-6), name
            assert evaluation[f"eval_{name}"] == pytest.approx(first_evaluation[f"eval_{name}"], rel=1e-4), name


ATTENTIONS = ["sdpa", "flex_attention", "flash_attention_2"]
PRECISIONS = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["padded", "packing", "padding_free"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_devices_precisions_and_layouts(attention, layout, precision, device, tmp_path):
    """Three steps and an evaluation agree with those of padded rows in float32 on the CPU, to the precision."""
    if device == "cpu" and (attention != "sdpa" or precision == "float16"):
        pytest.skip("needs a CUDA device")
    if attention != "sdpa" and precision != "bfloat16":
        pytest.skip("in bfloat16 only, which flash attention asks for; flex attention compiles for a long time")
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    rows = sample_rows(8)
    here = {"use_cpu": device == "cpu", "bf16": precision == "bfloat16", "fp16": precision == "float16"}
    here |= {layout: True, "max_length": 96 if layout == "packing" else None} if layout != "padded" else {}
    found = []
    for kernel, options in (("sdpa", {}), (attention, here)):
        model = build_model(hidden_size=64, attn_implementation=kernel)
        options = SGD | {"learning_rate": 0.05, "per_device_train_batch_size": 8} | options
        trainer = build(tmp_path, rows, model=model, eval_rows=rows, bft_version="v3", **options)
        trainer.train()
        metrics = {f"{name} {step}": x for name in ("loss", *METRICS) for step, x in enumerate(logged(trainer, name))}
        evaluation = trainer.evaluate()
        found.append(metrics | {name: evaluation[name] for name in ("eval_loss", "eval_nll")})
    near = PRECISIONS[precision]
    assert found[1] == pytest.approx(found[0], rel=near, abs=near / 10)


@pytest.mark.parametrize("loss_type", ["bft", "dft", "nll"])
def test_evaluation_is_exact_whatever_the_batch_size(loss_type, tmp_path):
    """7 rows of unequal length in batches of 1, 3 and 7; the expected nll is the mean over all tokens by hand."""
    rows = sample_rows(7, seed=3)
    model, tokenizer = build_model(), build_tokenizer()
    nlls = []
    with torch.no_grad():
        for row in rows:
            prompt, answer = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"] + "<eos>")["input_ids"]
            log_probs = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            nlls += [-log_probs[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)]
    results = []
    for batch in (1, 3, 7):
        trainer = build(tmp_path, eval_rows=rows, loss_type=loss_type, per_device_eval_batch_size=batch)
        results.append(trainer.evaluate())
    for result in results:
        assert result["eval_nll"] == pytest.approx(sum(nlls) / len(nlls), rel=1e-5)
        for name in (*METRICS, "loss"):
            assert result[f"eval_{name}"] == pytest.approx(results[0][f"eval_{name}"], rel=1e-6), name
    if loss_type == "nll":
        assert results[0]["eval_loss"] == pytest.approx(results[0]["eval_nll"], rel=1e-6)


def test_logged_metrics_by_hand(tmp_path):
    """A step of two micro-batches; sums over the step, not means of batch means."""
    rows = sample_rows(3)
    trainer = build(
        tmp_path, rows, per_device_train_batch_size=2, gradient_accumulation_steps=2, **SGD | {"max_steps": 1}
    )
    model, tokenizer = build_model(), build_tokenizer()
    samples = []
    with torch.no_grad():
        for row in rows:
            prompt, answer = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"] + "<eos>")["input_ids"]
            probs = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().softmax(-1)
            samples.append([probs[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)])
    trainer.train()
    weighed = [reference.weights(c, group_size=8) for c in samples]
    tokens = [c for sample in samples for c in sample]
    s = [weight for _, weight, _, _ in weighed]
    expected = {
        "token_weight": sum(tokens) / len(tokens),
        "sample_weight": sum(s) / 3,
        "group_confidence": sum(p for _, _, p, _ in weighed) / 3,
        "group_confidence_min": min(p for _, _, p, _ in weighed),
        "effective_sample_size": sum(s) ** 2 / sum(x * x for x in s),
        "windowed_fraction": sum(len(c) > 8 for c in samples) / 3,
    }
    for name, value in expected.items():
        assert logged(trainer, name) == [pytest.approx(value, rel=1e-4)], name


def test_the_last_log_without_logging_covers_the_run(tmp_path):
    """Two steps at rate 0, one row each: the nll is that of both rows by hand."""
    rows = sample_rows(2)
    model, tokenizer = build_model(), build_tokenizer()
    nlls = []
    with torch.no_grad():
        for row in rows:
            prompt, answer = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"] + "<eos>")["input_ids"]
            log_probs = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            nlls += [-log_probs[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)]
    options = {"logging_strategy": "no", "per_device_train_batch_size": 1, "max_steps": 2, "learning_rate": 0.0}
    trainer = build(tmp_path, rows, **SGD | options)
    trainer.train()
    assert logged(trainer, "nll") == [pytest.approx(sum(nlls) / len(nlls), rel=1e-5)]


def test_both_levels_off_is_the_mean_over_samples(tmp_path):
    """Not SFT's mean over tokens: a short answer counts as much as a long one."""
    rows = sample_rows(4)
    losses = {}
    for loss_type in ("bft", "nll"):
        options = {"loss_type": loss_type, "token_weighting": False, "sample_weighting": False}
        trainer = build(tmp_path, rows, per_device_train_batch_size=4, **SGD | options | {"max_steps": 1})
        trainer.train()
        losses[loss_type] = logged(trainer, "loss")[0]
    alone = []
    for row in rows:
        trainer = build(tmp_path, [row], loss_type="nll", **SGD | {"max_steps": 1})
        trainer.train()
        alone.append(logged(trainer, "loss")[0])
    assert losses["bft"] == pytest.approx(sum(alone) / 4, rel=1e-5)
    assert losses["bft"] != pytest.approx(losses["nll"], rel=1e-3)


def test_mixture_of_experts_keeps_its_auxiliary_loss(tmp_path):
    """The logged loss with coefficient 0.5 exceeds the one with 0 by half the logged auxiliary loss."""
    from transformers import MixtralConfig, MixtralForCausalLM

    losses = []
    for coefficient in (0.0, 0.5):
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=259,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            max_position_embeddings=128,
        )
        trainer = build(
            tmp_path,
            model=MixtralForCausalLM(config),
            router_aux_loss_coef=coefficient,
            per_device_train_batch_size=8,
            **SGD | {"max_steps": 1},
        )
        trainer.train()
        losses.append((logged(trainer, "loss")[0], logged(trainer, "aux_loss")))
    (plain, _), (with_auxiliary, auxiliary) = losses
    assert with_auxiliary == pytest.approx(plain + 0.5 * auxiliary[0], rel=1e-5)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two gloo ranks make of every case. They are started once, because that takes most of the time."""
    script = Path(__file__).parent / "two_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    results = {}
    sharded = [case for case in CASES if "zero" in case] if find_spec("deepspeed") else []
    for cases in [[case for case in CASES if "zero" not in case], *([case] for case in sharded)]:
        folder = tmp_path_factory.mktemp("two_ranks")
        done = subprocess.run(
            [*command, str(folder), *cases],
            capture_output=True,
            text=True,
            timeout=240,  # a rank that waits for another in vain would wait for half an hour
            check=False,
            env=os.environ | {"DS_ACCELERATOR": "cpu"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results |= torch.load(folder / "two_ranks.pt", weights_only=True)
    return results


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(case, two_ranks, tmp_path):
    """With unequal numbers of samples per rank and step: loss, gradient, metrics and weights of one process."""
    if case not in two_ranks:
        pytest.skip("DeepSpeed is not installed")
    ranks = two_ranks[case]
    one = case_trainer(case, tmp_path, CASES[case][0], ranks=1)
    expected = outcome(one)
    assert ranks["sharded"] == ("fsdp2" in case)
    assert ranks["head"] == one.lm_head_backend == ("frozen" if "lora" in case else "trl")
    assert len(ranks["loss"]) == 3
    assert ranks["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert ranks["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    assert (ranks["weights"] - expected["weights"]).abs().max() <= 1e-5
    if "masked" not in case:
        # Every sample of every step once, whichever rank saw it; rows that fill up a batch are none.
        assert len(expected["record"]) == 3 * (5 if "ragged" in case else 8)
        assert torch.allclose(ranks["record"], expected["record"], rtol=1e-5, atol=1e-6)
    for name in (*METRICS, *BY_VALUE):
        assert ranks[name] == pytest.approx(expected[name], rel=1e-5), name
        if f"eval_{name}" in expected:
            assert ranks[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], rel=1e-5), name


# --- QLoRA -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nf4_folder(tmp_path):
    build_model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def nf4_trainer(folder, out, dataset, model=None, *, device="cpu", **options):
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = model or AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=nf4, dtype=torch.float32, device_map=device
    )
    return BFTTrainer(
        model,
        args=build_config(out, max_steps=2, per_device_train_batch_size=4, use_cpu=device == "cpu", **options),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(2)),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(r=2, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_an_evaluation_does_not_stop_qlora_from_learning(device, nf4_folder, tmp_path, dataset):
    """On a CPU with AVX512-BF16 bitsandbytes would repack the weights, and no gradient would pass them any more."""
    adapters = []
    for options in ({"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}):
        trainer = nf4_trainer(nf4_folder, tmp_path / options["eval_strategy"], dataset, device=device, **options)
        trainer.train()
        adapters.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_B" in n})
    assert all(weight.abs().sum() > 0 for weight in adapters[1].values())
    for name, weight in adapters[0].items():
        torch.testing.assert_close(weight, adapters[1][name], atol=0 if device == "cpu" else 1e-6, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("packing", [False, True])
def test_qlora_on_nf4_equals_the_model_without_quantization(packing, device, nf4_folder, tmp_path, dataset):
    """The same adapter over the weights that NF4 stands for, in float32 and padded on the CPU: the same metrics."""
    cut = {"packing": packing, "max_length": 96}
    quantized = nf4_trainer(nf4_folder, tmp_path / "a", dataset, device=device, **cut)
    plain = build_model(hidden_size=64, intermediate_size=64)
    for name, module in quantized.model.get_base_model().named_modules():
        weight = getattr(getattr(module, "base_layer", None), "weight", None)
        if hasattr(weight, "quant_state"):
            exact = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            plain.get_submodule(name).weight.data.copy_(exact)
    reference_run = nf4_trainer(nf4_folder, tmp_path / "b", dataset, model=plain)
    found = [run.evaluate() for run in (quantized, reference_run)]
    for name in ("loss", *METRICS):
        assert found[0][f"eval_{name}"] == pytest.approx(found[1][f"eval_{name}"], rel=1e-3), name
    quantized.train()
    assert min(logged(quantized, "grad_norm")) > 0


def test_weights_that_were_repacked_before_raise(nf4_folder, tmp_path, dataset):
    trainer = nf4_trainer(nf4_folder, tmp_path / "a", dataset)
    model = trainer.model.unload()
    linear = next(module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu"))
    linear.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"4-bit weights of .* have been used for inference on this CPU"):
        nf4_trainer(nf4_folder, tmp_path / "b", dataset, model=model)


# --- what an anchor and eaft need ------------------------------------------------------------------------------------


def peft_model(**options):
    return get_peft_model(build_model(**options), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))


def trained_norm():
    model = peft_model()
    model.get_base_model().model.norm.weight.requires_grad_()
    return model


def two_adapters():
    model = get_peft_model(build_model(), LoraConfig(task_type="CAUSAL_LM"))
    model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    return model


@pytest.mark.parametrize(
    ("model", "peft_config", "option", "words"),
    [
        ("no/such-model", None, {"anchor_coef": 0.1}, "Pass a `peft_config`"),
        (build_model, None, {"anchor_coef": 0.1}, "Pass a `peft_config`"),
        (two_adapters, None, {"anchor_coef": 0.1}, "one active adapter"),
        (trained_norm, None, {"anchor_coef": 0.1}, r"model\.norm\.weight of that model is trained \(1 of its"),
        ("no/such-model", LoraConfig(modules_to_save=["lm_head"]), {"anchor_coef": 0.1}, "from `modules_to_save`"),
        (build_model, None, {"loss_type": "eaft"}, "`loss_type='eaft'` needs the frozen LM head, .* is trained"),
    ],
)
def test_what_an_anchor_and_eaft_need(model, peft_config, option, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        BFTTrainer(
            model if isinstance(model, str) else model(),
            args=build_config(tmp_path, **option),
            train_dataset=Dataset.from_list(sample_rows(2)),
            processing_class=build_tokenizer(),
            peft_config=peft_config,
        )


def test_the_reference_has_no_dropout_and_leaves_the_model_as_it_was(tmp_path):
    """Dropout of the base model would measure noise; PEFT makes all of an adapter trainable after disabling it."""
    model = peft_model(attention_dropout=0.5)
    frozen = [name for name, _ in model.named_parameters() if "lora_A" in name or "lora_" not in name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    trainer = BFTTrainer(
        model,
        args=build_config(tmp_path, anchor_coef=0.1),
        train_dataset=Dataset.from_list(sample_rows(2)),
        processing_class=build_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    forward = RecordingForward(model.train(), "frozen", adapted=model)
    references = []
    for _ in range(2):
        forward(**batch, fused_lm_head=True)
        references.append(forward.requested["reference"])
    assert torch.equal(*references)
    assert model.training
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == frozen
