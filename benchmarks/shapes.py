"""Models of known shapes with random weights: a step costs the same, and nothing is downloaded."""

from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_NAMES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
_NAMES += ["num_attention_heads", "num_key_value_heads"]
SHAPES = {
    "SmolLM2-135M": ("llama", 49_152, 576, 1536, 30, 9, 3),
    "Qwen2.5-0.5B": ("qwen2", 151_936, 896, 4864, 24, 14, 2),
    "Llama-3.1-8B": ("llama", 128_256, 4096, 14_336, 32, 32, 8),
    "smoke": ("llama", 300, 32, 48, 2, 4, 2),
}


def head_size(name: str) -> dict[str, int]:
    """Returns vocabulary and width of a model's LM head."""
    return {"vocabulary": SHAPES[name][1], "width": SHAPES[name][2]}


def random_model(name: str, dtype: torch.dtype, **options: Any) -> Any:
    """Returns the causal LM, with a tied head."""
    kind, *sizes = SHAPES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **dict(zip(_NAMES, sizes, strict=True)), tie_word_embeddings=True)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, **options)


def tokenizer() -> PreTrainedTokenizerFast:
    """Returns what a trainer needs to batch rows of token ids: a padding token."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
