"""Profiles by a tiny model, interrupted and resumed, and their vectors."""

import pandas as pd
import pytest
import torch
from conftest import build_model, build_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from test_encoders import build_bert

from bft_trl.biology import profiles
from bft_trl.biology.genes import read_genes
from bft_trl.biology.profiles import read_profiles, write_profiles
from bft_trl.biology.vectors import embed_by_model, embed_profiles, read_vectors
from bft_trl.cli.main import main
from bft_trl.models import Encoder, load_tokenizer, read_run
from bft_trl.prompts import gene_profile_prompt

GENES = sorted(["TP53", "BRCA1", "MAPK1", "C9orf72", "A", "HLA-DRB1", "MYC"])
TEXTS = [("A", "dna repair"), ("B", "cell"), ("C", "cell cycle dna repair dna")]


def talkative_model():
    """A model whose text depends on the gene: large layer weights, and a head that is not its embedding."""
    model = build_model(max_position_embeddings=1024, tie_word_embeddings=False).eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base model and an adapter of it."""
    folder = tmp_path_factory.mktemp("world")
    talkative_model().save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    torch.manual_seed(1)
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(talkative_model(), lora)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    (folder / "genes.txt").write_text("\n".join([*reversed(GENES), "TP53", ""]))
    return folder


@pytest.fixture
def texts(tmp_path):
    pd.DataFrame(TEXTS, columns=["gene", "text"]).to_parquet(tmp_path / "texts.parquet")
    return tmp_path / "texts.parquet"


def written(world, path, **options):
    options = {"max_new_tokens": 8, "batch_size": 3, "device": "cpu"} | options
    return write_profiles(GENES, read_run(str(world / "base")), path, **options)


def test_profiles_equal_generate_for_each_gene_alone(world, tmp_path):
    """One gene at a time, without padding: greedy text does not depend on the batch."""
    table = written(world, tmp_path / "profiles.parquet")
    assert table["gene"].tolist() == GENES
    model, tokenizer = talkative_model(), build_tokenizer()
    for row in table.itertuples():
        text = f"<bos>user:{gene_profile_prompt(row.gene)}<eos><bos>assistant:"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        answer = output[0, ids.shape[1] :]
        assert row.text == tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert row.finished == bool((answer == 2).any())
    assert table["text"].nunique() > 4
    assert table.attrs["prompt"] == gene_profile_prompt("<gene>")
    assert not list(tmp_path.glob("*.parts"))


def test_resumed_profiles_equal_uninterrupted_ones(world, tmp_path, monkeypatch):
    whole = written(world, tmp_path / "whole.parquet")
    generate, calls = profiles._generate, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*args)

    monkeypatch.setattr(profiles, "_generate", failing)
    cut = tmp_path / "cut.parquet"
    with pytest.raises(KeyboardInterrupt):
        written(world, cut)
    resumed = written(world, cut)
    assert resumed.equals(whole)
    assert len(calls) == 1 + 3  # one that failed, and each batch once
    # A finished run is not repeated, and not replaced.
    monkeypatch.setattr(profiles, "load_run", None)
    assert written(world, cut).equals(whole)
    with pytest.raises(ValueError, match=r"exists, with other settings \(max_new_tokens\)"):
        written(world, cut, max_new_tokens=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"path": "x.csv"}, "must be a file that ends in .parquet"),
        ({"path": "file/x.parquet"}, "is a file. Name a folder"),
        ({"max_new_tokens": 900}, "max_new_tokens=900.*the model reads 1024"),
    ],
)
def test_options_out_of_range(world, tmp_path, options, message):
    (tmp_path / "file").write_text("")
    path = tmp_path / options.pop("path", "x.parquet")
    with pytest.raises(ValueError, match=message):
        written(world, path, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_genes_of_any_table(tmp_path, caplog):
    (tmp_path / "g.txt").write_text("TP53\ntp53\nTP53\n\n MYC \nENSG00000141510\nC9orf72\nHLA-A\n")
    pd.DataFrame({"gene_a": ["A"], "gene_b": ["B"], "label": [1]}).to_csv(tmp_path / "pairs.csv")
    assert read_genes([tmp_path / "g.txt"]) == ["C9orf72", "ENSG00000141510", "HLA-A", "MYC", "TP53", "tp53"]
    assert "2 of 6 genes do not look like human gene symbols: ENSG00000141510, tp53" in caplog.text
    assert read_genes([tmp_path / "pairs.csv"]) == ["A", "B"]
    pd.DataFrame({"symbol": ["A"]}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match="none of the columns.*'symbol'"):
        read_genes([tmp_path / "other.csv"])


def test_profiles_from_texts_and_symbols(tmp_path, caplog, capsys):
    table = pd.DataFrame({"gene": ["B", "A", "A", "C"], "text": ["two", "one", "more", None]})
    table.to_csv(tmp_path / "texts.csv", index=False)
    (tmp_path / "genes.txt").write_text("A\nX\n")

    def command(*options):
        genes = ["--genes", str(tmp_path / "genes.txt"), "--output_path", str(tmp_path / f"{options[0]}.parquet")]
        return main(["profiles", *genes, *options[1:]])

    def made(name):
        return dict(pd.read_parquet(tmp_path / f"{name}.parquet")[["gene", "text"]].to_numpy().tolist())

    assert command("texts", "--texts", str(tmp_path / "texts.csv")) == 0
    assert made("texts") == {"A": "one more"}
    assert "1 of 2 genes have no text, such as X" in caplog.text
    for _ in range(2):  # the second does nothing
        assert command("symbols", "--symbols") == 0
        assert made("symbols") == {"A": "A", "X": "X"}
    assert command("symbols", "--texts", str(tmp_path / "texts.csv")) == 2  # other profiles are not replaced
    assert "exists, with other settings (text_hash)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--symbols", "--model_name_or_path", "m"], "Name one source"),
        (["--model_name_or_path", "m"], "--genes is needed"),
        (["--adapter", "nowhere", "--genes", "GENES"], "has no adapter_config.json"),
    ],
)
def test_bad_commands(world, tmp_path, capsys, arguments, message):
    arguments = [str(world / "genes.txt") if part == "GENES" else part for part in arguments]
    assert main(["profiles", *arguments, "--output_path", str(tmp_path / "p.parquet")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("[!.]*"))  # a lock file may remain


def test_read_profiles(tmp_path, caplog):
    def saved(rows):
        pd.DataFrame(rows, columns=["gene", "text"]).to_parquet(tmp_path / "p.parquet")
        return tmp_path / "p.parquet"

    assert read_profiles(saved([("A", "x"), ("B", " "), ("C", None)]))["gene"].tolist() == ["A"]
    assert "2 of 3 profiles are empty and left out: B, C" in caplog.text
    with pytest.raises(ValueError, match="every profile is empty"):
        read_profiles(saved([("A", "")]))
    with pytest.raises(ValueError, match="'A' has more than one profile"):
        read_profiles(saved([("A", "x"), ("A", "y")]))


def test_vectors_of_the_model_are_means_of_hidden_states(world, texts, tmp_path):
    """One text at a time, without padding, with the adapter merged by peft."""
    run = read_run(None, world / "adapter")
    found = embed_by_model(texts, run, tmp_path / "v.parquet", batch_size=2, device="cpu")
    assert found.genes == ["A", "B", "C"]
    model = PeftModel.from_pretrained(talkative_model(), world / "adapter").merge_and_unload()
    tokenizer = load_tokenizer(run)
    for vector, (_, text) in zip(found.values, TEXTS, strict=True):
        with torch.no_grad():
            hidden = model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-5)


def test_vectors_of_an_encoder(texts, tmp_path, caplog, monkeypatch):
    build_bert(tmp_path / "bert")
    encoder, path = Encoder(str(tmp_path / "bert"), max_tokens=4), tmp_path / "v.parquet"  # [CLS], two words, [SEP]
    found = embed_profiles(texts, encoder, path)
    assert "1 of 3 profiles are truncated to 4 tokens" in caplog.text
    assert found.values == pytest.approx(encoder.encode([text for _, text in TEXTS]), abs=1e-6)
    assert found.rows(["C", "Q", "A"]).tolist() == [2, -1, 0]
    # The same again does nothing; vectors of other profiles and another file are not replaced.
    monkeypatch.setattr(Encoder, "encode", None)
    assert (embed_profiles(texts, encoder, path).values == found.values).all()
    with pytest.raises(ValueError, match=r"exists, with other settings \(encoder, "):
        embed_profiles(texts, encoder, texts)
    pd.DataFrame({"gene": ["A"], "text": ["other"]}).to_parquet(texts)
    with pytest.raises(ValueError, match=r"with other settings \(text_hash\)"):
        embed_profiles(texts, encoder, path)


def test_profiles_and_vectors_of_the_adapter_from_the_command_line(world, tmp_path, capsys):
    """The adapter changes the text."""
    source, path = ["--adapter", str(world / "adapter"), "--device", "cpu"], str(tmp_path / "p.parquet")
    genes = ["--genes", str(world / "genes.txt"), "--max_new_tokens", "8"]
    assert main(["profiles", *genes, *source, "--output_path", path]) == 0
    base, tuned = written(world, tmp_path / "base.parquet"), pd.read_parquet(path)
    assert not base["text"].equals(tuned["text"])
    assert base.attrs["model_hash"] == tuned.attrs["model_hash"]
    command = ["embed", path, "--output_path", str(tmp_path / "v.parquet")]
    assert main([*command, *source]) == 0
    assert pd.read_parquet(tmp_path / "v.parquet").attrs["adapter"] == tuned.attrs["adapter"] == str(world / "adapter")
    assert main([*command, *source, "--encoder", "x"]) == 2
    assert "Name one source: --encoder, or" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("genes", "vectors", "message"),
    [
        ("AB", [[1.0, float("nan")], [1.0, 2.0]], "1 vectors contain NaN or infinity, such as that of 'A'"),
        ("AB", [[1.0, 2.0], [1.0, 2.0]], "all 2 vectors are the same"),
        ("AB", [[1.0, 2.0], [1.0]], "not lists of numbers of one length"),
        (["A", " A"], [[1.0], [2.0]], "each vector needs a gene, and each gene one vector"),
    ],
)
def test_vectors_that_cannot_be_used(tmp_path, genes, vectors, message):
    pd.DataFrame({"gene": list(genes), "vector": vectors}).to_parquet(tmp_path / "v.parquet")
    with pytest.raises(ValueError, match=message):
        read_vectors(tmp_path / "v.parquet")
