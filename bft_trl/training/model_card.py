"""The model card: the objective, its source and differences from the reference code, and the results of a run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from bft_trl import markdown
from bft_trl.io import write_text

CARD_NAMES = {"bft": "BFT", "dft": "DFT", "eaft": "EAFT", "nll": "SFT"}
PAPERS: dict[str, dict[str, str]] = {
    "nll": {},
    "eaft": {},
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

# The demo converts this model from a GGUF file into a local folder "<name>-<version>".
DEMO_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION = "Which biological process do the human genes MLH1, MSH2, MSH6 and PMS2 carry out together?"

_DIFFERENCES = """\
Differences from the authors' v1 code (TencentAILabHealthcare/BFT): the mean is taken over the samples of the whole
optimizer step instead of each micro-batch, so gradient accumulation does not change the loss; a document in a packed
row is a sample of its own; a sample without supervised tokens is ignored; weights are computed from per-token
log-probabilities in float32 without full logits.
"""


def complete_card(output_dir: Path, model_name_or_path: str, objective: dict[str, Any]) -> None:
    """Completes the model card that TRL wrote: base model, names, an example prompt of the field, and the objective.

    Of a local model or data set the card has the name only, without a link and without the path.
    """
    path = output_dir / "README.md"
    card = ModelCard.load(path)
    base, name, dataset = hub_id(model_name_or_path), output_dir.absolute().name, card.data.get("datasets")
    replaced = {
        "Model Card for None": f"Model Card for {markdown.text(name)}",
        'model="None"': f"model={json.dumps(name)}",
    }
    replaced[_link(None)] = _link(base) if base else markdown.code(Path(model_name_or_path).name)
    if isinstance(dataset, str) and Path(dataset).exists():
        replaced[_link(dataset, "datasets/")] = markdown.code(Path(dataset).name)
        card.data.datasets = None
    for old, new in replaced.items():
        card.text = card.text.replace(old, new)
    question = f"question = {json.dumps(QUESTION)}"
    card.text = re.sub(r'^question = ".*"$', lambda _: question, card.text, flags=re.MULTILINE)
    card.text = f"{card.text.rstrip()}\n\n{objective_section(objective)}"
    card.data.base_model, card.data.model_name = base, card.data.model_name or name
    write_text(path, card.content)


def _link(name: str | None, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})"


def hub_id(model_name_or_path: str) -> str | None:
    """Returns the Hub id of a base model. Of local folders only the demo's model has one."""
    folder = Path(model_name_or_path)
    if not folder.is_dir():
        return model_name_or_path
    return DEMO_MODEL if folder.name.startswith(f"{DEMO_MODEL.split('/')[1]}-") else None


def objective_section(objective: dict[str, Any]) -> str:
    """Returns a Markdown section with the objective's settings, of which most act under "bft" only."""
    if objective["loss_type"] != "bft":
        changed = {"loss_type": objective["loss_type"]}
        changed |= {name: objective[name] for name in ("token_weight_power", "anchor_coef") if name in objective}
        settings = ", ".join(f"`{name}={value!r}`" for name, value in changed.items())
        return f"## Objective\n\n{settings}, trained with bft-trl as a baseline for BFT.\n"
    rows = "\n".join(f"| `{name}` | `{value!r}` |" for name, value in objective.items())
    return f"## Objective\n\n| setting | value |\n|---|---|\n{rows}\n\n{_DIFFERENCES}"


def add_results(output_dir: Path, summary: Mapping[str, Any]) -> str:
    """Adds the results of a run, the content of summary.json, to its model card. Returns them in Markdown."""
    model, before, after = (summary[name] for name in ("model", "eval_nll_before", "eval_nll_after"))
    lines = [f"Base model: {markdown.text(Path(model).name if Path(model).is_dir() else model)}."]
    if before is not None and after is not None:
        kept = f"step {summary['kept_step']} of {summary['steps']}"
        lines.append(f"Held-out nll: {before:.3f} before training, {after:.3f} with the saved adapter ({kept}).")
    lines.append(f"Training with its evaluations took {summary['seconds'] / 60:.1f} minutes.")
    if summary["peak_memory"]:
        peak = [f"{value:.1f} GiB ({name.removesuffix('_gib')})" for name, value in summary["peak_memory"].items()]
        lines.append(f"Peak memory: {' and '.join(peak)}.")
    if summary["names"]:
        lines += ["", "Names of held-out gene sets:", "", "| reference | before | after |", "|---|---|---|"]
        lines += [f"| {' | '.join(markdown.text(name) for name in row.values())} |" for row in summary["names"]]
    path, results = output_dir / "README.md", "\n".join(lines)
    card = path.read_text(encoding="utf-8").rstrip()
    write_text(path, f"{card}\n\n## This run\n\n{results}\n\n![curves](training.png)\n")
    return results
