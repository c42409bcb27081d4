"""Arrows point down only, and importing the package costs next to nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bft_trl"
# What each module may import of ours, at most.
ALLOWED = {
    "weighting": set(),
    "lm_head": set(),
    "prompts": set(),
    "atomic": set(),
    "checkpoints": {"atomic", "data.tables"},
    "markdown": set(),
    "model_card": {"markdown"},
    "config": set(),
    "demo_model": {"atomic"},
    "report.curves": {"atomic", "report.drawing"},
    "report.run_page": {"atomic", "metrics", "report.curves", "report.drawing", "report.templates"},
    "metrics": {"weighting"},
    "warner": {"config", "metrics"},
    "dataset_checks": {"config"},
    "refusals": {"config"},
    "batch": {"weighting"},
    "rows": {"config"},
    "sample_log": {"atomic", "metrics", "rows"},
    "trainer": {
        "atomic",
        "batch",
        "checkpoints",
        "config",
        "dataset_checks",
        "lm_head",
        "markdown",
        "metrics",
        "model_card",
        "refusals",
        "report.run_page",
        "rows",
        "sample_log",
        "warner",
        "weighting",
    },
    "data.loading": {"prompts"},
    "data.lines": set(),
    "data.tables": {"atomic", "data.lines"},
    "data.splits": set(),
    "data.card": {"atomic", "data.tables", "markdown"},
    "data.bioconductor": {"data.tables"},
    "data.gene_ontology": {"data.lines", "data.tables"},
    "data.sources": {"data.bioconductor", "data.gene_ontology", "data.tables", "markdown"},
    "data.leakage": set(),
    "data.gene_sets": {
        *("atomic", "data.card", "data.leakage", "data.sources", "data.splits", "data.tables", "prompts"),
    },
    "data.download": {"atomic", "data.tables"},
    "data.evaluation_sets": {"data.download", "data.lines", "data.tables"},
    "data.medical": {"data.download", "data.tables", "prompts"},
    "data.documents": {"data.medical", "data.tables"},
    "data.check": {
        *("atomic", "data.documents", "data.evaluation_sets", "data.leakage", "data.medical", "data.tables"),
    },
    "data.medical_training": {
        *("atomic", "data.card", "data.documents", "data.leakage", "data.medical", "data.splits", "data.tables"),
    },
    "data.commands": {"data", "data.check", "data.gene_sets", "data.medical_training"},
    "scoring": set(),
    "scoring.rouge": set(),
    "scoring.similarity": set(),
    "scoring.multiple_choice": {"prompts"},
    "scoring.floors": set(),
    "scoring.names": {"prompts", "scoring.rouge", "scoring.similarity"},
    "encoders": {"atomic", "run_folder"},
    "recorded": {"atomic", "data.evaluation_sets", "data.tables", "encoders", "scoring.floors", "scoring.names"},
    "run_folder": {"data.tables"},
    "evaluation": {"atomic", "data.evaluation_sets", "data.tables", "encoders", "run_folder"},
    "forgetting": {"atomic", "evaluation", "report.comparison", "run_folder"},
    "report.statistics": set(),
    "report.published": set(),
    "report.runs": {"data.tables", "scoring.names"},
    "report.floors": {
        *("data.evaluation_sets", "encoders", "report.runs", "scoring.floors", "scoring.names"),
    },
    "report.drawing": set(),
    "report.templates": {"markdown"},
    "report.forest": {"report.drawing", "report.statistics"},
    "report.page": {"report.forest", "report.statistics", "report.templates"},
    "report.comparison": {
        *("atomic", "report.floors", "report.forest", "report.page", "report.published", "report.runs"),
        "report.statistics",
    },
    "report.biology": {"report.drawing"},
    "report.inspection": {"report.drawing", "report.templates"},
    "report.hard_samples": {"report.drawing", "report.templates"},
    "samples": set(),
    "samples.hard_samples": {"atomic", "report.hard_samples", "sample_log"},
    "samples.windows": set(),
    "samples.advice": set(),
    "samples.inspection": {
        *("atomic", "config", "dataset_checks", "report.inspection", "rows", "run_folder", "samples.advice"),
        *("samples.windows", "trainer", "weighting"),
    },
    "samples.commands": {
        "config",
        *("data.gene_sets", "data.loading", "data.tables", "demo_model", "report.inspection", "run_folder"),
        *("samples.hard_samples", "samples.inspection"),
    },
    "embeddings": set(),
    "embeddings.genes": {"data.lines", "data.tables"},
    "embeddings.profiles": {"atomic", "data.tables", "embeddings.genes", "prompts", "run_folder"},
    "embeddings.vectors": {
        *("atomic", "data.tables", "embeddings.cells", "embeddings.profiles", "encoders", "run_folder"),
    },
    "embeddings.controls": {"embeddings.vectors", "encoders"},
    "embeddings.pairs": {"data.tables", "embeddings.genes"},
    "embeddings.classifiers": set(),
    "embeddings.ranking": set(),
    "embeddings.interactions": {
        *("atomic", "data.gene_sets", "data.tables", "embeddings", "embeddings.classifiers", "embeddings.controls"),
        *("embeddings.pairs", "embeddings.vectors"),
    },
    "embeddings.cells": {"data.tables"},
    "embeddings.metrics": set(),
    "embeddings.predictors": set(),
    "embeddings.perturbation": {
        *("atomic", "embeddings", "embeddings.cells", "embeddings.predictors", "embeddings.vectors"),
    },
    "embeddings.results": {
        *("atomic", "data.tables", "embeddings", "report", "report.forest", "report.page", "report.statistics"),
    },
    "embeddings.commands": {
        *("data.gene_sets", "data.tables", "embeddings", "embeddings.cells", "embeddings.genes", "encoders"),
        *("embeddings.interactions", "embeddings.perturbation", "embeddings.profiles", "embeddings.results"),
        *("embeddings.vectors", "run_folder"),
    },
    "cli": {
        *("data.commands", "embeddings.commands", "evaluation", "forgetting", "recorded", "report.comparison"),
        *("atomic", "run_folder", "samples.commands"),
    },
    "": {"config", "trainer", "data.gene_sets"},
    "data": set(),
    "report": set(),
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # "from bft_trl import trainer" names a module after the import
            whole = node.module == "bft_trl"
            names += [f"bft_trl.{alias.name}" for alias in node.names] if whole else [node.module or ""]
        found |= {name.removeprefix("bft_trl.") for name in names if name.startswith("bft_trl.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_arrows_point_down(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    assert imports_of(path) <= ALLOWED[module]


def test_import_is_light():
    """Neither torch nor trl nor pandas is loaded before a name is used: that is what keeps it under half a second."""
    code = "import sys, bft_trl, bft_trl.prompts; print([m for m in ('torch', 'trl', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_unknown_name():
    import bft_trl

    with pytest.raises(AttributeError, match="BFTtrainer"):
        _ = bft_trl.BFTtrainer
