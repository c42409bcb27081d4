"""What comes from outside is data: it is not unpickled, run, written elsewhere or shown as markup; tokens stay out."""

import ast
import http.server
import io
import logging
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset

from bft_trl import BFTConfig, BFTTrainer
from bft_trl.data.download import fetch
from bft_trl.data.tables import read_table

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for name in ("bft_trl", "examples", "benchmarks", "eval_tasks") for path in (ROOT / name).rglob("*.py")
]
TOKEN = "hf_" + "PlantedTokenOfNobody" + "0123456789"

# Modules whose use runs what a file says, by the names that are harmless nonetheless.
UNPICKLING = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
MODULES: dict[str, set[str]] = {
    **{name: set() for name in UNPICKLING},
    "tarfile": set(),
    "zipfile": {"BadZipFile"},
    "subprocess": {"run", "CalledProcessError", "TimeoutExpired", "Popen", "DEVNULL", "PIPE", "STDOUT"},
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {
    *("os.system", "os.popen", "os.startfile", "shutil.unpack_archive", "yaml.load", "yaml.load_all"),
    *("yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle", "pd.read_pickle", "asyncio.create_subprocess_shell"),
}
PREFIXES = ("os.exec", "os.spawn")
# Options that are only safe with a value, written out where they are called.
NEEDED = {"torch.load": ("weights_only", True)}
FORBIDDEN = {"allow_pickle": True, "shell": True, "trust_remote_code": True}


def dotted(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def dangers(source):
    """Line and text of whatever could run what data say."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            # Imported whole, each use is looked at below; under another name it could not be.
            found += [
                (line, f"import {alias.name}")
                for alias in node.names
                if alias.name.split(".")[0] in MODULES and (alias.asname or not MODULES[alias.name.split(".")[0]])
            ]
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            names = {alias.name for alias in node.names}
            whole = {f"{node.module}.{name}" for name in names}
            if module in MODULES and names - MODULES[module]:
                found.append((line, f"from {node.module} import {', '.join(names)}"))
            found += [(line, name) for name in whole if name in METHODS | set(NEEDED) or name.startswith(PREFIXES)]
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            module, _, rest = name.partition(".")
            if module in MODULES and rest and rest.split(".")[0] not in MODULES[module]:
                found.append((line, name))
            if name in METHODS or name.startswith(PREFIXES):
                found.append((line, name))
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in CALLS or name in {f"builtins.{call}" for call in CALLS}:
                found.append((line, name))
            if name in NEEDED:
                option, value = NEEDED[name]
                if not is_constant(options.get(option), value):
                    found.append((line, f"{name} without {option}={value}"))
            # Passed on from the user's own option of that name it is the user's choice.
            found += [
                (line, f"{option}={ast.unparse(value)}")
                for option, value in options.items()
                if option in FORBIDDEN
                and not is_constant(value, not FORBIDDEN[option])
                and dotted(value).rpartition(".")[2] != "trust_remote_code"
            ]
    return found


def is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_data_say(path):
    source = path.read_text(encoding="utf-8")
    found = [danger for _, danger in dangers(source)]
    if path.relative_to(ROOT).as_posix() == "bft_trl/checkpoints.py":  # it compares CRCs, and takes nothing out
        assert found == ["zipfile.ZipFile"]
        assert "extract" not in source
        assert "archive.testzip()" in source
    else:
        assert found == []


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import dill",
        "import tarfile",
        "import zipfile\nzipfile.ZipFile(f).extractall(d)",
        "import zipfile as z\nz.ZipFile(f)",
        "from zipfile import ZipFile",
        "import shutil\nshutil.unpack_archive(f)",
        "from shutil import unpack_archive",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=safe)",
        "from torch import load",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=anything)",
        "pd.read_pickle(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "yaml.unsafe_load(f)",
        "from yaml import load",
        "eval(x)",
        "exec(x)",
        "builtins.eval(x)",
        "__import__(x)",
        "os.system(x)",
        "run = os.system",
        "from os import system",
        "os.execv(x, y)",
        "os.popen(x)",
        "subprocess.run(x, shell=True)",
        "subprocess.Popen(x, shell=flag)",
        "subprocess.getoutput(x)",
        "from subprocess import getoutput",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=1)",
        "AutoModel.from_pretrained(x, trust_remote_code=trusted)",
    ],
)
def test_the_checker_finds_planted_code(bad):
    assert dangers(bad)


@pytest.mark.parametrize(
    "good",
    [
        "torch.load(f, weights_only=True)",
        "np.load(f)",
        "np.load(f, allow_pickle=False)",
        "yaml.safe_load(f)",
        "model.eval()",
        "re.compile(x)",
        "import subprocess\nsubprocess.run([x], check=True)",
        "import zipfile\ntry: pass\nexcept zipfile.BadZipFile: pass",
        "AutoModel.from_pretrained(x, trust_remote_code=False)",
        "AutoModel.from_pretrained(x, trust_remote_code=args.trust_remote_code)",
    ],
)
def test_the_checker_lets_safe_code_pass(good):
    assert dangers(good) == []


# --- archives and addresses ------------------------------------------------------------------------------------------


def archive(kind, outside):
    """A zip or tar file whose members want to lie elsewhere: by way of "..", an absolute path and a link."""
    buffer = io.BytesIO()
    names = ["../evil", str(outside / "evil"), "link/evil", "harmless.csv"]
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as packed:
            link = zipfile.ZipInfo("link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(link, str(outside))
            for name in names:
                packed.writestr(name, "evil")
    else:
        with tarfile.open(fileobj=buffer, mode="w") as packed:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(outside)
            packed.addfile(link)
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 4
                packed.addfile(member, io.BytesIO(b"evil"))
    return buffer.getvalue()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """An address at which every path gives the bytes that are put in, and its cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    content = [b""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[0])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", content
        server.shutdown()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_a_file_and_is_not_unpacked(published, tmp_path, kind):
    address, content = published
    outside = tmp_path / "outside"
    outside.mkdir()
    content[0] = archive(kind, outside)
    file = fetch(f"{address}/table.{kind}", cache=tmp_path / "cache")
    assert file.read_bytes() == content[0]
    everything = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert everything == {"outside", "cache", f"cache/{file.name}"}
    # Nor is it read as a table.
    with pytest.raises(ValueError, match=file.name):
        read_table(file, ["id"])
    assert list(outside.iterdir()) == []


def test_what_an_archive_could_do(tmp_path):
    """The archives above do want out: unpacked by hand without a filter, one does."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive("tar", outside))) as packed:
        packed.extractall(tmp_path / "inside", filter="fully_trusted")
    assert (outside / "evil").exists()
    assert (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "path", ["..", "a/..", "a/../../evil", "%2e%2e%2fevil", "..%2fevil", "a\\..\\evil", "", "?a=../b"]
)
def test_an_address_names_no_other_folder(published, tmp_path, path):
    address, content = published
    content[0] = b"id\n1\n"
    cache = tmp_path / "deep" / "cache"
    file = fetch(f"{address}/{path}", cache=cache)
    assert file.resolve().parent == cache.resolve()
    assert {found for found in tmp_path.rglob("*") if found.is_file()} == {file}


# --- tokens ----------------------------------------------------------------------------------------------------------


def holding(folder, token=TOKEN):
    """Files under `folder` with the token in them, or in a member: torch.save writes archives that are not packed."""
    return [path for path in folder.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


def test_no_file_of_a_training_run_holds_the_token(tmp_path, monkeypatch, caplog, capsys):
    """With the token as an argument and in the environment, as for a run that pushes to the Hub at its end."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    rows = Dataset.from_list(sample_rows(8))
    args = build_config(
        tmp_path / "run",
        hub_token=TOKEN,
        report_to="tensorboard",
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer = BFTTrainer(build_model(), args, None, rows, rows, processing_class=build_tokenizer())
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    trainer.save_state()
    (tmp_path / "args.json").write_text(args.to_json_string())
    (tmp_path / "args.txt").write_text(f"{args} {args!r} {args.to_sanitized_dict()}")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "objective.json", "README.md"} <= {path.name for path in written}
    assert any("tfevents" in path.name for path in written)
    assert holding(tmp_path) == []
    assert TOKEN not in caplog.text + "".join(capsys.readouterr())
    # It is there for the push all the same, and a planted file is found.
    assert trainer.args.hub_token == TOKEN
    (tmp_path / "planted.bin").write_bytes(b"\0\1" + TOKEN.encode() + b"\2")
    assert holding(tmp_path) == [tmp_path / "planted.bin"]


def test_plain_trl_would_have_kept_it(tmp_path):
    """What the test above guards against: without it, should transformers stop to, `__getstate__` can go."""
    import torch
    from trl import SFTConfig

    torch.save(SFTConfig(str(tmp_path), use_cpu=True, bf16=False, hub_token=TOKEN), tmp_path / "training_args.bin")
    assert holding(tmp_path) == [tmp_path / "training_args.bin"]


def test_a_token_among_the_models_arguments_is_refused(tmp_path):
    for name in ("token", "use_auth_token"):
        with pytest.raises(ValueError, match=f"`model_init_kwargs` holds '{name}'") as caught:
            BFTConfig(str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={name: TOKEN, "revision": "main"})
        assert TOKEN not in str(caught.value)
    BFTConfig(str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={"revision": "main"})
