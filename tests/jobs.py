"""Every command that writes, on tiny inputs, run in a forked child that can be killed at any of its writes.

A new command needs one entry in JOBS (and its inputs in `make_world`); test_kills.py and test_faults.py do the rest.
"""

import hashlib
import importlib
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import numpy as np
import pandas as pd
import safetensors.torch
import torch
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig
from test_comparison import choice_documents, gene_set_documents, write_lm_eval
from test_encoders import build_bert
from test_eval_tasks import write_data
from test_gene_ontology import ANNOTATIONS, ONTOLOGY, gaf_text
from test_interactions import write_pairs
from test_medical import MEDMCQA
from test_profiles import talkative_model

from bft_trl import BFTTrainer
from bft_trl.biology import interactions
from bft_trl.biology.predictors import Fit
from bft_trl.cli.main import main
from bft_trl.evaluation.runner import tasks_path
from bft_trl.training.checkpoints import last_complete_checkpoint, missing_part

# --- what is run -----------------------------------------------------------------------------------------------------


def make_world(world: Path) -> None:
    """All inputs: data, models, an evaluated run; made once."""
    write_data(world / "data")
    build_bert(world / "encoder")
    talkative_model().save_pretrained(world / "base")
    build_tokenizer().save_pretrained(world / "base")
    genes = [f"GENE{i}" for i in range(12)]
    (world / "genes.txt").write_text("\n".join(genes))
    pd.DataFrame(sample_rows(16)).to_csv(world / "questions.csv", index=False)
    BFTTrainer(
        build_model(),
        args=build_config(world / "run", max_steps=4),
        train_dataset=Dataset.from_list(sample_rows(8)),
        processing_class=build_tokenizer(),
    ).train()
    lines = [f"Term {i} (GO:{i:07})\td\t" + "\t".join(f"G{i}{x}" for x in "ABCD") for i in range(30)]
    (world / "sets.gmt").write_text("\n".join(lines) + "\n")
    (world / "go.obo").write_text(ONTOLOGY)
    (world / "human.gaf").write_text(
        gaf_text(ANNOTATIONS + [(f"Q{i}", "involved_in", f"GO:000000{1 + i % 5}", "IDA", "P") for i in range(40)])
    )
    rows = [MEDMCQA | {"id": f"m{i}", "question": f"Which nerve {i}?", "exp": f"So {i}."} for i in range(40)]
    pd.DataFrame(rows).to_parquet(world / "data" / "medmcqa_train.parquet")
    for seed in range(2):
        pd.DataFrame(rows[seed * 5 : seed * 5 + 5]).to_parquet(world / f"held_out{seed}.parquet")
    sets = gene_set_documents(12)
    (world / "references.jsonl").write_text("\n".join(json.dumps(document) for document in sets))
    answers = [{"id": d["id"], "predicted_name": d["name"][:-3], "model": m} for d in sets for m in ("one", "two")]
    (world / "predictions.jsonl").write_text("\n".join(json.dumps(row) for row in answers))
    (world / "background.txt").write_text("dna repair\ncell cycle\ndna\ncell\n")
    documents = choice_documents(40)
    for name, right in {"plain": 10, "tuned": 20}.items():
        scores = {"acc": np.arange(40) < right}
        write_lm_eval(world / name, {"bft_medqa": (documents, scores)})
    pd.DataFrame({"gene": genes, "text": [f"dna repair {i} cell" for i in range(12)]}).to_parquet(
        world / "texts.parquet"
    )
    rng = np.random.default_rng(0)
    pair_genes = [f"G{i}" for i in range(60)]
    vectors = rng.standard_normal((60, 4)).astype(np.float32)
    pd.DataFrame({"gene": pair_genes, "vector": list(vectors)}).to_parquet(world / "text.parquet")
    for part, low in {"train": 0, "valid": 20, "test": 40}.items():
        drawn = rng.integers(low, low + 20, (80, 2))
        write_pairs(world / f"{part}.csv", [(pair_genes[a], pair_genes[b], int(rng.integers(2))) for a, b in drawn])
    changes = [
        {"perturbation": name, "gene": f"X{j}", "delta": float(rng.standard_normal())}
        for name in pair_genes[:6]
        for j in range(12)
    ]
    pd.DataFrame(changes).to_csv(world / "delta.csv", index=False)


def train(world: Path, root: Path, seed: int) -> int:
    """Checkpoints, evaluations, rotation, the best model at the end and in the run folder; goes on where it can."""
    trainer = BFTTrainer(
        build_model(),
        args=build_config(
            root / "run",
            seed=seed,
            per_device_train_batch_size=2,
            max_steps=6,
            learning_rate=1e-2,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=2,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
        ),
        train_dataset=Dataset.from_list(sample_rows(8)),
        eval_dataset=Dataset.from_list(sample_rows(4, seed=5)),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.2),
    )
    try:
        last_complete_checkpoint(root / "run")
        resume = True
    except ValueError:
        resume = None
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.create_model_card(model_name="run")
    return 0


def cheap_fit(train: Any, valid: Any, test: Any, *, seed: int, trees: bool = True) -> Fit:
    """Instead of classifiers the sum of the features: what is killed is the writing, and it is the same."""
    return Fit(1 / (1 + np.exp(-np.asarray(test.sum(axis=1), dtype=float).ravel())), "cheap", {"cheap": 0.5})


class Job(NamedTuple):
    """Something that writes below `root`.

    Attributes:
        command: the words of `bft-trl`, where {world} is the folder of inputs, or a function that does the work.
        older: whether it may be run over the results of another seed, which it then replaces.
        store: pattern of the files that a run keeps to go on from; they may be of several runs.
    """

    command: str | Callable[[Path, Path, int], int]
    older: bool = True
    store: str = "(?!)"

    def __call__(self, world: Path, root: Path, seed: int = 0) -> int:
        interactions.fit = cheap_fit
        if not isinstance(self.command, str):
            return self.command(world, root, seed)
        return main([word.format(world=world, root=root, seed=seed) for word in self.command.split()])


JOBS = {
    "train": Job(train, older=False, store=r"run/(checkpoint-|README|samples/)"),
    "gene-sets of GMT": Job(
        "data gene-sets --gmt {world}/sets.gmt --names-only --eval-sets 5 --seed {seed} --out {root}/out"
    ),
    "gene-sets of OBO": Job(
        "data gene-sets --obo {world}/go.obo --gaf {world}/human.gaf --names-only --eval-sets 1 --min-genes 2 "
        "--seed {seed} --out {root}/out"
    ),
    "medical": Job(
        "data medical --sources medmcqa --data-dir {world}/data --eval-rows 8 --seed {seed} --out {root}/out"
    ),
    "check": Job(
        "data check --train {world}/data/medmcqa_train.parquet --against {world}/held_out{seed}.parquet "
        "--drop {root}/out"
    ),
    "eval": Job(
        "eval --model {world}/base --tasks bft_medqa,bft_gene_sets_go --data-dir {world}/data --out {root}/out "
        "--encoder {world}/encoder --gen_kwargs max_gen_toks=4 --device cpu --batch_size 4",
        older=False,  # lm-eval's files have the time in their names: nothing is replaced
    ),
    "inspect": Job(
        "inspect --model {world}/base --dataset {world}/questions.csv --n 8 --seed {seed} --device cpu "
        "--out {root}/out"
    ),
    "hard-samples": Job("hard-samples {world}/run --out {root}/out", older=False),
    "score": Job(
        "score --predictions {world}/predictions.jsonl --references {world}/references.jsonl "
        "--encoder {world}/encoder --background {world}/background.txt --floors --seed {seed} --out {root}/out"
    ),
    "compare": Job(
        "compare {world}/plain {world}/tuned --baseline plain --resamples 99 --seed {seed} --out {root}/out"
    ),
    "profiles": Job(
        "profiles --genes {world}/genes.txt --model_name_or_path {world}/base --batch_size 2 --max_new_tokens 4 "
        "--device cpu --output_path {root}/out/p.parquet",
        older=False,
        store=r".*\.parts/",
    ),
    "profiles of texts": Job("profiles --texts {world}/texts.parquet --output_path {root}/out/t.parquet", older=False),
    "embed": Job(
        "embed {world}/texts.parquet --encoder {world}/encoder --output_path {root}/out/v.parquet", older=False
    ),
    "embed by itself": Job(
        "embed {world}/texts.parquet --encoder self --model_name_or_path {world}/base --device cpu "
        "--output_path {root}/out/v.parquet",
        older=False,
    ),
    "interactions": Job(
        "interactions --train {world}/train.csv --valid {world}/valid.csv --test {world}/test.csv --resamples 99 "
        "--vectors {world}/text.parquet --seed {seed} --output_dir {root}/out",
        store="out/predictions/",
    ),
    "perturbation": Job(
        "perturbation --data {world}/delta.csv --vectors {world}/text.parquet --seed {seed} --output_dir {root}/out"
    ),
}

# --- a child, killed at a moment -------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a child ended: exit code (negative: the signal), its writes as (kind, path), seconds, what it said."""

    code: int
    writes: list[tuple[str, str]]
    seconds: float
    said: str


def in_child(
    work: Callable[[], int],
    root: Path,
    *,
    at_write: int | None = None,
    halved: bool = False,
    after: float | None = None,
) -> Ended:
    """Forks, runs `work` and counts what it writes under `root`; everything is imported already.

    Args:
        work: gives the exit code.
        root: folder whose writes count.
        at_write: SIGKILL just before this write (from 0) is done.
        halved: and the file that was opened by the write before it keeps half its bytes, as if killed inside that one.
        after: SIGKILL after so many seconds.
    """
    root.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    saying = os.pipe()  # not a file: the disk may be full
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            for number in (reading, saying[0]):
                os.close(number)
            for number in (1, 2):
                os.dup2(saying[1], number)
            sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True)
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), write_through=True)
            huggingface_hub.constants.HF_HOME = str(root / "home")
            _watch(root, writing, at_write, halved=halved)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    for number in (writing, saying[1]):
        os.close(number)
    read = {reading: b"", saying[0]: b""}
    open_pipes = set(read)
    while open_pipes:
        left = None if after is None else max(started + after - time.monotonic(), 0)
        ready = select.select(open_pipes, [], [], left)[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
            with suppress(ProcessLookupError):  # it had begun none
                os.killpg(child, signal.SIGKILL)
            after = None
        for pipe in ready:
            block = os.read(pipe, 1 << 16)
            read[pipe] += block
            if not block:
                open_pipes.remove(pipe)
                os.close(pipe)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - started
    writes = [tuple(json.loads(line)) for line in read[reading].decode().splitlines()]
    return Ended(os.waitstatus_to_exitcode(status), writes, seconds, read[saying[0]].decode(errors="replace"))


def _watch(root: Path, pipe: int, at_write: int | None, *, halved: bool) -> None:
    """Reports each write under `root` into the pipe, and dies at the given one."""
    inside, count, last = f"{root}{os.sep}", 0, ""

    def write(kind: str, path: Any) -> None:
        nonlocal count, last
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if not isinstance(name, str) or not name.startswith(inside):
            return
        if count == at_write:
            if halved and last and Path(last).is_file():
                os.truncate(last, Path(last).stat().st_size // 2)
            os.write(pipe, f"{json.dumps([kind, name.removeprefix(inside)])}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        last = name if kind in ("open", "write") else ""
        os.write(pipe, f"{json.dumps([kind, name.removeprefix(inside)])}\n".encode())

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            write("open", arguments[0])
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            write(event, arguments[0])

    sys.addaudithook(audited)

    # What is written by C++ and Rust is not audited.
    def counted(function: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(args) > place:
                write("write", args[place])
            return function(*args, **kwargs)

        return call

    torch.save = counted(torch.save, 1)
    safetensors.torch.save_file = counted(safetensors.torch.save_file, 1)
    import peft.peft_model

    peft.peft_model.safe_save_file = counted(peft.peft_model.safe_save_file, 1)
    pd.DataFrame.to_parquet = counted(pd.DataFrame.to_parquet, 1)


# --- what is on the disk ---------------------------------------------------------------------------------------------

# What differs between two runs of the same thing: times, places in memory, and what knows them.
# (TRL counts `num_tokens` from the resumption on.)
_TIMES = re.compile(
    r"num_tokens$|time|runtime|per_second|date|git_hash|pretty_env|total_flos|stateful_callbacks|_info$"
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d.-]+\d")


def visible(root: Path) -> list[Path]:
    """Final files: not in hidden folders, not hidden themselves, not in a checkpoint that is not whole."""
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        checkpoint = next((i for i, part in enumerate(parts) if part.startswith("checkpoint-")), None)
        if path.is_dir() or any(part.startswith(".") for part in parts):
            continue
        if checkpoint is not None and missing_part(root.joinpath(*parts[: checkpoint + 1])):
            continue
        found.append(path)
    return found


def contents(root: Path) -> dict[str, str]:
    """What the final files hold, without times and places, by name. Raises where one cannot be read."""
    return {_DATE.sub("DATE", str(path.relative_to(root))): content(path, root) for path in visible(root)}


def content(path: Path, root: Path) -> str:
    kind = path.suffix
    if path.name in ("training_args.bin", "checksums.json"):  # of the folder and the time; `visible` has checked both
        return ""
    if kind == ".parquet":
        return pd.read_parquet(path).to_json(orient="split", double_precision=15)
    if kind in (".json", ".jsonl"):
        text = _DATE.sub("DATE", _ADDRESS.sub("", path.read_text(encoding="utf-8").replace(str(root), "ROOT")))
        lines = [text] if kind == ".json" else text.splitlines()
        assert kind == ".json" or text.endswith("\n")
        return json.dumps([_timeless(json.loads(line)) for line in lines], sort_keys=True)
    if kind == ".safetensors":
        return _digest(sorted(safetensors.torch.load_file(path).items()))
    if kind in (".pt", ".pth"):
        return _digest(torch.load(path, weights_only=False))
    if kind == ".npz":
        return _digest(np.load(path)["vectors"])
    if kind == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text(encoding="utf-8").replace(str(root), "ROOT")
    assert not {".svg": not text.endswith("</svg>\n"), ".html": "</html>" not in text}.get(kind, False)
    return text


def broken_checkpoints(root: Path) -> list[str]:
    """Checkpoints that are not whole."""
    return [path.name for path in root.glob("*/checkpoint-*") if missing_part(path)]


def leftovers(root: Path) -> list[str]:
    """Hidden files and folders: temporary ones that nobody has removed."""
    return [str(path.relative_to(root)) for path in root.rglob(".*")]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(entry) for key, entry in value.items() if not _TIMES.search(key)}
    return [_timeless(entry) for entry in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
    """Of nested lists and dicts of tensors and arrays, bit for bit."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(repr((part.dtype, tuple(part.shape))).encode() + part.contiguous().numpy().tobytes())
        elif isinstance(part, np.ndarray):
            digest.update(repr((part.dtype, part.shape)).encode() + part.tobytes())
        elif isinstance(part, dict):
            add(sorted(part.items(), key=lambda item: str(item[0])))
        elif isinstance(part, list | tuple):
            digest.update(f"[{len(part)}".encode())
            for entry in part:
                add(entry)
        else:
            digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()


def run(name: str, world: Path, root: Path, seed: int = 0, **how: Any) -> Ended:
    """A job in a child."""
    if name == "eval":
        keep_task_index()
    return in_child(lambda: JOBS[name](world, root, seed), root, **how)


@lru_cache
def keep_task_index() -> None:
    """Reads the 14,000 YAML files of lm-eval once, for all children."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import TaskIndex

    build = lru_cache(TaskIndex.build)
    TaskIndex.build = staticmethod(lambda paths: build(tuple(map(Path, paths))))
    TaskManager(include_path=str(tasks_path()))


def older_results(name: str, world: Path, base: Path) -> Path | None:
    """What a run with another seed leaves, made once; None for jobs that replace nothing."""
    root = base / f"{file_name(name)}-older"
    if JOBS[name].older and not root.exists():
        ended = run(name, world, root, seed=1)
        assert ended.code == 0, ended.said
    return root if JOBS[name].older else None


def file_name(name: str) -> str:
    """The name of a job as one of files."""
    return re.sub(r"\W", "-", name)


def new_root(name: str, base: Path, older: Path | None = None) -> Path:
    """A folder of its own for a run, with a copy of older results in it."""
    number = sum(1 for _ in base.glob(f"{file_name(name)}-[0-9]*"))
    root = base / f"{file_name(name)}-{number}"
    if older is None:
        root.mkdir()
    else:
        shutil.copytree(older, root)
    return root


# --- a clean process to fork from ------------------------------------------------------------------------------------


class Zygote:
    """A process that has imported everything and has computed nothing, which can be forked without harm."""

    def __init__(self, base: Path) -> None:
        code = "import jobs; jobs.serve()"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "TOKENIZERS_PARALLELISM": "false"}
        self.base = base
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.call("jobs", "prepare", base=str(base))

    def call(self, module: str, function: str, **arguments: Any) -> Any:
        """What `module.function(**arguments)` returns there; AssertionError with its traceback where it raises."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([module, function, arguments]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("zygote "):
                result, error = json.loads(line.removeprefix("zygote "))
                assert error is None, error
                return result
        raise AssertionError("The process to fork from has died.")


def serve() -> None:
    """The other side: one request a line."""
    import statsmodels.api  # noqa: F401

    for line in sys.stdin:
        module, function, arguments = json.loads(line)
        result, error = None, None
        try:
            result = getattr(importlib.import_module(module), function)(**arguments)
        except BaseException:
            error = traceback.format_exc()
        sys.stdout.write(f"zygote {json.dumps([result, error])}\n")
        sys.stdout.flush()


def prepare(base: str) -> None:
    ended = in_child(lambda: make_world(Path(base) / "world") or 0, Path(base) / "world")
    assert ended.code == 0, ended.said
