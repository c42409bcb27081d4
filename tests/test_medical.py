"""Medical questions from every published form, as training rows, leakage of them, and downloads of evaluation data."""

import json
import re
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pandas as pd
import pytest

from bft_trl.cli.main import main
from bft_trl.data import evaluation_sets, medical
from bft_trl.data.documents import last_user_turn, read_documents
from bft_trl.data.download import fetch, hub_table
from bft_trl.data.evaluation_sets import load_background, load_evaluation_sets
from bft_trl.data.leakage import find_leaks, shared_phrases
from bft_trl.data.medical import as_questions, load_questions, question_row
from bft_trl.prompts import parse_choice

MEDQA = {"id": "train-1", "sent1": "A man coughs.", "sent2": "", "label": 2} | {
    f"ending{i}": f"e{i}" for i in range(4)
}
MEDMCQA = {"id": "m1", "question": "Which nerve?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1}
PUBMEDQA = {"id": "123", "QUESTION": "Does it help?", "CONTEXTS": ["We asked.", "It did."], "final_decision": "maybe"}
MMLU = {"question": "What is it?", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": 3}
O1 = {"Question": "Why fever?", "Complex_CoT": "Hm, cytokines.", "Response": "Because of IL-6."}


def write(folder, name, *rows):
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet")
    return folder


# --- questions -------------------------------------------------------------------------------------------------------


def test_questions_of_every_source(tmp_path):
    (row,) = load_questions("medqa", data_dir=write(tmp_path, "medqa_test", MEDQA)).to_dict("records")
    assert row == {
        "id": "train-1",
        "question": "A man coughs.",
        "context": "",
        "labels": ["A", "B", "C", "D"],
        "options": ["e0", "e1", "e2", "e3"],
        "answer": "C",
        "explanation": None,
    }
    write(tmp_path, "medmcqa_validation", MEDMCQA | {"exp": " Because. "}, MEDMCQA | {"id": "m2", "cop": -1})
    with pytest.raises(ValueError, match=r"medmcqa_validation.parquet: row 1 .*cop -1 is not one of 0 to 3"):
        load_questions("medmcqa", data_dir=tmp_path)
    (row,) = load_questions("medmcqa", data_dir=tmp_path, drop_unanswered=True).to_dict("records")
    assert (row["answer"], row["explanation"]) == ("B", "Because.")
    write(tmp_path, "pubmedqa_test", PUBMEDQA | {"LONG_ANSWER": "It may."})
    (row,) = load_questions("pubmedqa", data_dir=tmp_path).to_dict("records")
    assert (row["context"], row["answer"], row["explanation"]) == ("We asked.\nIt did.", "maybe", "It may.")
    assert (row["labels"], row["options"]) == (["yes", "no", "maybe"], ["", "", ""])
    write(tmp_path, "mmlu_medical_test", MMLU, MMLU | {"subject": "philosophy"})
    (row,) = load_questions("mmlu_medical", data_dir=tmp_path).to_dict("records")
    assert (row["answer"], row["id"]) == ("D", "mmlu_medical-test-0")


@pytest.mark.parametrize(
    ("source", "row", "words"),
    [
        ("medqa", MEDQA | {"label": 4}, "row 0 .*label 4 is not one of 0 to 3"),
        ("medqa", MEDQA | {"label": None}, "row 0 .*label None is not one"),
        ("medqa", MEDQA | {"sent1": None}, "row 0 .*has no question"),
        ("pubmedqa", PUBMEDQA | {"final_decision": "perhaps"}, "row 0 .*'perhaps' is not one of yes, no, maybe"),
        ("pubmedqa", PUBMEDQA | {"CONTEXTS": "['a']"}, r"row 0 .*CONTEXTS .* is not a list: use parquet or JSON"),
        ("mmlu_medical", MMLU | {"choices": ["w"]}, "row 0 .*`options` has 1 entries"),
        ("mmlu_medical", MMLU | {"answer": "B"}, "row 0 .*answer 'B' is not one of 0 to 3"),
        ("mmlu_medical", MMLU | {"subject": "law"}, "has no answered questions, or none of the subjects anatomy"),
        ("medmcqa", MEDMCQA | {"cop": float("inf")}, "row 0 .*cop inf is not one of"),
        ("medmcqa", MEDMCQA | {"id": None}, "row 0 .*missing or repeated id None"),
    ],
)
def test_a_bad_row_is_named(source, row, words):
    with pytest.raises(ValueError, match=f"FILE: {words}"):
        as_questions(pd.DataFrame([row]), source, where="FILE")


def test_bad_files_name_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no medqa_test.parquet"):
        load_questions("medqa", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`data_dir=.*no such folder"):
        load_questions("medqa", data_dir=tmp_path / "no")
    write(tmp_path, "medqa_test", {"id": 1})
    with pytest.raises(ValueError, match=r"medqa_test.parquet: has no column \['sent1'"):
        load_questions("medqa", data_dir=tmp_path)
    with pytest.raises(ValueError, match="`source='x'` is not known"):
        load_questions("x", data_dir=tmp_path)
    write(tmp_path, "medqa_test", MEDQA, MEDQA)
    with pytest.raises(ValueError, match="medqa_test.parquet: row 1 .*repeated id train-1"):
        load_questions("medqa", data_dir=tmp_path)


def test_an_option_called_none_is_an_option(tmp_path):
    """pandas reads "None" as missing by default; an option without text keeps its letter."""
    (tmp_path / "medmcqa_validation.csv").write_text("id,question,opa,opb,opc,opd,cop\n0012,Which?,Lung,N/A,None,,2\n")
    (row,) = load_questions("medmcqa", data_dir=tmp_path).to_dict("records")
    assert (row["id"], row["options"], row["answer"]) == ("0012", ["Lung", "N/A", "None", ""], "C")
    prompt = question_row(row, source="medmcqa")["prompt"][0]["content"]
    assert "A. Lung\nB. N/A\nC. None\nD. \n" in prompt


# --- training rows ---------------------------------------------------------------------------------------------------


def test_rows_have_the_prompts_of_the_evaluation():
    (question,) = as_questions(pd.DataFrame([MEDMCQA | {"exp": "It is b."}]), "medmcqa", where="x").to_dict("records")
    row = question_row(question, source="medmcqa")
    assert row["prompt"][0]["content"].endswith('Think step by step, then write "Answer: <letter>" on the last line.')
    assert row["completion"][0]["content"] == "It is b.\n\nAnswer: B"
    assert parse_choice(row["completion"][0]["content"], "ABCD") == "B"
    short = question_row(question, source="medmcqa", reasoning=False)
    assert short["completion"][0]["content"] == "Answer: B"
    assert short["prompt"][0]["content"].endswith('Write "Answer: <letter>" and nothing else.')
    (free,) = as_questions(pd.DataFrame([O1]), "medical_o1", where="x").to_dict("records")
    row = question_row(free, source="medical_o1")
    assert row["prompt"] == [{"role": "user", "content": "Why fever?"}]
    assert row["completion"][0]["content"] == "Hm, cytokines.\n\nBecause of IL-6."
    assert question_row(free, source="x", reasoning=False)["completion"][0]["content"] == "Because of IL-6."


@pytest.fixture
def folder(tmp_path):
    """Twelve MedMCQA questions, of which two are equal, and eight of PubMedQA."""
    rows = [MEDMCQA | {"id": f"m{i}", "question": f"Which nerve {i % 11}?", "exp": "So."} for i in range(12)]
    write(tmp_path / "data", "medmcqa_train", *rows)
    rows = [PUBMEDQA | {"id": str(i), "QUESTION": f"Does {i} help?", "LONG_ANSWER": None} for i in range(8)]
    return write(tmp_path / "data", "pubmedqa_train", *rows)


def test_training_data_end_to_end(folder, tmp_path):
    held_out = tmp_path / "held_out.csv"
    held_out.write_text('question,opa,opb,opc,opd,cop,id\n"which NERVE, 3",,,,,0,x\n')
    command = ["data", "medical", "--sources", "medmcqa", "pubmedqa", "--data_dir", str(folder), "--eval_rows", "5"]
    command += ["--exclude", str(held_out), "--output_dir"]
    assert main([*command, str(tmp_path / "a")]) == 0
    train, held = (pd.read_parquet(tmp_path / "a" / f"{name}.parquet") for name in ("train", "eval"))
    assert (len(train), len(held)) == (14, 5)  # 20 without the one that leaks
    assert list(train.columns) == ["id", "source", "question", "prompt", "completion"]
    assert set(train["question"]) & set(held["question"]) == set()
    assert "m3" not in {*train["id"], *held["id"]}
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| held_out.csv | 1 |" in card
    assert "medmcqa: 11 rows, MIT" in card
    digest = sha256((folder / "medmcqa_train.parquet").read_bytes()).hexdigest()
    assert f"| `medmcqa_train.parquet` | {digest} |" in card
    assert str(tmp_path) not in card
    assert main([*command, str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "train.parquet").read_bytes() == (tmp_path / "a" / "train.parquet").read_bytes()
    assert main([*command, str(tmp_path / "c"), "--seed", "1"]) == 0
    assert (tmp_path / "c" / "train.parquet").read_bytes() != (tmp_path / "a" / "train.parquet").read_bytes()
    assert main([*command, str(tmp_path / "d"), "--no_reasoning"]) == 0
    for name, explained in (("a", True), ("d", False)):
        answers = pd.read_parquet(tmp_path / name / "train.parquet")["completion"]
        assert any("So." in answer[0]["content"] for answer in answers) == explained
        assert ("--no_reasoning" in (tmp_path / name / "README.md").read_text()) != explained
        assert "--reasoning" not in (tmp_path / name / "README.md").read_text()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--sources", "nothing"], "`sources=['nothing']`: choose from medqa"),
        (["--sources", "medmcqa", "medmcqa"], "medical_o1, each once"),
        (["--sources", "medmcqa:test"], "has no medmcqa_test.parquet"),
        (["--sources", "medmcqa", "--eval_rows", "50"], "eval: 50 rows requested"),
        (["--sources", "medmcqa", "--exclude", "no.csv"], "no.csv: no such file"),
    ],
)
def test_bad_input_writes_nothing(extra, words, folder, tmp_path, capsys):
    assert main(["data", "medical", "--data_dir", str(folder), "--output_dir", str(tmp_path / "o"), *extra]) == 2
    assert words in capsys.readouterr().err
    assert not list((tmp_path / "o").glob("*.*"))


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_shared_phrases_by_hand():
    """Thirteen common words are a leak, twelve are none; case and punctuation do not count.

    The same 13 words in 11 different texts are a common phrase; in 10, or in copies of one text, they are not.
    """
    thirteen = "one two three four five six seven eight nine ten eleven twelve thirteen"
    train = [f"Before. {thirteen.upper()}, after", "one two three four five six seven eight nine ten eleven twelve"]
    assert shared_phrases(train, [f"x {thirteen}"]) == {(0, 0)}
    assert shared_phrases(train, ["nothing", thirteen, thirteen]) == {(0, 1), (0, 2)}
    form = "which of the following statements about this patient is the most likely one here"
    assert shared_phrases([f"{form} {i}" for i in range(11)], [f"{form} x"]) == set()
    assert len(shared_phrases([f"{form} {i}" for i in range(10)], [f"{form} x"])) == 10
    assert len(shared_phrases([form] * 30, [f"{form} x"])) == 30


def test_documents_of_every_kind(tmp_path):
    write(tmp_path, "medqa", MEDQA)
    write(tmp_path, "mmlu", MMLU, MMLU | {"subject": "law"})
    write(tmp_path, "pubmedqa", PUBMEDQA)
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Does it help?"}]
    answer = [{"role": "assistant", "content": "Yes."}]
    write(tmp_path, "trl", {"prompt": prompt, "completion": answer})
    write(tmp_path, "messages", {"messages": [*prompt, *answer]})
    write(tmp_path, "plain", {"prompt": "Does it help?", "completion": "Yes."})
    read = {path.stem: read_documents(path)[1] for path in tmp_path.glob("*.parquet")}
    assert read["medqa"]["id"].tolist() == ["train-1"]
    assert read["mmlu"]["id"].tolist() == [None, None]  # all subjects are kept
    assert read["pubmedqa"]["body"].tolist() == ["We asked.\nIt did. Does it help?"]
    for name in ("trl", "messages", "plain"):
        assert read[name]["text"].tolist() == ["Does it help?"]
        assert find_leaks(read[name], read["pubmedqa"])["reason"].tolist() == ["text"]
        assert find_leaks(read[name], read["pubmedqa"])["train_id"].tolist() == ["row 0"]
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert last_user_turn(turns) == "What is it?"
    assert last_user_turn([{"role": "assistant", "content": "x"}]) == ""
    write(tmp_path, "odd", {"a": 1})
    with pytest.raises(ValueError, match="odd.parquet: has neither gene sets nor questions"):
        read_documents(tmp_path / "odd.parquet")


def test_ids_are_the_same_in_every_format(tmp_path):
    """1 in a column of integers, 1.0 in one with a missing value, and "1" as text are equal; "0013" is not 13."""
    write(tmp_path, "numbers", {"id": 1, "text": "a"})
    write(tmp_path, "gaps", {"id": 1.0, "text": "b"}, {"id": None, "text": "c"})
    (tmp_path / "text.jsonl").write_text('{"id": "1", "text": "d"}\n{"id": "0013", "text": "e"}\n')
    (tmp_path / "zero.csv").write_text("id,text\n0013,f\n")
    read = {path.stem: read_documents(path)[1] for path in tmp_path.iterdir()}
    for a, b in (("numbers", "gaps"), ("numbers", "text"), ("gaps", "text"), ("zero", "text")):
        assert find_leaks(read[a], read[b])["reason"].tolist() == ["id"], (a, b)
    assert find_leaks(read["gaps"], read["zero"]).empty


def test_the_name_of_a_gene_set_is_its_text(tmp_path):
    (tmp_path / "train.csv").write_text("id,name,genes\n1,DNA repair,A B\n")
    (tmp_path / "test.csv").write_text("id,name,genes,text\n2,dna-repair,C D,something\n")
    train, test = (read_documents(tmp_path / f"{name}.csv")[1] for name in ("train", "test"))
    assert find_leaks(train, test)["reason"].tolist() == ["text"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": None}, "is neither a text nor a list of turns"),
        ({"prompt": 5}, "'5' is neither a text"),
        ({"messages": [{"role": "user", "content": None}]}, "the last user turn has no text but None"),
    ],
)
def test_odd_conversations_are_named(row, words, tmp_path):
    (tmp_path / "odd.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=f"odd.jsonl: row 0 .*{words}"):
        read_documents(tmp_path / "odd.jsonl")


def test_check_writes_data_without_leaks(tmp_path, capsys):
    write(tmp_path, "train", MEDMCQA, MEDMCQA | {"id": "m2", "question": "Which vein?"})
    write(tmp_path, "test", MEDMCQA | {"id": "other", "question": "which nerve"})
    train, test = str(tmp_path / "train.parquet"), str(tmp_path / "test.parquet")
    command = ["data", "check", "--train", train, "--against", test]
    assert main(command) == 1
    assert main([*command, "--output_dir", str(tmp_path / "clean")]) == 0
    assert pd.read_parquet(tmp_path / "clean" / "train.parquet")["id"].tolist() == ["m2"]
    leaks = pd.read_csv(tmp_path / "clean" / "leaks.csv")
    assert leaks[["train_id", "test_id", "reason", "train", "against"]].values.tolist() == [
        ["m1", "other", "text", "train.parquet", "test.parquet"]
    ]
    assert main(["data", "check", "--train", str(tmp_path / "clean" / "train.parquet"), "--against", test]) == 0
    for extra, words in (
        (["--output_dir", str(tmp_path)], "contains a training file"),
        (["--output_dir", test], "`output_dir="),
        (["--output_dir", str(tmp_path / "none"), "--against", train], "every row leaks"),
    ):
        assert main([*command, *extra]) == 2
        assert words in capsys.readouterr().err
    assert not list((tmp_path / "none").glob("*.*"))


# --- downloads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder on a local HTTP server, its address, and an empty Hugging Face home folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    (tmp_path / "site").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "site"))
    Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_download_is_cached_and_its_hash_checked(served, tmp_path, monkeypatch):
    site, address = served
    (site / "a.csv").write_text("one")
    path = fetch(f"{address}/a.csv")
    assert path.parent == tmp_path / "home" / "bft_trl" / "downloads"
    (site / "a.csv").write_text("two")
    assert fetch(f"{address}/a.csv").read_text() == "one"  # not downloaded again
    path.unlink()
    with pytest.raises(ValueError, match="a.csv.*does not match the known hash"):
        fetch(f"{address}/a.csv", sha256="0" * 64)
    assert not path.exists()
    assert fetch(f"{address}/a.csv", sha256=sha256(b"two").hexdigest()).read_text() == "two"
    with pytest.raises(OSError, match="404"):
        fetch(f"{address}/absent.csv")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE forbids downloads"):
        fetch(f"{address}/b.csv")
    assert fetch(f"{address}/a.csv") == path


def test_the_hub_is_read_by_datasets(tmp_path):
    """A folder replaces a Hub id: the same call of load_dataset reads it."""
    write(tmp_path / "repo", "train", MEDMCQA)
    assert hub_table(str(tmp_path / "repo"), None, "0" * 40, split="train")["cop"].tolist() == [1]
    with pytest.raises(OSError, match="cannot be loaded from the Hub"):
        hub_table("no-such-owner/no-such-data", None, "0" * 40, split="train")


def test_pubmedqa_from_its_publisher(served, tmp_path, monkeypatch):
    """The official test ids make the test split, the others are for training."""
    site, address = served
    rows = {str(i): {"QUESTION": f"Does {i}?", "CONTEXTS": ["c"], "final_decision": "no"} for i in range(3)}
    contents = {"ori_pqal.json": json.dumps(rows), "test_ground_truth.json": '{"1": "no"}'}
    for name, content in contents.items():
        (site / name).write_text(content)
    hashes = {f"{address}/{name}": sha256(content.encode()).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(medical, "PUBMEDQA_FILES", hashes)
    assert load_questions("pubmedqa")["id"].tolist() == ["1"]
    assert load_questions("pubmedqa", split="train")["id"].tolist() == ["0", "2"]
    (tmp_path / "train.csv").write_text("text\ndoes 1\n")
    assert main(["data", "check", "--train", str(tmp_path / "train.csv"), "--against", "pubmedqa"]) == 1


def test_gene_sets_from_their_publisher(served, tmp_path, monkeypatch):
    """In the three forms in which GeneAgent publishes them."""
    site, address = served
    (site / "GO_terms.csv").write_text("GO,Genes,Gene_Count,Term_Description\nGO:1,A B,2,dna repair\n")
    (site / "NeST.tsv").write_text('NEST ID\tname_new\tGenes\nNEST:256\tMAPK signaling\t"A,B"\n\n')
    (site / "MsigDB.csv").write_text('"ID","Name","Count","Genes"\n"MsigDB:69","Peroxisome","2","A B"\n\n\n')
    files = {"go": "GO_terms.csv", "nest": "NeST.tsv", "msigdb": "MsigDB.csv"}
    monkeypatch.setattr(evaluation_sets, "PUBLISHED", {name: f"{address}/{file}" for name, file in files.items()})
    rows = [row for name in files for row in load_evaluation_sets(name).to_dict("records")]
    names = {"GO:1": "dna repair", "NEST:256": "MAPK signaling", "MsigDB:69": "Peroxisome"}
    assert {row["id"]: row["name"] for row in rows} == names
    assert all(row["genes"] == ["A", "B"] for row in rows)
    assert load_evaluation_sets("nest")["source"].tolist() == ["nest"]
    (tmp_path / "train.csv").write_text("id,name,genes\n1,mapk-signaling,C D\n")
    monkeypatch.setattr("bft_trl.data.documents.PUBLISHED", evaluation_sets.PUBLISHED)
    check = ["data", "check", "--train", str(tmp_path / "train.csv"), "--against"]
    assert main([*check, "gene_sets_nest"]) == 1
    assert main([*check, "gene_sets_go"]) == 0
    assert main([*check, "gene_sets_other"]) == 2


def test_downloads_are_pinned_to_commits():
    for url in [*evaluation_sets.PUBLISHED.values(), evaluation_sets.BACKGROUND, *medical.PUBMEDQA_FILES]:
        assert re.search(r"/[0-9a-f]{40}/", url)
    for source in medical.SOURCES.values():
        assert source.hub is None or re.fullmatch(r"[0-9a-f]{40}", source.hub[2])


def test_background_names(tmp_path):
    (tmp_path / "names.txt").write_text("dna repair\n\ncell cycle\ndna repair\n")
    assert load_background(tmp_path / "names.txt") == ["dna repair", "cell cycle"]
    (tmp_path / "hu.csv").write_text("GO,Term_Description\n1,dna repair\n")
    assert load_background(tmp_path / "hu.csv") == ["dna repair"]
    write(tmp_path, "go_background_terms", {"id": "1", "name": "ageing"})
    assert load_background(data_dir=tmp_path) == ["ageing"]
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "x.csv").write_text("a\n1\n")
    for name, words in (
        ("empty.txt", "has no names"),
        ("no.txt", "no such file"),
        ("no.csv", "no such file"),
        ("x.csv", "has no column 'name'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            load_background(tmp_path / name)
    with pytest.raises(ValueError, match="`name='x'` is not known"):
        load_evaluation_sets("x")
