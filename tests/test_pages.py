"""Names, questions and answers in our pages are text: whatever they hold, no page has an element of their making."""

import ast
import functools
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from test_comparison import choice_documents, write_lm_eval

from bft_trl import BFTTrainer, markdown
from bft_trl.cli.main import main
from bft_trl.comparison import page as page_module
from bft_trl.comparison.compare import compare
from bft_trl.comparison.drawing import plain
from bft_trl.data.card import data_card
from bft_trl.training.curves import plot_history

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import train

CHROMIUM = shutil.which("chromium")
# Each sets the page's title where it is not escaped. None has a slash, so that files can have these names.
IMAGE = "<img src=x onerror=document.title='ran'>"
DRAWING = "\"'><svg onload=document.title='ran'>"
COMMENT = "--><b onclick=x><img src onerror=document.title='ran'>"
FORMULA = r"$\frac{$ {{7*7}} $x$"
LINK = "[x](javascript:document.title='ran') `y` | ![z](http:z) &lt;b>"
SCRIPT = "<script>document.querySelector('title').textContent = 'ran'</script>"
EVIL = {"run": IMAGE, "base": DRAWING, "task": COMMENT, "metric": FORMULA, "gene": LINK, "set": "_" + IMAGE}
PLAIN = {"run": "run", "base": "base", "task": "task", "metric": "metric", "gene": "gene", "set": "set"}
# What the templates and matplotlib write.
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td"}
PAGE_TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "div", *TABLE_TAGS}
DRAWING_TAGS = {
    *("svg", "metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title"),
    *("defs", "style", "clipPath", "g", "path", "rect", "text", "tspan", "use", "image"),
}
ATTRIBUTES = {
    *(
        "charset",
        "class",
        "clip-path",
        "content",
        "d",
        "height",
        "http-equiv",
        "id",
        "lang",
        "name",
        "rdf:resource",
        "style",
    ),
    *("style", "transform", "type", "version", "viewbox", "width", "x", "y", "xlink:href"),
    *("xmlns", "xmlns:cc", "xmlns:dc", "xmlns:rdf", "xmlns:xlink"),
}


class Structure(HTMLParser):
    """Elements with the names of their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self.values = set(), "", set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.add((tag, frozenset(name for name, _ in attributes)))
        self.values |= {value for name, value in attributes if name in ("href", "src", "xlink:href", "action")}

    def handle_data(self, data):
        self.text += data


def check_structure(page):
    """A page has no element, attribute or address that templates and matplotlib do not write."""
    tags = {tag.rpartition(":")[2] for tag, _ in page.elements}
    assert tags <= PAGE_TAGS | {tag.lower() for tag in DRAWING_TAGS}
    assert {attribute for _, attributes in page.elements for attribute in attributes} <= ATTRIBUTES
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in page.values)


def compared(folder, names):
    """A comparison page; each text that is a name or of lm-eval's files is one of `names`."""
    documents = [document | {"question": names["gene"]} for document in choice_documents(8)]
    settings = {"lm_eval_version": names["gene"], "chat_template_sha": names["set"]}
    base, run = (folder / names[name] for name in ("base", "run"))
    for place, right in ((base, 2), (run, 7)):
        scores = {names["metric"]: np.arange(8) < right, "acc": np.arange(8) < right}
        write_lm_eval(place, {names["task"]: (documents, scores)}, **settings)
    more = {"more": (documents, {"acc": np.arange(8) < 2}), names["set"]: (documents, {"acc": np.arange(8) < 2})}
    write_lm_eval(run, more, date="2026-01-03T03-04-05.6", **settings)
    compare([str(base), str(run)], str(base), folder / "out", n_resamples=99)
    return folder / "out"


def biology(folder, names, command):
    """The page of a downstream task: vectors, genes, gene sets and perturbations have one of `names`."""
    rng = np.random.default_rng(0)
    genes = [f"{names['gene']}{i}" for i in range(60)]
    vectors = [folder / f"{names[name]}.parquet" for name in ("base", "run")]
    for file in vectors:
        values = rng.standard_normal((60, 3)).astype(np.float32)
        pd.DataFrame({"gene": genes, "vector": list(values)}).to_parquet(file)
    pd.DataFrame({"id": ["S1"], "name": [names["set"]], "genes": [genes[:20]]}).to_parquet(folder / "sets.parquet")
    options = ["--vectors", *map(str, vectors), "--out", str(folder / "out"), "--go", str(folder / "sets.parquet")]
    if command == "interactions":
        for part, (low, high) in {"train": (0, 30), "valid": (30, 45), "test": (45, 60)}.items():
            pairs = [(genes[a], genes[b]) for a in range(low, high) for b in range(a + 1, high)][:90]
            table = pd.DataFrame(pairs, columns=["gene_a", "gene_b"])
            table.assign(label=rng.integers(0, 2, len(table))).to_parquet(folder / f"{part}.parquet")
            options += [f"--{part}", str(folder / f"{part}.parquet")]
        options += ["--resamples", "99", "--baseline", names["base"]]
    else:
        guides = np.repeat([names["task"], *genes[:6]], 30)
        cells = anndata.AnnData(
            np.log1p(rng.poisson(4, (len(guides), 12))),
            obs=pd.DataFrame({"guide": guides}, index=[f"c{i}" for i in range(len(guides))]),
            var=pd.DataFrame(index=genes[:12]),
        )
        cells.write_h5ad(folder / "cells.h5ad")
        options += ["--data", str(folder / "cells.h5ad"), "--perturbation-column", "guide"]
        options += [f"--control={names['task']}", "--baseline", names["base"]]
    assert main([command, *options]) == 0
    return folder / "out"


# The fits behind the other two take ten seconds; test_biology_report.py looks at their pages too, with tamer names.
PAGES = ("comparison", *(pytest.param(name, marks=pytest.mark.long) for name in ("interactions", "perturbation")))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a page, made with evil names when it is first asked for."""

    @functools.cache
    def folder(name):
        new = tmp_path_factory.mktemp(name)
        return compared(new, EVIL) if name == "comparison" else biology(new, EVIL, name)

    return folder


@pytest.mark.parametrize("name", PAGES)
def test_names_make_no_element(made, name):
    evil = Structure((made(name) / "index.html").read_text())
    check_structure(evil)
    # They are there as what they are, in the tables and in the drawings.
    shown = [EVIL["run"], EVIL["base"]]
    shown += [EVIL["task"], EVIL["metric"]] if name == "comparison" else []
    assert all(evil.text.count(text) >= 2 for text in shown)
    if name == "comparison":
        assert EVIL["set"] in evil.text
    else:
        assert f"In red: {plain(EVIL['set']).strip()}"[:40] in " ".join(evil.text.split())


@pytest.mark.parametrize("name", PAGES)
def test_drawings_are_whole_and_hold_no_markup(made, name):
    for drawing in made(name).glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(drawing).iter()}
        assert tags <= DRAWING_TAGS, drawing


@pytest.mark.parametrize("name", PAGES)
def test_names_make_no_markdown(made, name):
    """By an independent renderer: no link, image, HTML or code of theirs, and every row of a table has its cells."""
    evil = rendered((made(name) / "comparison.md").read_text())
    assert {tag for tag, _ in evil.elements} <= {"h1", "h2", "p", "ul", "li", *TABLE_TAGS}
    assert {attribute for _, attributes in evil.elements for attribute in attributes} == set()
    assert all(text in evil.text for text in (EVIL["run"], EVIL["base"]))


def rendered(text):
    from markdown_it import MarkdownIt

    return Structure(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


@pytest.mark.parametrize("value", [*EVIL.values(), "a\nb", "``", "`", "", "\\", "\\|", "a\\`b", "&amp;", "x\r\n# y"])
def test_markdown_says_what_the_text_says(value):
    line = " ".join(value.splitlines())
    for shown in (rendered(f"x{markdown.text(value)}"), rendered(f"| h |\n|---|\n| x{markdown.text(value)} |")):
        assert {tag for tag, _ in shown.elements} <= {"p", "table", "thead", "tbody", "tr", "th", "td"}
        assert f"x{line}".strip() in shown.text
    assert rendered(markdown.code(value)).elements == {("p", frozenset()), ("code", frozenset())}
    assert line.strip() in rendered(markdown.code(value)).text
    block = rendered(markdown.code_block(f"a\n{value}\nb"))
    assert {tag for tag, _ in block.elements} == {"pre", "code"}


def test_a_block_of_code_cannot_be_closed_from_inside():
    block = rendered(markdown.code_block(f"a\n```\n{IMAGE}\n```\nb"))
    assert {tag for tag, _ in block.elements} == {"pre", "code"}
    assert IMAGE in block.text


def test_the_model_card(tmp_path):
    """The folder of the run, the folder of the base and the data's name are theirs who made them."""
    shown = {}
    for kind, names in (("evil", EVIL), ("plain", PLAIN)):
        folder = tmp_path / kind / (names["run"] + ('"); print("ran")#`' if kind == "evil" else ""))
        args = build_config(folder)
        model = build_model()
        base = tmp_path / f"base of {names['gene']}"
        base.mkdir()
        model.config._name_or_path = str(base)
        trainer = BFTTrainer(model, args, None, Dataset.from_list(sample_rows(4)), processing_class=build_tokenizer())
        trainer.create_model_card(model_name=folder.name, dataset_name=names["gene"])
        card = (folder / "README.md").read_text()
        shown[kind] = rendered(card.split("---\n", 2)[2])
        (line,) = [line for line in card.splitlines() if line.startswith("generator = ")]
        (call,) = [node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call)]
        assert {option.arg: option.value.value for option in call.keywords} == {
            "model": folder.name,
            "device_map": "auto",
        }
    assert shown["evil"].elements <= shown["plain"].elements
    assert not any(value.startswith("javascript") for value in shown["evil"].values)


def test_what_an_example_writes_of_the_models_answers(tmp_path, capsys):
    trainer = SimpleNamespace(
        args=build_config(tmp_path), state=SimpleNamespace(log_history=[], global_step=3), _name="BFT"
    )
    (tmp_path / "README.md").write_text("# Card\n")
    bell = "\x1b]0;ran\x07"
    names = [{"reference": EVIL["run"], "before": EVIL["gene"], "after": f"{EVIL['task']}{bell}"}]
    train.report(trainer, train.ExampleArguments(dataset_name=EVIL["metric"]), EVIL["base"], 1.0, names)
    card = rendered((tmp_path / "README.md").read_text())
    assert {tag for tag, _ in card.elements} == {"h1", "h2", "p", "img", *TABLE_TAGS}
    assert card.values == {"training.png"}
    assert all(EVIL[name] in card.text for name in ("run", "gene", "task", "base"))
    assert bell not in (tmp_path / "README.md").read_text() + capsys.readouterr().out
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_data_card(tmp_path):
    shown = {}
    for kind, names in (("evil", EVIL), ("plain", PLAIN)):
        folder = tmp_path / kind
        folder.mkdir()
        file = folder / f"{names['run']}`|`.parquet"
        pd.DataFrame({"a": [1]}).to_parquet(file)
        card = data_card(
            {file: pd.DataFrame({"a": [1]})},
            title="Title",
            description="What it is.",
            excluded=[(names["base"], 3), (names["gene"], 3)],
            attribution=["ours"],
            inputs=[file],
            command=f"bft-trl data 'a\n```\n{names['run']}'",
        )
        shown[kind] = rendered(card)
    assert shown["evil"].elements <= shown["plain"].elements
    assert EVIL["base"] in shown["evil"].text


@pytest.mark.parametrize("name", ["$", "$$", "$x$", r"$\frac{$", r"\$x$", r"a\$b", "_x", "x\0y\x1b", "a\nb", "\ud800"])
def test_names_in_plots_neither_break_nor_vanish(tmp_path, name):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure()
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], label=plain(name))
    assert len(axis.legend().get_texts()) == 1
    axis.set_title(plain(name))
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(tmp_path / "plot.svg")
        figure.savefig(tmp_path / "plot.png")
    expected = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    assert Structure((tmp_path / "plot.svg").read_text()).text.count(expected) >= 2
    plot_history(pd.DataFrame({"step": [1], "nll": [1.0]}), tmp_path / "history.png", title=name)


# --- in a browser ----------------------------------------------------------------------------------------------------


def opened(file, profile):
    """The document as a browser has it once all that can run has run."""
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *("--no-first-run", f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom"),
            Path(file).resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def without_policy(file, copy):
    """The page without the policy that forbids scripts: then escaping alone stands between a name and the browser."""
    page, count = re.subn('<meta http-equiv="Content-Security-Policy".*?>', "", file.read_text())
    assert count == 1
    copy.write_text(page)
    return copy


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open pages in")
@pytest.mark.parametrize("name", PAGES)
def test_nothing_runs_in_a_browser(made, tmp_path, monkeypatch, name):
    document = opened(without_policy(made(name) / "index.html", tmp_path / "open.html"), tmp_path / "profile")
    assert "</h1>" in document
    assert "<title>ran</title>" not in document
    assert "<title>Comparison with" in document
    # The same page without escaping does run: the browser would have shown it.
    environment = page_module._environment
    monkeypatch.setattr(page_module, "_environment", lambda *, autoescape: environment(autoescape=False))
    page = compared(tmp_path, PLAIN | {"run": EVIL["run"]}) / "index.html"
    assert "<title>ran</title>" not in opened(page, tmp_path / "profile")  # the policy is a second lock
    assert "<title>ran</title>" in opened(without_policy(page, tmp_path / "open.html"), tmp_path / "profile")


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open drawings in")
@pytest.mark.parametrize("name", PAGES)
def test_nothing_runs_in_a_drawing(made, tmp_path, name):
    for drawing in made(name).glob("*.svg"):
        document = opened(drawing, tmp_path / "profile")
        assert "</svg>" in document
        assert "<title>ran" not in document, drawing
    planted = tmp_path / "planted.svg"
    planted.write_text(f'<svg xmlns="http://www.w3.org/2000/svg"><title>x</title>{SCRIPT}</svg>')
    assert "<title>ran" in opened(planted, tmp_path / "profile")
