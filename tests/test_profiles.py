"""Profiles by a tiny model that is saved here, killed and resumed, and vectors of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_model, build_tokenizer
from peft import LoraConfig, get_peft_model
from scipy import sparse
from test_encoders import build_bert

from bft_trl.biology import profiles
from bft_trl.biology.genes import read_genes, warn_of_outdated
from bft_trl.biology.profiles import read_profiles, write_profiles
from bft_trl.biology.vectors import cell_vectors, embed_by_model, embed_profiles, read_vectors
from bft_trl.cli.main import main
from bft_trl.encoders import Encoder
from bft_trl.models import load_tokenizer, read_run
from bft_trl.prompts import gene_profile_prompt

GENES = sorted(["TP53", "BRCA1", "MAPK1", "C9orf72", "A", "HLA-DRB1", "MYC"])


def talkative_model():
    """A model whose text depends on the gene: its layers change much, and its head is not its embedding."""
    model = build_model(max_position_embeddings=1024, tie_word_embeddings=False).eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base model, and an adapter of it that says something else."""
    folder = tmp_path_factory.mktemp("world")
    talkative_model().save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    torch.manual_seed(1)
    adapted = get_peft_model(
        talkative_model(),
        LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    (folder / "genes.txt").write_text("\n".join([*reversed(GENES), "TP53", ""]))
    return folder


def written(world, out, *, adapter=False, **options):
    run = read_run(None if adapter else str(world / "base"), world / "adapter" if adapter else None)
    options = {"max_new_tokens": 8, "batch_size": 3, "device": "cpu"} | options
    return write_profiles(GENES, run, out, **options)


def test_profiles_are_what_generate_gives_for_each_gene_alone(world, tmp_path):
    """One gene at a time, without padding: greedy text does not depend on the batch."""
    manifest = written(world, tmp_path / "profiles.parquet")
    table = pd.read_parquet(tmp_path / "profiles.parquet")
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
    assert manifest == json.loads((tmp_path / "profiles.json").read_text())
    assert manifest["n_genes"] == 7
    assert manifest["prompt"] == gene_profile_prompt("<gene>")
    assert manifest["versions"]["torch"]
    assert not list(tmp_path.glob("*.parts"))


def test_an_adapter_writes_something_else_and_is_named(world, tmp_path):
    base, tuned = (written(world, tmp_path / f"{i}.parquet", adapter=bool(i)) for i in range(2))
    assert base["content_hash"] != tuned["content_hash"]
    assert base["adapter"] is None
    assert tuned["adapter"] == str(world / "adapter")
    assert base["model_hash"] == tuned["model_hash"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_interrupted_and_resumed_is_the_same_text(world, tmp_path, monkeypatch, temperature):
    whole = written(world, tmp_path / "whole.parquet", temperature=temperature)
    generate, calls = profiles._generate, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) in (2, 3):
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(profiles, "_generate", failing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            written(world, tmp_path / "cut.parquet", temperature=temperature)
        assert not (tmp_path / "cut.parquet").exists()
    torch.manual_seed(int(temperature))  # the state outside is of no importance
    resumed = written(world, tmp_path / "cut.parquet", temperature=temperature)
    assert resumed["content_hash"] == whole["content_hash"]
    assert len(calls) == 2 + 3  # two that failed, and each batch once
    # Done is done: nothing is loaded again.
    monkeypatch.setattr(profiles, "load_run", None)
    assert written(world, tmp_path / "cut.parquet", temperature=temperature) == resumed


def test_killed_at_random_moments_three_times(world, tmp_path):
    """SIGKILL, in a process of its own, once some batches are on the disk; then the rest."""
    written(world, tmp_path / "whole.parquet", batch_size=1, max_new_tokens=60)
    out = tmp_path / "killed.parquet"
    command = [sys.executable, "-m", "bft_trl.cli.main", "profiles", "--model", str(world / "base"), "--out", str(out)]
    command += ["--genes", str(world / "genes.txt"), "--batch-size", "1", "--max-new-tokens", "60", "--device", "cpu"]
    command[1:3] = [
        "-c",
        "import sys, torch; torch.set_num_threads(1); from bft_trl.cli.main import main; sys.exit(main())",
    ]
    moments = random.Random(0)
    parts = out.with_name("killed.parquet.parts")
    for kill in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        before = time.monotonic()
        while len(list(parts.glob("[0-9]*.parquet"))) <= kill and process.poll() is None:
            assert time.monotonic() - before < 120
            time.sleep(0.005)
        time.sleep(moments.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert pd.read_parquet(out).equals(pd.read_parquet(tmp_path / "whole.parquet"))


def test_killed_between_the_table_and_its_manifest(world, tmp_path, monkeypatch):
    out = tmp_path / "p.parquet"
    whole = written(world, tmp_path / "whole.parquet")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(profiles, "write_together", killed)
        with pytest.raises(KeyboardInterrupt):
            written(world, out)
    pd.DataFrame({"gene": ["half"]}).to_parquet(out)
    assert written(world, out)["content_hash"] == whole["content_hash"]


def test_other_settings_are_refused(world, tmp_path, monkeypatch):
    out = tmp_path / "p.parquet"
    written(world, out)
    with pytest.raises(ValueError, match="is there, made with other settings .max_new_tokens."):
        written(world, out, max_new_tokens=9)
    generate = profiles._generate
    monkeypatch.setattr(
        profiles, "_generate", lambda *args, seed, **options: None if seed else generate(*args, seed=seed, **options)
    )
    with pytest.raises(TypeError):  # after the first batch
        written(world, tmp_path / "q.parquet")
    with pytest.raises(ValueError, match="was begun with other settings .seed."):
        written(world, tmp_path / "q.parquet", seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"out": "x.csv"}, "must end in .parquet"),
    ],
)
def test_options_out_of_range(world, tmp_path, options, message):
    out = tmp_path / options.pop("out", "x.parquet")
    with pytest.raises(ValueError, match=message):
        written(world, out, **options)
    assert not list(tmp_path.iterdir())


def test_genes_of_any_table(tmp_path, caplog):
    (tmp_path / "g.txt").write_text("TP53\ntp53\nTP53\n\n MYC \n")
    pd.DataFrame({"gene_a": ["A"], "gene_b": ["B"], "label": [1]}).to_csv(tmp_path / "pairs.csv")
    pd.DataFrame({"perturbation": ["C+D"], "gene": ["E"], "delta": [1.0]}).to_csv(tmp_path / "delta.csv")
    assert read_genes([tmp_path / "g.txt"]) == ["MYC", "TP53", "tp53"]
    assert "1 genes more than once" in caplog.text
    assert "1 of 3 genes are not written as human symbols are (mouse, lower case, an id?): tp53" in caplog.text
    assert read_genes([tmp_path / "pairs.csv", tmp_path / "delta.csv"]) == ["A", "B", "C", "D"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty.txt name no gene"):
        read_genes([tmp_path / "empty.txt"])
    pd.DataFrame({"symbol": ["A"]}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match="none of the columns.*'symbol'"):
        read_genes([tmp_path / "other.csv"])
    with pytest.raises(FileNotFoundError, match=r"none.txt"):
        read_genes([tmp_path / "none.txt"])


def test_outdated_and_unknown_symbols(tmp_path, caplog):
    table = pd.DataFrame(
        [("AOPEP", '"C9orf3|ONPEP"', ""), ("MARCHF1", "MARCH1", "RNF171"), ("TP53", "", "p53|LFS1"), ("NA", "", "")],
        columns=["symbol", "prev_symbol", "alias_symbol"],
    )
    table.to_csv(tmp_path / "hgnc.txt", sep="\t", index=False, quoting=3)
    found = warn_of_outdated(["C9orf3", "MARCH1", "TP53", "LFS1", "QQQ1", "NA"], tmp_path / "hgnc.txt")
    assert found == {"C9orf3": "AOPEP", "MARCH1": "MARCHF1", "LFS1": "TP53"}
    assert "3 of 6 symbols are outdated; they stay as they are: C9orf3 (now AOPEP)" in caplog.text
    assert "1 of 6 symbols are unknown to HGNC: QQQ1" in caplog.text
    with pytest.raises(ValueError, match="none.txt.. is not HGNC's complete set"):
        warn_of_outdated(["A"], tmp_path / "none.txt")


def test_profiles_of_texts_gene_sets_and_symbols(tmp_path, caplog):
    texts = pd.DataFrame({"gene": ["B", "A", "A", "C"], "text": ["two", "one", "more", None]})
    texts.to_csv(tmp_path / "texts.csv", index=False)
    (tmp_path / "genes.txt").write_text("A\nX\n")
    command = ["profiles", "--genes", str(tmp_path / "genes.txt")]
    assert main([*command, "--texts", str(tmp_path / "texts.csv"), "--out", str(tmp_path / "t.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "t.parquet")[["gene", "text"]].to_numpy().tolist() == [["A", "one more"]]
    assert "1 of 2 genes have no text, such as X" in caplog.text
    (tmp_path / "sets.gmt").write_text("DNA repair (GO:0006281)\t\tA\tB\ncell cycle (GO:0007049)\t\tA\n")
    assert main(["profiles", "--gene-sets", str(tmp_path / "sets.gmt"), "--out", str(tmp_path / "s.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "s.parquet")[["gene", "text"]].to_numpy().tolist() == [
        ["A", "DNA repair; cell cycle"],
        ["B", "DNA repair"],
    ]
    assert main([*command, "--symbols", "--out", str(tmp_path / "n.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "n.parquet")["text"].tolist() == ["A", "X"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name one source"),
        (["--symbols", "--model", "m"], "Name one source"),
        (["--model", "m"], "--genes is needed"),
        (
            ["--symbols", "--genes", "GENES", "--temperature", "1"],
            "--temperature: only for profiles that a model writes",
        ),
        (["--adapter", "nowhere", "--genes", "GENES"], "has no adapter_config.json"),
        (["--model", "nowhere", "--genes", "GENES"], "tokenizer cannot be loaded"),
    ],
)
def test_bad_commands(world, tmp_path, caplog, capsys, arguments, message):
    arguments = [str(world / "genes.txt") if part == "GENES" else part for part in arguments]
    assert main(["profiles", *arguments, "--out", str(tmp_path / "p.parquet")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_read_profiles(tmp_path, caplog):
    def saved(rows):
        pd.DataFrame(rows, columns=["gene", "text"]).to_parquet(tmp_path / "p.parquet")
        return tmp_path / "p.parquet"

    assert read_profiles(saved([("A", "x"), ("B", " "), ("C", None)]))["gene"].tolist() == ["A"]
    assert "2 of 3 profiles are empty and are left out: B, C" in caplog.text
    with pytest.raises(ValueError, match="every profile is empty"):
        read_profiles(saved([("A", "")]))
    with pytest.raises(ValueError, match="1 genes have more than one profile, such as 'A'"):
        read_profiles(saved([("A", "x"), ("A", "y")]))


TEXTS = [("A", "dna repair"), ("B", "cell"), ("C", "cell cycle dna repair dna")]


@pytest.fixture
def texts(tmp_path):
    pd.DataFrame(TEXTS, columns=["gene", "text"]).to_parquet(tmp_path / "texts.parquet")
    return tmp_path / "texts.parquet"


def test_vectors_of_the_model_itself_are_means_of_hidden_states(world, texts, tmp_path):
    """One text at a time, without padding, with the adapter merged by peft."""
    run = read_run(None, world / "adapter")
    made = embed_by_model(texts, run, tmp_path / "v.parquet", batch_size=2, device="cpu")
    found = read_vectors(tmp_path / "v.parquet")
    assert found.genes == ["A", "B", "C"]
    from peft import PeftModel

    model = PeftModel.from_pretrained(talkative_model(), world / "adapter").merge_and_unload()
    tokenizer = load_tokenizer(run)
    for vector, (_, text) in zip(found.values, TEXTS, strict=True):
        with torch.no_grad():
            hidden = model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-5)
    assert made["encoder"] == "self"
    assert made["dimension"] == 32
    with pytest.raises(ValueError, match="batch_size=0"):
        embed_by_model(texts, run, tmp_path / "v.parquet", batch_size=0)


def test_vectors_of_an_encoder(texts, tmp_path, caplog):
    build_bert(tmp_path / "bert")
    encoder = Encoder(str(tmp_path / "bert"), max_tokens=4)  # [CLS], two words, [SEP]
    made = embed_profiles(texts, encoder, tmp_path / "v.parquet", cache=tmp_path / "cache")
    assert "1 of 3 profiles are longer than the 4 tokens" in caplog.text
    assert made["n_cut"] == 1
    found = read_vectors(tmp_path / "v.parquet")
    assert found.values == pytest.approx(encoder.encode([text for _, text in TEXTS]), abs=1e-6)
    assert found.manifest["content_hash"] == made["content_hash"]
    assert found.rows(["C", "Q", "A"]).tolist() == [2, -1, 0]
    with pytest.raises(ValueError, match="max_tokens=1000.*reads 1 to 128 tokens"):
        Encoder(str(tmp_path / "bert"), max_tokens=1000)


def test_embed_command_takes_the_model_from_the_manifest(world, tmp_path, capsys):
    out = tmp_path / "p.parquet"
    written(world, out, adapter=True)
    assert main(["embed", str(out), "--encoder", "self", "--out", str(tmp_path / "v.parquet"), "--device", "cpu"]) == 0
    manifest = read_vectors(tmp_path / "v.parquet").manifest
    assert manifest["adapter"] == str(world / "adapter")
    assert manifest["profiles"]["content_hash"] == json.loads((tmp_path / "p.json").read_text())["content_hash"]
    (tmp_path / "p.json").unlink()
    assert main(["embed", str(out), "--encoder", "self", "--out", str(tmp_path / "w.parquet")]) == 2
    assert "no model wrote these profiles" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, float("nan")], [1.0, 2.0]], "1 of 2 vectors hold NaN or infinity, such as that of 'A'"),
        ([[1.0, 2.0], [1.0, 2.0]], "all 2 vectors are the same"),
        ([[1.0, 1e30], [1.0, 2.0]], "hold numbers up to 1e.30; at most"),
        ([[1.0, 2.0], [1.0]], "not lists of numbers, all of one length"),
        ([1.0, 2.0], "not lists of numbers, all of one length"),
    ],
)
def test_vectors_that_cannot_be_used(tmp_path, vectors, message):
    pd.DataFrame({"gene": ["A", "B"], "vector": vectors}).to_parquet(tmp_path / "v.parquet")
    with pytest.raises(ValueError, match=message):
        read_vectors(tmp_path / "v.parquet")


def test_repeated_genes_have_no_vector(tmp_path):
    pd.DataFrame({"gene": ["A", " A"], "vector": [[1.0], [2.0]]}).to_parquet(tmp_path / "v.parquet")
    with pytest.raises(ValueError, match="more than one vector for 'A'"):
        read_vectors(tmp_path / "v.parquet")


@pytest.mark.parametrize("make", [sparse.csr_matrix, np.asarray])
def test_cell_vectors_by_hand(tmp_path, make):
    """Cell 0 expresses A once and B thrice: (1 (1, 0) + 3 (0, 2)) / 4. Q has no vector. Cell 1 expresses Q alone."""
    pd.DataFrame({"gene": ["A", "B", "Z"], "vector": [[1.0, 0], [0, 2.0], [9.0, 9]]}).to_parquet(
        tmp_path / "v.parquet"
    )
    expression = make(np.array([[3.0, 5, 1], [0, 2, 0]]))
    cells = anndata.AnnData(expression, var=pd.DataFrame(index=["B", "Q", "A"]), obs=pd.DataFrame(index=["c0", "c1"]))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    made = cell_vectors(tmp_path / "cells.h5ad", tmp_path / "v.parquet", tmp_path / "c.parquet")
    table = pd.read_parquet(tmp_path / "c.parquet")
    assert table["cell"].tolist() == ["c0"]
    assert table["vector"][0].tolist() == [0.25, 1.5]
    assert made["n_cells_without"] == 1
    assert made["coverage"] == pytest.approx(2 / 3)
    cells.var_names = ["x", "y", "z"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="none of its genes is in"):
        cell_vectors(tmp_path / "cells.h5ad", tmp_path / "v.parquet", tmp_path / "c.parquet")


def test_nothing_of_others_is_replaced(world, tmp_path):
    """Neither a source nor profiles that a model wrote, nor a file that stands where the manifest would go."""
    (tmp_path / "genes.txt").write_text("A\nB\n")
    texts = tmp_path / "ncbi.json"
    pd.DataFrame({"gene": ["A"], "text": ["x"]}).to_json(texts, orient="records")
    before = texts.read_bytes()
    with pytest.raises(ValueError, match=r"ncbi.json: not a JSON object|its manifest would replace"):
        profiles.profiles_of_texts(texts, None, tmp_path / "ncbi.parquet")
    assert texts.read_bytes() == before
    written(world, tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="is there, with other profiles"):
        profiles.profiles_of_symbols(["A"], tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="is what is to be read"):
        embed_by_model(tmp_path / "p.parquet", read_run(str(world / "base"), None), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="is there and is no table of vectors"):
        embed_by_model(tmp_path / "q.parquet", read_run(str(world / "base"), None), tmp_path / "p.parquet")
    assert pd.read_parquet(tmp_path / "p.parquet")["gene"].tolist() == GENES


def test_damaged_and_unnamed_parts(world, tmp_path, monkeypatch, caplog):
    whole = written(world, tmp_path / "whole.parquet")
    generate = profiles._generate
    monkeypatch.setattr(profiles, "_generate", lambda *a, **k: generate(*a, **k) if not calls.append(1) else None)
    calls = []
    monkeypatch.setattr(profiles.shutil, "rmtree", lambda *a, **k: None)  # as if killed before the parts went
    out = tmp_path / "p.parquet"
    written(world, out)
    out.unlink()
    parts = tmp_path / "p.parquet.parts"
    (parts / "000001.parquet").write_bytes(b"PAR1 cut")
    calls.clear()
    assert written(world, out)["content_hash"] == whole["content_hash"]
    assert len(calls) == 1
    assert "Writing anew" in caplog.text
    out.unlink()
    (parts / "settings.json").unlink()
    with pytest.raises(ValueError, match="does not say with what settings it was begun. Remove that folder"):
        written(world, out)


def test_vectors_of_another_encoder_are_not_replaced(world, texts, tmp_path, monkeypatch):
    build_bert(tmp_path / "bert")
    encoder, out = Encoder(str(tmp_path / "bert")), tmp_path / "v.parquet"
    made = embed_profiles(texts, encoder, out, cache=tmp_path / "cache")
    monkeypatch.setattr(Encoder, "encode", None)
    assert embed_profiles(texts, encoder, out, cache=tmp_path / "cache") == made  # nothing is done again
    with pytest.raises(ValueError, match="is there, made with other settings .encoder, "):
        embed_by_model(texts, read_run(str(world / "base"), None), out)
    pd.DataFrame({"gene": ["A"], "text": ["other"]}).to_parquet(texts)
    with pytest.raises(ValueError, match="is there, made with other settings .profiles."):
        embed_profiles(texts, encoder, out, cache=tmp_path / "cache")


def test_what_is_not_there_yet(world, tmp_path, monkeypatch, capsys):
    """A run that never wrote a batch binds nobody to its settings, and an unfinished one is called so."""
    out = tmp_path / "p.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(profiles, "load_run", None)
        with pytest.raises(TypeError):
            written(world, out, max_new_tokens=5)
    command = ["--encoder", "self", "--model", str(world / "base"), "--out", str(tmp_path / "v.parquet")]
    assert main(["embed", str(out), *command]) == 2
    assert "p.parquet is not finished; the command that began it goes on with it" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "q.parquet"), *command]) == 2
    assert "q.parquet: no such file" in capsys.readouterr().err
    written(world, out)
    assert out.exists()


def test_an_adapter_is_no_model(world):
    with pytest.raises(ValueError, match="is an adapter: name it with `adapter`"):
        read_run(str(world / "adapter"), None)


def test_a_manifest_of_other_vectors_is_not_trusted(texts, tmp_path, caplog):
    build_bert(tmp_path / "bert")
    embed_profiles(texts, Encoder(str(tmp_path / "bert")), tmp_path / "v.parquet", cache=tmp_path / "cache")
    table = pd.read_parquet(tmp_path / "v.parquet")
    table.assign(vector=list(np.eye(3, dtype=np.float32))).to_parquet(tmp_path / "v.parquet")
    assert read_vectors(tmp_path / "v.parquet").manifest == {}
    assert "is not of the vectors in" in caplog.text


def test_more_tokens_than_the_model_reads(world, tmp_path):
    with pytest.raises(ValueError, match="max_new_tokens=900.*the model, which reads 1024, has room for"):
        written(world, tmp_path / "p.parquet", max_new_tokens=900)
    with pytest.raises(ValueError, match="device='nonsense'.* cannot be used"):
        written(world, tmp_path / "q.parquet", device="nonsense")


def test_a_folder_that_cannot_be_written_to_is_refused_first(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        written(world, tmp_path / "file" / "p.parquet")
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208
