"""The real loading code on a tiny BERT that is made here."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bft_trl.encoders import MAX_TOKENS, Encoder, cached_vectors

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
    """Saved with mean pooling by sentence-transformers itself: the mean of the token vectors comes out."""
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


def test_no_texts(tmp_path):
    build_bert(tmp_path)
    assert Encoder(str(tmp_path)).encode([]).shape == (0, 16)


def test_fingerprint_is_of_the_content(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_bert(tmp_path / name, seed=seed)
    a, b, c = (Encoder(str(tmp_path / name)).fingerprint for name in "abc")
    assert a == b != c


def test_vectors_are_computed_once(tmp_path, monkeypatch):
    build_bert(tmp_path / "a")
    encoder = Encoder(str(tmp_path / "a"))
    vectors, content = cached_vectors(encoder, TEXTS, cache=tmp_path / "cache")
    _, other_content = cached_vectors(encoder, TEXTS[:2], cache=tmp_path / "cache")
    assert content != other_content
    assert len(list((tmp_path / "cache").iterdir())) == 2
    file = tmp_path / "cache" / f"{content}.npz"
    file.write_bytes(file.read_bytes()[:-50])  # damaged: made anew
    assert np.array_equal(cached_vectors(encoder, TEXTS, cache=tmp_path / "cache")[0], vectors)
    content_before = file.read_bytes()
    for place in range(0, len(content_before), 7):  # a changed byte is seen, wherever it is, or is of no importance
        changed = bytearray(content_before)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        assert np.array_equal(cached_vectors(encoder, TEXTS, cache=tmp_path / "cache")[0], vectors)
    for damage in (b"PK", b"", lambda opened, other: np.savez(opened, vectors=other)):
        with file.open("wb") as opened:
            damage(opened, np.zeros((4, 3))) if callable(damage) else opened.write(damage)
        assert np.array_equal(cached_vectors(encoder, TEXTS, cache=tmp_path / "cache")[0], vectors)
    (tmp_path / "file").write_text("")  # a cache that cannot be written costs nothing but time
    assert np.array_equal(cached_vectors(encoder, TEXTS, cache=tmp_path / "file")[0], vectors)
    monkeypatch.setattr(encoder, "encode", None)  # from here on only the file can answer
    again, same = cached_vectors(encoder, TEXTS, cache=tmp_path / "cache")
    assert same == content
    assert np.array_equal(again, vectors)


def test_an_encoder_that_cannot_be_loaded_names_the_option(tmp_path):
    with pytest.raises(ValueError, match=r"`encoder=.*cannot be loaded.*none"):
        Encoder(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`encoder=.*cannot be loaded"):
        Encoder(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"`encoder='none'`: name a Hub id or a folder"):
        Encoder("none")
