"""The checkpoint that a run resumes from, and the files that bft_trl adds to each save."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from bft_trl.io import checkpoints, last_complete_checkpoint, missing_part, read_json_object, write_text

logger = get_logger(__name__)


def resolve_checkpoint(resume: str | bool | None, output_dir: Path, objective: Mapping[str, Any]) -> str | None:
    """Returns the checkpoint to resume from; for True the last complete one in `output_dir`.

    Raises ValueError if it is incomplete or was trained with another objective.
    """
    if not resume:
        if checkpoints(output_dir):
            logger.warning(
                "`output_dir=%r` has checkpoints of an earlier run, and `resume_from_checkpoint=True` takes the "
                "highest step of both. Remove them, or choose another folder.",
                str(output_dir),
            )
        return None
    if resume is True:
        folder, skipped = last_complete_checkpoint(output_dir)
        for path, missing in skipped.items():
            logger.warning("Skipped the incomplete checkpoint %s: %s.", path, missing)
        logger.warning("Resuming from %s.", folder)
    else:
        folder = Path(resume)
        if reason := missing_part(folder):
            raise ValueError(
                f"`resume_from_checkpoint={resume!r}` is not a complete checkpoint: {reason}. Name a folder "
                "'checkpoint-<step>' of the run, or pass True for the last complete one."
            )
    if changed := changed_objective(folder, objective):
        raise ValueError(
            f"{folder} was trained with another objective: {changed}. Set the same values to resume from it, or start "
            "again in another `output_dir`."
        )
    return str(folder)


def changed_objective(folder: Path, objective: Mapping[str, Any]) -> str:
    """Returns what differs from the objective in `folder`; "" if nothing does, or for a folder of plain TRL."""
    file = folder / "objective.json"
    if not file.is_file():
        return ""
    before = read_json_object(file)
    # Under the other objectives the other fields have no effect.
    bft = objective["loss_type"] == before.get("loss_type") == "bft"
    names = objective if bft else ["loss_type", "token_weight_power", "anchor_coef"]
    changed = [name for name in names if before.get(name) != objective[name]]
    return "; ".join(f"{name} was {before.get(name)!r}, is {objective[name]!r}" for name in changed)


def write_run_files(folder: Path, objective: Mapping[str, Any], model: Any) -> None:
    """Writes objective.json and base_model.json, which says how the base model was quantized (PEFT does not)."""
    quantization: Any = getattr(model.config, "quantization_config", None)
    if hasattr(quantization, "to_dict"):
        quantization = quantization.to_dict()
    write_text(folder / "objective.json", json.dumps(objective, indent=2) + "\n")
    write_text(folder / "base_model.json", json.dumps({"quantization": quantization}, indent=2, default=str) + "\n")
