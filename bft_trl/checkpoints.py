"""Which checkpoint of a run is whole, and whether a run may go on from it or write beside it."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bft_trl.data.tables import read_json_object

WEIGHT_FILES = (
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.bin",
    "pytorch_model.bin",
)


def missing_part(folder: Path) -> str | None:
    """What a checkpoint folder lacks to be resumed from, or None for a complete one.

    transformers writes weights, optimizer, scheduler and random state in place and trainer_state.json last, so a save
    that was cut short has no (whole) trainer_state.json.
    """
    if not folder.is_dir():
        return "it is no folder"
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it has no trainer_state.json, which is written last"
    except (ValueError, RecursionError):
        return "its trainer_state.json is cut short"
    # FSDP and DeepSpeed keep weights and optimizer in folders of their own.
    sharded = any(folder.glob("global_step*")) or any(folder.glob("*_0"))
    # PEFT keeps an adapter with a name of its own in a folder of that name.
    if not sharded and not any(found.is_file() for name in WEIGHT_FILES for found in folder.glob(f"**/{name}")):
        return "it has no model weights"
    if not sharded and not (folder / "optimizer.pt").is_file():
        return "it has no optimizer.pt"
    return None


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
