"""Which checkpoint of a run is whole, and files that are written whole or not at all."""

import json
import os
import re
from pathlib import Path

WEIGHT_FILES = (
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.bin",
    "pytorch_model.bin",
)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    except ValueError:
        return "its trainer_state.json is cut short"
    # FSDP and DeepSpeed keep weights and optimizer in folders of their own.
    sharded = any(folder.glob("global_step*")) or any(folder.glob("*_0"))
    if not sharded and not any((folder / name).is_file() for name in WEIGHT_FILES):
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
