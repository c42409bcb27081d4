"""The section of the model card about the objective: settings, source, differences from the reference code."""

import json
from pathlib import Path
from typing import Any

from bft_trl import markdown
from bft_trl.io import write_text

CARD_NAMES = {"bft": "BFT", "dft": "DFT", "nll": "SFT"}
PAPERS: dict[str, dict[str, str]] = {
    "nll": {},
    "dft": {
        "title": "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
        "id": "2508.05629",
    },
    "bft": {
        "title": "Aligning LLMs with Biomedical Knowledge using Balanced Fine-Tuning",
        "id": "2511.21075",
        "citation": (
            "@article{bft2025,\n"
            "  title   = {{Aligning LLMs with Biomedical Knowledge using Balanced Fine-Tuning}},\n"
            "  journal = {arXiv preprint arXiv:2511.21075},\n"
            "  year    = {2025}\n"
            "}"
        ),
    },
}

_DIFFERENCES = """\
Differences from the authors' v1 code (TencentAILabHealthcare/BFT): the mean is taken over the samples of the whole
optimizer step instead of each micro-batch, so gradient accumulation does not change the loss; a document in a packed
row is a sample of its own; a sample without supervised tokens counts nowhere; weights are computed from per-token
log-probabilities in float32 without full logits.
"""


def complete_card(output_dir: Path, model_name_or_path: str, objective: dict[str, Any]) -> None:
    """Adds the objective to the model card that TRL wrote, and the names that TRL leaves out for local folders."""
    path, base = output_dir / "README.md", markdown.code(Path(model_name_or_path).name)
    card = path.read_text(encoding="utf-8").replace("[None](https://huggingface.co/None)", base)
    card = card.replace('model="None"', f"model={json.dumps(output_dir.absolute().name)}")
    write_text(path, f"{card.rstrip()}\n\n{objective_section(objective)}")


def objective_section(objective: dict[str, Any]) -> str:
    """Returns a Markdown section with the objective's settings; "nll" and "dft" have no other setting."""
    if objective["loss_type"] != "bft":
        return f"## Objective\n\n`loss_type={objective['loss_type']!r}`, trained with bft-trl as a baseline for BFT.\n"
    rows = "\n".join(f"| `{name}` | `{value!r}` |" for name, value in objective.items())
    return f"## Objective\n\n| setting | value |\n|---|---|\n{rows}\n\n{_DIFFERENCES}"
