"""A killed command loses nothing: its final files are complete, and the same command ends as if it was not killed."""

import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import build_model, build_tokenizer, sample_rows
from test_comparison import choice_documents, write_lm_eval
from test_medical import MEDMCQA

from bft_trl.cli.main import main

# One command of each kind that writes; training is in test_checkpoints.py. {world} is the folder of inputs.
COMMANDS = {
    "data": "data medical --sources medmcqa --data_dir {world}/data --eval_rows 8 --output_dir {out}",
    "inspect": "inspect --model_name_or_path {world}/base --dataset_name {world}/rows.csv --num_samples 4 "
    "--device cpu --output_dir {out}",
    "compare": "compare {world}/plain {world}/tuned --baseline plain --resamples 99 --output_dir {out}",
    "profiles": "profiles --genes {world}/genes.txt --model_name_or_path {world}/base --batch_size 2 "
    "--max_new_tokens 4 --device cpu --output_path {out}/profiles.parquet",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    (world / "data").mkdir()
    rows = [MEDMCQA | {"id": f"m{i}", "question": f"Which nerve {i}?", "exp": f"So {i}."} for i in range(40)]
    pd.DataFrame(rows).to_parquet(world / "data" / "medmcqa_train.parquet")
    build_model(max_position_embeddings=512).save_pretrained(world / "base")
    build_tokenizer().save_pretrained(world / "base")
    pd.DataFrame(sample_rows(8)).to_csv(world / "rows.csv", index=False)
    (world / "genes.txt").write_text("\n".join(f"GENE{i}" for i in range(8)))
    for name, right in {"plain": 10, "tuned": 20}.items():
        write_lm_eval(world / name, {"bft_medqa": (choice_documents(40), {"acc": np.arange(40) < right})})
    return world


def in_child(command: str, *, killed_at: int | None = None) -> tuple[int, int]:
    """Runs a command in a forked process, killed at its write number `killed_at`. Returns exit code and writes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code, count = 99, 0

        def audit(event: str, arguments: tuple) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                if count == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        try:
            sys.addaudithook(audit)
            code = main(command.split())
        finally:
            os.write(writing, str(count).encode())
            os._exit(code)
    os.close(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    counted = os.read(reading, 20)
    os.close(reading)
    return code, int(counted or 0)


def contents(folder: Path) -> dict[str, str]:
    """Returns the content of the final files by name. Raises if one cannot be read."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if any(part.startswith(".") or part.endswith(".parts") for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".parquet":
            content = pd.read_parquet(path).to_json(orient="split")
        elif path.suffix == ".json":
            content = json.dumps(json.loads(path.read_text()), sort_keys=True)
        else:
            content = path.read_bytes().hex()
        found[str(path.relative_to(folder))] = content.replace(str(folder), "OUT")
    return found


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_commands_end_as_if_they_were_not(name, kills, world, tmp_path):
    whole = tmp_path / "whole" / "out"
    in_child(COMMANDS[name].format(world=world, out=tmp_path / "first" / "out"))  # fills caches
    code, writes = in_child(COMMANDS[name].format(world=world, out=whole))
    assert code == 0
    wanted = contents(whole)
    rng = random.Random(0)
    for trial in range(kills):
        out = tmp_path / f"killed{trial}" / "out"
        command = COMMANDS[name].format(world=world, out=out)
        code, _ = in_child(command, killed_at=rng.randrange(writes))
        assert code == -signal.SIGKILL
        for file, content in contents(out).items():
            assert content == wanted[file], file
        assert in_child(command)[0] == 0
        assert contents(out) == wanted
