"""Which checkpoint of a run is whole, and whether a run may go on from it or write beside it."""

import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bft_trl.data.tables import read_json_object
from bft_trl.io import CHECKSUMS, changed_file, record_checksums

WEIGHT_FILES = (
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.bin",
    "pytorch_model.bin",
)


def missing_part(folder: Path) -> str | None:
    """What a checkpoint folder lacks to be resumed from, or what of it is damaged; None for a whole one.

    transformers writes weights, optimizer, scheduler and random state in place and trainer_state.json last, so a save
    that was cut short has no (whole) trainer_state.json. Every file is read once.
    """
    if not folder.is_dir():
        return "it is no folder"
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it has no trainer_state.json, which is written last"
    except (ValueError, RecursionError):
        return "its trainer_state.json is cut short"
    if not isinstance(state, dict):
        return "its trainer_state.json holds no object"
    # FSDP and DeepSpeed keep weights and optimizer in folders of their own.
    sharded = any(folder.glob("global_step*")) or any(folder.glob("*_0"))
    # PEFT keeps an adapter with a name of its own in a folder of that name.
    if not sharded and not any(found.is_file() for name in WEIGHT_FILES for found in folder.glob(f"**/{name}")):
        return "it has no model weights"
    if not sharded and not (folder / "optimizer.pt").is_file():
        return "it has no optimizer.pt"
    return _damaged_part(folder)


def _damaged_part(folder: Path) -> str | None:
    """Which file of a checkpoint is cut short or changed. Folders of FSDP and DeepSpeed are not looked into."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
        if not _is_whole_safetensors(path):
            return f"its {path.relative_to(folder)} is cut short or damaged"
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("*.bin")]):
        if not _is_whole_zip(path):
            return f"its {path.name} is cut short or damaged"
    # A checkpoint of plain TRL has none, nor has one of a run that was killed just before.
    changed = changed_file(folder) if (folder / CHECKSUMS).is_file() else None
    return f"its {changed} is not what was written (CRC-32)" if changed else None


def _is_whole_safetensors(path: Path) -> bool:
    """Whether the header is one and the file as long as it says. The format has no checksum of the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return False
    return max(ends, default=0) == size - 8 - length


def _is_whole_zip(path: Path) -> bool:
    """Whether every entry of what torch.save has written, which is a zip file, has its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError, zlib.error):
        return False


def write_checksums(folder: Path) -> None:
    """Records the checksums of a checkpoint's weights and state, which a flipped bit could change unseen.

    What torch.save writes has its own. The weights are read back once: seconds for 10 GB, beside an optimizer state
    that is twice as large to write.
    """
    paths = [folder / "trainer_state.json", *folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]
    record_checksums(folder, [path for path in paths if path.is_file()])


@contextmanager
def saving_into(folder: Path, *, resumable: bool) -> Iterator[None]:
    """Names the folder where a save fails: the messages of safetensors and torch do not.

    Args:
        folder: what is being saved.
        resumable: whether it is a checkpoint, beside which older ones may lie.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch.save has no error of its own; others of the model pass through.
        if type(error) is RuntimeError and not re.search(
            "PytorchStreamWriter|inline_container|iostream|open file", str(error)
        ):
            raise
        way_out = " Older checkpoints are untouched: `resume_from_checkpoint=True` goes on from one." * resumable
        raise OSError(
            f"{folder} cannot be written: {' '.join(str(error).split())[:300]}. Make room, or name another "
            f"`output_dir`.{way_out}"
        ) from error


def check_checkpoint(folder: Path) -> None:
    """Raises ValueError for a folder that training cannot resume from."""
    reason = missing_part(folder)
    if reason:
        raise ValueError(
            f"`resume_from_checkpoint={str(folder)!r}` is not a complete checkpoint: {reason}. Name a folder "
            "'checkpoint-<step>' of the run, or pass True for the last complete one."
        )


def last_complete_checkpoint(output_dir: Path) -> tuple[str, list[tuple[str, str]]]:
    """The complete checkpoint with the highest step, and the newer incomplete ones with what each lacks.

    Raises ValueError where there is none.
    """
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*")]
    skipped: list[tuple[str, str]] = []
    for _, path in sorted(((int(match[1]), path) for match, path in numbered if match), reverse=True):
        reason = missing_part(path)
        if reason is None:
            return str(path), skipped
        skipped.append((str(path), reason))
    raise ValueError(
        f"`resume_from_checkpoint=True`, but `output_dir={str(output_dir)!r}` holds no complete checkpoint"
        + "".join(f"; {folder}: {reason}" for folder, reason in skipped)
        + ". Start without `resume_from_checkpoint`, or name the right `output_dir`."
    )


def check_same_objective(folder: Path, objective: Mapping[str, Any]) -> None:
    """Raises ValueError where a checkpoint was trained with another objective than the run that goes on from it."""
    file = folder / "objective.json"
    if not file.is_file():  # a checkpoint of plain TRL
        return
    before = read_json_object(file)
    # Under "nll" and "dft" the other fields have no effect.
    names = objective if objective["loss_type"] == before.get("loss_type") == "bft" else ["loss_type"]
    changed = [
        f"{name} was {before.get(name)!r}, is {objective[name]!r}"
        for name in names
        if before.get(name) != objective[name]
    ]
    if changed:
        raise ValueError(
            f"{folder} was trained with another objective: {'; '.join(changed)}. Set the same values to go on "
            "from it, or start anew in another `output_dir`."
        )


def check_output_dir(folder: Path) -> None:
    """Raises ValueError where a run could not write, before it has trained."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"`output_dir={str(folder)!r}`: {existing} is a file. Name a folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"`output_dir={str(folder)!r}`: {existing} is not writable. Name another folder.")
