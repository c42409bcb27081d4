"""Package-level import rules: arrows point down, and scoring needs neither torch nor trl."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bft_trl"
# What each package or top-level module may import, besides itself and `markdown`.
BASE = {"io", "prompts", "data", "models"}
ALLOWED = {
    **{name: set() for name in ("__init__", "weighting", "lm_head", "config", "prompts", "io", "markdown")},
    "data": {"io", "prompts"},
    "models": {"io", "prompts"},
    "training": {"weighting", "config", "io"},
    "trainer": {"training", "lm_head", "weighting", "config"},
    "evaluation": BASE,
    "comparison": {"evaluation", *BASE},
    "inspection": {"comparison", "training", "trainer", "weighting", "config", *BASE},
    "biology": {"comparison", "evaluation", *BASE},
}
ALLOWED["cli"] = {*ALLOWED} - {"cli"}


def imports_of(path: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
        names += [f"bft_trl.{a.name}" for a in node.names] if node.module == "bft_trl" else [node.module or ""]
    return {name.split(".")[1] for name in names if name.startswith("bft_trl.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if package != "__init__":
        assert imports_of(path) <= ALLOWED[package] | {package, "markdown"}


def test_import_is_light():
    code = "import sys, bft_trl, bft_trl.prompts; print([m for m in ('torch', 'trl', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
