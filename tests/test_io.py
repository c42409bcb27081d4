"""A file under its final name is complete; one process at a time writes to a folder."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bft_trl import io
from bft_trl.evaluation.scores import read_settings
from bft_trl.models import read_run

NAMES = ("a.txt", "b.txt", "sub/c.txt")


def killed_after(calls: int, write) -> bool:
    """Runs `write` in a forked process that dies at its call number `calls` of a rename or removal."""
    child = os.fork()
    if not child:
        left = [calls]

        def dying(function):
            def call(*args, **kwargs):
                if not left[0]:
                    os._exit(9)
                left[0] -= 1
                return function(*args, **kwargs)

            return call

        Path.replace, Path.unlink = dying(Path.replace), dying(Path.unlink)
        write()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_a_kill_loses_neither_the_old_nor_the_new_version(kind, tmp_path):
    folder = tmp_path / "out"

    def write(text):
        if kind == "files":
            io.write_files({folder / name: text.encode() for name in NAMES})
            return
        with io.atomic_folder(folder) as temporary:
            for name in NAMES:
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_text(text)

    moments = 0
    while True:
        write("old" * 1000)
        if not killed_after(moments, lambda: write("new" * 1000)):
            break
        for name in NAMES:
            assert (folder / name).read_text() in ("old" * 1000, "new" * 1000)
        moments += 1
    assert moments >= len(NAMES)
    assert all((folder / name).read_text() == "new" * 1000 for name in NAMES)


def test_an_error_leaves_the_old_file(tmp_path):
    file = tmp_path / "card.md"
    io.write_text(file, "old")
    for writing in (io.atomic_file(file), io.atomic_folder(tmp_path)):
        with suppress(RuntimeError), writing as temporary:
            (temporary / "card.md" if temporary.is_dir() else temporary).write_text("half")
            raise RuntimeError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_one_process_at_a_time(tmp_path):
    code = "import sys; from pathlib import Path; from bft_trl import io\nwith io.lock(Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with io.lock(tmp_path / "out"), io.lock(tmp_path / "out"):  # a command, and what it calls
        other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another process is writing there. Wait until it ends" in other.stderr
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("content", ["", '{"a": ', "[]", "7"])
def test_a_damaged_json_file_is_named(content, tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="settings.json: "):
        io.read_json_object(file)


@pytest.mark.parametrize("content", ["", "[]", '{"tasks": {}}', '{"tasks": {"t": 1}, "models": {}}', '{"models": []}'])
def test_damaged_settings_are_named(content, tmp_path):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="settings.json: "):
        read_settings(tmp_path)


def test_a_base_model_file_without_quantization_means_none(tmp_path):
    for name, content in {"adapter_config": {"base_model_name_or_path": "some/model"}, "base_model": {}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert read_run(None, tmp_path, apply_chat_template=False).quantization is None


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"`output_dir=.*: {tmp_path}/file is a file. Name a folder."):
            io.check_folder(place)
    io.check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
