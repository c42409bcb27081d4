"""The frozen LM head against full logits, on its own and inside models."""

import logging
import math
from types import SimpleNamespace

import pytest
import reference
import torch
from conftest import DEVICES, build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from bft_trl import BFTTrainer
from bft_trl.lm_head import frozen_log_probs
from bft_trl.model_head import frozen_head_obstacle, logit_scale, use_frozen_head

LORA = {"r": 4, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
# Of log-probabilities and entropies, and of gradients, against float64; inputs are of order 1.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (1e-1, 5e-2),
}


def draw(tokens, vocabulary, width, dtype=torch.float64, *, bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = (2 * torch.randn(vocabulary, width, generator=generator) / width**0.5).to(dtype)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    counts = torch.rand(tokens, generator=generator, dtype=torch.float64)
    return hidden, weight, targets, torch.randn(vocabulary, generator=generator).to(dtype) if bias else None, counts


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "vocabulary", "width"), [(3, 47, 31), (31, 123, 7), (1, 5, 1), (17, 1, 3)])
@pytest.mark.parametrize(("bias", "scale"), [(False, 1.0), (True, 0.6)])
def test_scores_and_gradients_equal_full_logits(dtype, tokens, vocabulary, width, bias, scale):
    hidden, weight, targets, shift, counts = draw(tokens, vocabulary, width, dtype, bias=bias)
    reference_hidden = hidden.detach().clone().requires_grad_()
    log_probs, entropy, _ = reference.head_scores(reference_hidden, weight, targets, shift, scale)
    (log_probs * counts).sum().backward()
    near, near_gradient = TOLERANCE[dtype]
    # a chunk of one row, of a few and of all rows
    for chunk_bytes in (1, 3 * vocabulary * hidden.element_size(), 2**20):
        hidden.grad = None
        scores = frozen_log_probs(hidden, weight, targets, bias=shift, logit_scale=scale, chunk_bytes=chunk_bytes)
        assert scores.log_probs.dtype == torch.promote_types(dtype, torch.float32)
        (scores.log_probs * counts).sum().backward()
        assert hidden.grad.dtype == dtype
        torch.testing.assert_close(scores.log_probs.double(), log_probs, atol=near, rtol=0)
        torch.testing.assert_close(scores.entropy.double(), entropy, atol=near, rtol=0)
        torch.testing.assert_close(hidden.grad.double(), reference_hidden.grad.double(), atol=near_gradient, rtol=0)
        with torch.no_grad():
            evaluated = frozen_log_probs(
                hidden, weight, targets, bias=shift, logit_scale=scale, chunk_bytes=chunk_bytes
            )
        assert torch.equal(evaluated.log_probs, scores.log_probs)
        torch.testing.assert_close(evaluated.entropy.double(), entropy, atol=near, rtol=0)


def test_gradcheck():
    hidden, weight, targets, shift, _ = draw(5, 11, 4, bias=True)

    def log_probs(states):
        return frozen_log_probs(states, weight, targets, bias=shift, logit_scale=0.7, chunk_bytes=200).log_probs

    assert torch.autograd.gradcheck(log_probs, (hidden,))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "vocabulary", "width"), [(3, 47, 31), (31, 123, 7), (1, 5, 1), (17, 1, 3)])
@pytest.mark.parametrize(("bias", "scale"), [(False, 1.0), (True, 0.6)])
def test_divergence_and_top_entropy_equal_full_logits(dtype, tokens, vocabulary, width, bias, scale):
    hidden, weight, targets, shift, counts = draw(tokens, vocabulary, width, dtype, bias=bias)
    base = draw(tokens, vocabulary, width, dtype, seed=1)[0].detach()
    twin = hidden.detach().clone().requires_grad_()
    log_probs, *_ = reference.head_scores(twin, weight, targets, shift, scale)
    kl, entropy = reference.head_extras(twin, base, weight, shift, scale)
    (log_probs * counts + kl * counts.flip(0)).sum().backward()
    near, near_gradient = TOLERANCE[dtype]
    for chunk_bytes in (1, 9 * vocabulary * hidden.element_size(), 2**20):
        hidden.grad = None
        options = {"bias": shift, "logit_scale": scale, "chunk_bytes": chunk_bytes}
        scores = frozen_log_probs(hidden, weight, targets, **options, reference=base, top_entropy=True)
        (scores.log_probs * counts + scores.kl * counts.flip(0)).sum().backward()
        torch.testing.assert_close(scores.kl.double(), kl, atol=near, rtol=0)
        torch.testing.assert_close(scores.top_entropy.double(), entropy, atol=near, rtol=0)
        torch.testing.assert_close(hidden.grad.double(), twin.grad.double(), atol=2 * near_gradient, rtol=0)
        plain = frozen_log_probs(hidden, weight, targets, **options)
        assert (plain.kl, plain.top_entropy) == (None, None)
        torch.testing.assert_close(plain.log_probs, scores.log_probs, atol=1e-6, rtol=1e-6)


def test_gradcheck_of_the_divergence():
    hidden, weight, targets, shift, _ = draw(5, 11, 4, bias=True)
    base = draw(5, 11, 4, seed=1)[0].detach()

    def kl(states):
        return frozen_log_probs(
            states, weight, targets, bias=shift, logit_scale=0.7, chunk_bytes=400, reference=base
        ).kl

    assert torch.autograd.gradcheck(kl, (hidden,))


def test_divergence_from_itself_is_zero():
    hidden, weight, targets, _, _ = draw(6, 31, 8, torch.float32)
    scores = frozen_log_probs(hidden, weight, targets, reference=hidden.detach())
    scores.kl.sum().backward()
    assert scores.kl.tolist() == [0.0] * 6
    assert hidden.grad.abs().max() == 0


def test_chunks_change_rounding_only():
    hidden, weight, targets, _, _ = draw(64, 301, 48, torch.float32)
    one, other = (frozen_log_probs(hidden, weight, targets, chunk_bytes=size) for size in (2**30, 5 * 301 * 4))
    assert (one.log_probs - other.log_probs).abs().max() <= 2e-6
    assert torch.equal(one.is_top1, other.is_top1)


def test_top1_is_the_first_of_equals():
    """Logits 1, 2, 2, 0 of one state: the second and third tokens are equal, and the second comes first."""
    weight = torch.tensor([[1.0], [2.0], [2.0], [0.0]])
    scores = frozen_log_probs(torch.ones(4, 1), weight, torch.arange(4))
    assert scores.is_top1.tolist() == [False, True, False, False]


def test_gradient_of_a_sure_token_in_bfloat16():
    """Logits 4 and -4: d log c / dh = W[y] - (p W[y] + q W[o]) = 2 q = 2 / (1 + e^8). As p rounds to 1 in bfloat16,
    the difference of the rounded terms would be q, half of it."""
    hidden = torch.tensor([[4.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], dtype=torch.bfloat16)
    frozen_log_probs(hidden, weight, torch.tensor([0])).log_probs.sum().backward()
    assert hidden.grad.item() == pytest.approx(2 / (1 + math.exp(8)), rel=1e-2)


def test_enormous_logits_stay_finite():
    """Logits 1e4 and 0: log c of the second is -1e4, its gradient W[y] - W[0]."""
    hidden = torch.tensor([[100.0]], requires_grad=True)
    scores = frozen_log_probs(hidden, torch.tensor([[100.0], [0.0]]), torch.tensor([1]))
    scores.log_probs.sum().backward()
    assert scores.log_probs.item() == -1e4
    assert hidden.grad.item() == -100


def test_no_token():
    hidden = torch.zeros(0, 7, requires_grad=True)
    scores = frozen_log_probs(hidden, torch.ones(5, 7), torch.zeros(0, dtype=torch.long))
    assert [len(score) for score in scores[:3]] == [0, 0, 0]
    scores.log_probs.sum().backward()
    assert hidden.grad.shape == (0, 7)


def test_a_trained_head_raises():
    hidden, weight, targets, _, _ = draw(3, 5, 2)
    with pytest.raises(ValueError, match=r"`reference` \(2, 2\) and `hidden` \(3, 2\)"):
        frozen_log_probs(hidden, weight, targets, reference=hidden[:2])
    with pytest.raises(ValueError, match="would give it no gradient"):
        frozen_log_probs(hidden, weight.requires_grad_(), targets)
    with torch.no_grad():
        assert len(frozen_log_probs(hidden, weight, targets).log_probs) == 3


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_a_head_in_another_dtype_than_the_products(stored):
    """Under bfloat16 autocast, with the weight cast in tiles of the vocabulary (here one row of it each)."""
    hidden, weight, targets, _, counts = draw(9, 37, 16, torch.float32)
    reference_hidden = hidden.detach().clone().requires_grad_()
    log_probs, _, _ = reference.head_scores(reference_hidden, weight, targets, None, 1.0)
    (log_probs * counts).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = frozen_log_probs(hidden, weight.to(stored), targets, chunk_bytes=40)
    (scores.log_probs * counts).sum().backward()
    torch.testing.assert_close(scores.log_probs.double(), log_probs, atol=5e-2, rtol=0)
    torch.testing.assert_close(hidden.grad.double(), reference_hidden.grad.double(), atol=2e-2, rtol=0)
    assert scores.log_probs.dtype == hidden.grad.dtype == torch.float32


class Made(TorchDispatchMode):
    """Remembers the size of every tensor that an operation returns, and where in memory it lies."""

    def __init__(self):
        super().__init__()
        self.sizes, self.places = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if torch.is_tensor(value):
                self.sizes.append(value.numel())
                self.places.append(value.untyped_storage().data_ptr())
        return result


@pytest.mark.parametrize("train", [True, False])
def test_no_tensor_is_larger_than_a_chunk(train):
    """60 tokens x 1,000 words in chunks of 4 rows: one buffer of 4,000, and nothing else above but the weight."""
    hidden, weight, targets, _, _ = draw(60, 1000, 5, torch.float32)
    with Made() as made, torch.set_grad_enabled(train):
        score = frozen_log_probs(hidden if train else hidden.detach(), weight, targets, chunk_bytes=4 * 1000 * 4)
        if train:
            score.log_probs.sum().backward()
    assert max(size for size in made.sizes if size != weight.numel()) == 4000
    assert len({place for size, place in zip(made.sizes, made.places, strict=True) if size == 4000}) == 1


def test_arguments_that_do_not_fit():
    hidden, weight, targets, _, _ = draw(6, 9, 4)
    for wrong in (targets[:1], targets[:3], torch.cat([targets, targets])):
        with pytest.raises(ValueError, match=r"`hidden` \(6, 4\), `weight` \(9, 4\) and `targets` "):
            frozen_log_probs(hidden, weight, wrong)
    for wrong in (-1, 9, -100):
        with pytest.raises(ValueError, match=r"labels hold ids from .* vocabulary has 9. Use the tokenizer"):
            frozen_log_probs(hidden, weight, torch.full((6,), wrong))
    with pytest.raises(ValueError, match="`chunk_bytes=0`"):
        frozen_log_probs(hidden, weight, targets, chunk_bytes=0)


def test_float16_keeps_a_sure_token():
    """Logits 8 and -8 at c = 1 - 1.1e-7: q = 1 / (1 + e^16) is at the end of float16, and the gradient is 2 q."""
    hidden = torch.tensor([[8.0]], dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], dtype=torch.float16)
    # as a GradScaler would, so that what reaches the hidden state is in range again
    (65536 * frozen_log_probs(hidden, weight, torch.tensor([0])).log_probs.sum()).backward()
    assert hidden.grad.item() / 65536 == pytest.approx(2 / (1 + math.exp(16)), rel=0.5)


@pytest.mark.parametrize("group_size", [1, 3, 50])
def test_the_formula_that_benchmarks_time_is_the_loop_reference(group_size):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 12, 9, generator=generator)
    labels = torch.where(torch.rand(4, 12, generator=generator) < 0.7, torch.randint(9, (4, 12)), -100)
    labels[2] = -100
    expected = reference.bft_loss(logits, labels, group_size=group_size).item()
    assert reference.bft_loss_full_logits(logits, labels, group_size=group_size).item() == pytest.approx(expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_score_at_once(dtype, device):
    """With a bias, a factor, a reference and the entropy of the top words; in two chunks."""
    hidden, weight, targets, shift, counts = draw(33, 123, 32, dtype, bias=True)
    base = draw(33, 123, 32, dtype, seed=1)[0].detach()
    there = hidden.detach().clone().requires_grad_()
    log_probs, entropy, _ = reference.head_scores(there, weight, targets, shift, 0.6)
    kl, top_entropy = reference.head_extras(there, base, weight, shift, 0.6)
    (log_probs * counts + kl * counts.flip(0)).sum().backward()
    here, weight, targets, shift, base, counts = (
        part.detach().to(device) for part in (hidden, weight, targets, shift, base, counts)
    )
    here.requires_grad_()
    options = {"bias": shift, "logit_scale": 0.6, "reference": base, "top_entropy": True}
    scores = frozen_log_probs(here, weight, targets, chunk_bytes=20 * 123 * 16, **options)
    (scores.log_probs * counts + scores.kl * counts.flip(0)).sum().backward()
    near, near_gradient = TOLERANCE[dtype]
    expected = {"log_probs": log_probs, "entropy": entropy, "kl": kl, "top_entropy": top_entropy}
    for name, values in expected.items():
        found = getattr(scores, name).detach().double().cpu()
        torch.testing.assert_close(found, values.detach(), atol=near, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    torch.testing.assert_close(here.grad.double().cpu(), there.grad.double(), atol=near_gradient, rtol=0)


# --- inside a model --------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
ARCHITECTURES = {
    "plain, tied": lambda: build_model(),
    "with a bias": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
    "logits divided": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
    "logits multiplied": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
}


def batch(vocabulary=99):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (3, 12), generator=generator)
    labels = torch.where(torch.rand(3, 12, generator=generator) < 0.4, ids, -100)
    labels[1] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_equal_their_own_logits(name):
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().double()
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    model.get_output_embeddings().requires_grad_(False)
    inputs = batch()
    labels = inputs["labels"]
    plain = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    log_p = plain.log_softmax(-1)
    mask = labels[:, 1:] != -100
    expected = log_p.gather(-1, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1) * mask
    expected.sum().backward()
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    assert frozen_head_obstacle(model) is None
    use_frozen_head(model)
    output = model(**inputs, fused_lm_head="frozen")
    output.log_probs.sum().backward()
    assert torch.equal(output.label_mask, mask)
    torch.testing.assert_close(output.log_probs, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(output.entropy, -(log_p.exp() * log_p).sum(-1) * mask, atol=1e-10, rtol=0)
    assert torch.equal(output.is_top1, (plain.argmax(-1) == labels[:, 1:]) & mask)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert found
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], atol=1e-10, rtol=1e-8)
    # without the argument the model is as it was
    assert torch.equal(
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1], plain
    )
    assert model.generate(inputs["input_ids"], max_new_tokens=2, do_sample=False).shape == (3, 14)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1),
        ({"logit_scale": None, "output_multiplier": 0.5}, 0.5),
        ({"lm_head_multiplier": 3}, 3),
        ({"logits_scaling": 4}, 1 / 4),
        ({"logits_scaling": 4, "model_type": "hyperclovax"}, 4),
    ],
)
def test_logit_scale(options, scale):
    """Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it."""
    assert logit_scale(SimpleNamespace(**{"model_type": "granite"} | options)) == scale


def test_a_fully_masked_batch_has_a_gradient_of_zero():
    model = build_model()
    model.get_output_embeddings().requires_grad_(False)
    add_fused_lm_head(model)
    use_frozen_head(model)
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    output = model(**inputs, fused_lm_head="frozen")
    assert not output.log_probs.any()
    output.log_probs.sum().backward()
    layer = model.model.layers[0].mlp.up_proj.weight
    assert layer.grad is not None
    assert not layer.grad.any()


# --- in the trainer --------------------------------------------------------------------------------------------------


def trainer_with(tmp_path, model=None, *, lora=LORA, **options):
    options = {
        "max_steps": 5,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "eval_strategy": "no",
    } | options
    return BFTTrainer(
        build_model() if model is None else model,
        args=build_config(tmp_path, **options),
        train_dataset=Dataset.from_list(sample_rows(12)),
        eval_dataset=Dataset.from_list(sample_rows(5, seed=2)),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(**lora) if lora else None,
    )


@pytest.mark.parametrize(
    "options", [{"loss_type": "nll"}, {"loss_type": "dft"}, {}, {"bft_version": "v3", "packing": True}]
)
def test_either_backend_trains_the_same_adapter(options, tmp_path):
    runs = []
    for backend in ("trl", "frozen"):
        trainer = trainer_with(tmp_path, lm_head_backend=backend, max_length=128, **options)
        assert trainer.lm_head_backend == backend
        trainer.train()
        log = [e for e in trainer.state.log_history if "loss" in e]
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
        runs.append((log, trainer.evaluate(), weights))
    (log, evaluation, weights), (our_log, our_evaluation, our_weights) = runs
    names = ("loss", "nll", "entropy", "mean_token_accuracy", "sample_weight", "group_confidence", "grad_norm")
    for name in names:
        assert [e[name] for e in our_log] == pytest.approx([e[name] for e in log], rel=1e-4), name
    for name in (f"eval_{name}" for name in names if name != "grad_norm"):
        assert our_evaluation[name] == pytest.approx(evaluation[name], rel=1e-4), name
    assert (our_weights - weights).abs().max() <= 1e-4  # they moved by 5 steps of about 1e-2


def gemma():
    return Gemma2ForCausalLM(Gemma2Config(**SMALL | {"vocab_size": 259}, head_dim=16, final_logit_softcapping=10.0))


def mixture():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SMALL | {"vocab_size": 259}, num_local_experts=2, num_experts_per_tok=1))


@pytest.mark.parametrize(
    ("model", "lora", "reason"),
    [
        (build_model, None, "is trained"),
        (build_model, LORA | {"modules_to_save": ["lm_head"]}, "adapted"),
        (gemma, LORA, "soft-capped"),
        (mixture, LORA, "auxiliary loss"),
    ],
    ids=["full fine-tuning", "trained copy", "soft-capping", "mixture of experts"],
)
def test_where_it_does_not_hold(model, lora, reason, tmp_path, caplog):
    torch.manual_seed(0)
    options = {"router_aux_loss_coef": 0.1} if model is mixture else {}
    with caplog.at_level(logging.INFO):
        trainer = trainer_with(tmp_path, model(), lora=lora, **options | {"max_steps": 1})
    assert trainer.lm_head_backend == "trl"
    assert len([r for r in caplog.records if "TRL's fused LM head" in r.getMessage()]) == 1
    trainer.train()
    with pytest.raises(ValueError, match=rf"`lm_head_backend='frozen'` cannot be used here: .*({reason})"):
        trainer_with(tmp_path, model(), lora=lora, lm_head_backend="frozen", **options)


def test_a_trained_copy_of_a_tied_embedding_leaves_the_head_frozen(tmp_path):
    """PEFT trains a copy of the embedding; the head goes on with the weights of the base model."""
    trainer = trainer_with(tmp_path, lora=LORA | {"modules_to_save": ["embed_tokens"]}, max_steps=1)
    assert trainer.lm_head_backend == "frozen"
    trainer.train()


def test_trained_tokens_of_a_tied_embedding_raise(tmp_path):
    with pytest.raises(ValueError, match=r"`TrainableTokensWrapper`.*remove `trainable_token_indices`"):
        trainer_with(tmp_path, lora=LORA | {"trainable_token_indices": [5, 6]})


def test_an_unknown_option_on_the_logits_leaves_trls_head():
    model = build_model()
    model.get_output_embeddings().requires_grad_(False)
    assert frozen_head_obstacle(model) is None
    model.config.logit_gain = 0.5
    assert frozen_head_obstacle(model) == "the effect of the model option `logit_gain` on the logits is not known"


def test_trainers_that_share_a_model_each_use_their_head(tmp_path, monkeypatch):
    from bft_trl import model_head

    calls = []
    scored = model_head.frozen_log_probs
    monkeypatch.setattr(model_head, "frozen_log_probs", lambda *a, **k: calls.append(1) or scored(*a, **k))
    first = trainer_with(tmp_path, lm_head_backend="trl", max_steps=1)
    second = trainer_with(tmp_path, first.model, lora=None, lm_head_backend="frozen", max_steps=1)
    first.train()
    assert not calls
    second.train()
    assert calls


def test_a_head_that_is_unfrozen_later_raises(tmp_path):
    trainer = trainer_with(tmp_path)
    trainer.model.get_output_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match="Freeze it"):
        trainer.train()


def test_llama_is_what_most_models_are():
    """A guard of the tests above: the tiny model has no scale, no cap and no bias."""
    model = build_model()
    assert isinstance(model, LlamaForCausalLM)
    assert model.get_output_embeddings().bias is None
