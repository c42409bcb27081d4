"""Package-level import rules: arrows point down, and importing the package loads neither torch nor trl."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bft_trl"
BASE = {"io", "prompts", "data", "models"}
# What each package or top-level module may import, besides itself and `markdown`.
ALLOWED = {
    **{name: set() for name in ("weighting", "lm_head", "config", "prompts", "io", "markdown")},
    "__init__": {"config", "trainer", "weighting", "lm_head", "models", "data"},
    **{name: {"io", "prompts"} for name in ("data", "models")},
    "training": {"weighting", "config", "io"},
    "model_head": {"lm_head"},
    "trainer": {"training", "model_head", "weighting", "config"},
    "evaluation": BASE,
    "comparison": {"evaluation", *BASE},
    "inspection": {"comparison", "training", "weighting", "config", *BASE},
    "biology": {"comparison", "evaluation", *BASE},
    "study": {"comparison", "evaluation", "config", *BASE},
    "demo": {"evaluation", *BASE},
    "runs": {"demo", "evaluation", "comparison", "trainer", "training", "config", *BASE},
}
ALLOWED["cli"] = {*ALLOWED}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    modules = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = [node.module for node in modules if node.module != "bft_trl"]
    names += [f"bft_trl.{alias.name}" for node in modules if node.module == "bft_trl" for alias in node.names]
    found = {name.split(".")[1] for name in names if name.startswith("bft_trl.") and name.islower()}
    package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert found <= ALLOWED[package] | {package, "markdown"}


def test_import_is_light():
    code = "import sys, bft_trl.prompts; assert not {'torch', 'trl', 'pandas'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
