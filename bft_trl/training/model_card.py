"""What the model card says of the objective: settings, source, and where it differs from the reference code."""

import json
from typing import Any

from bft_trl import markdown

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


def complete_card(card: str, *, base: str, folder: str) -> str:
    """TRL's card without the "None" that it writes for a base model or a run in a local folder."""
    return card.replace("[None](https://huggingface.co/None)", markdown.code(base)).replace(
        'model="None"', f"model={json.dumps(folder)}"
    )


def objective_section(objective: dict[str, Any]) -> str:
    """A Markdown section with the objective's settings; under "nll" and "dft" only the loss type has a meaning."""
    if objective["loss_type"] != "bft":
        return f"## Objective\n\n`loss_type={objective['loss_type']!r}`, trained with bft-trl as a baseline for BFT.\n"
    rows = "\n".join(f"| `{name}` | `{value!r}` |" for name, value in objective.items())
    return f"## Objective\n\n| setting | value |\n|---|---|\n{rows}\n\n{_DIFFERENCES}"
