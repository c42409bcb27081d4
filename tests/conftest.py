"""A tiny Llama and a byte tokenizer, built in memory: the real code runs on them without a network."""

import os
from pathlib import Path
from typing import Any

# Read when the libraries are imported: no test uses the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Arrays and tensors are tiny here: a second thread costs more than it brings. For the processes that tests start, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from datasets import Dataset
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bft_trl import BFTConfig

torch.set_num_threads(1)
# A property test does not set how many examples it gets: 100 in `make test`, 10,000 in `make test-long`.
settings.register_profile("short", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=10_000, deadline=None)
settings.load_profile("short")

# For tests that run on the CPU and, where there is one, on a GPU: `pytest -m cuda`.
NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]

SPECIAL = ["<pad>", "<bos>", "<eos>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<bos>' + message['role'] + ':' + message['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant:' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(SPECIAL + alphabet)}
    # Without merges every byte is a token.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 259,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.3,
            "tie_word_embeddings": True,
            **overrides,
        }
    )
    model = LlamaForCausalLM(config)
    # With tied, large embeddings and layers that change little, a token is expected to be followed by itself: on rows
    # with runs of letters the confidences spread over (0, 1). As initialised every token has probability 1/V.
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(0.3 if parameter.dim() == 2 else 1.0)
    return model


def broken_model() -> LlamaForCausalLM:
    """A model whose embedding of the letter z is NaN."""
    model = build_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[build_tokenizer()("z")["input_ids"][0]] = float("nan")
    return model


@torch.no_grad()
def answer_probs(row: dict[str, Any], max_length: int | None = None) -> list[float]:
    """Probabilities of the tokens of an answer and of its end, from full logits of `build_model()` in float64."""
    tokenizer = build_tokenizer()
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = [*prompt, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id][:max_length]
    log_probs = build_model()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [log_probs[place - 1, ids[place]].exp().item() for place in range(len(prompt), len(ids))]


def sample_rows(count: int, *, seed: int = 0, longest: int = 40) -> list[dict[str, str]]:
    generator = torch.Generator().manual_seed(seed)
    letters = "abcdefgh "
    rows = []
    for _ in range(count):
        prompt, answer = (int(torch.randint(2, longest, (), generator=generator)) for _ in range(2))
        drawn = torch.randint(0, len(letters), (prompt + answer,), generator=generator)
        again = torch.rand(prompt + answer, generator=generator) < 0.6
        for i in range(1, len(drawn)):
            drawn[i] = drawn[i - 1] if again[i] else drawn[i]
        text = "".join(letters[int(i)] for i in drawn)
        rows.append({"prompt": text[:prompt], "completion": text[prompt:]})
    return rows


def build_config(output_dir: Path | str, **overrides: Any) -> BFTConfig:
    """float32 on the CPU without anything random but the data order."""
    return BFTConfig(
        **{
            "output_dir": str(output_dir),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "group_size": 8,
            **overrides,
        }
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_list(sample_rows(8))
