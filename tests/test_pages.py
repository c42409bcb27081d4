"""Names, questions and answers on a page are text: they add no element, attribute, link or Markdown."""

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from test_comparison import choice_documents, write_lm_eval

from bft_trl import markdown
from bft_trl.comparison.compare import compare
from bft_trl.comparison.drawing import plain
from bft_trl.comparison.page import html_page
from bft_trl.data.card import data_card

# Each sets the page's title if it is not escaped. None has a slash, so that files can have these names.
IMAGE = "<img src=x onerror=document.title='ran'>"
DRAWING = "\"'><svg onload=document.title='ran'>"
COMMENT = "--><b onclick=x><img src onerror=document.title='ran'>"
FORMULA = r"$\frac{$ {{7*7}} $x$"
LINK = "[x](javascript:document.title='ran') `y` | ![z](http:z) &lt;b>"
EVIL = {"run": IMAGE, "base": DRAWING, "task": COMMENT, "metric": FORMULA, "gene": LINK, "set": "_" + IMAGE}
PLAIN = {"run": "run", "base": "base", "task": "task", "metric": "metric", "gene": "gene", "set": "set"}
# What the templates and matplotlib write.
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td"}
PAGE_TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "div", "span", *TABLE_TAGS}
PAGE_TAGS |= {"h3", "label", "select", "option", "output", "button", "script"}
DRAWING_TAGS = {
    *("svg", "metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title"),
    *("defs", "style", "clipPath", "g", "path", "rect", "text", "tspan", "use", "image"),
}
ATTRIBUTES = {
    *(
        "charset",
        "class",
        "data-task",
        "hidden",
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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a comparison with evil names."""
    return compared(tmp_path_factory.mktemp("comparison"), EVIL)


def test_names_make_no_element(made):
    evil = Structure((made / "index.html").read_text())
    check_structure(evil)
    # They are shown as they are, in the tables and in the drawings.
    assert all(evil.text.count(EVIL[name]) >= 2 for name in ("run", "base", "task", "metric"))
    assert EVIL["set"] in evil.text


def test_every_part_of_the_page_is_escaped():
    """The page of a biology task has further plots, pairwise tests and controls."""
    test = {"metric": EVIL["metric"], "difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.01, "p_holm": 0.02}
    row = test | {"task": EVIL["task"], "run": EVIL["run"], "n": 3, "score": 0.1, "baseline_score": 0.2}
    row |= {
        "n_seeds": 1,
        "seed_sd": None,
        "baseline_n_seeds": 1,
        "baseline_seed_sd": None,
        "smallest_difference": None,
    }
    control = {"task": EVIL["task"], "metric": EVIL["metric"], "name": EVIL["gene"], "kind": "control", "value": 1.0}
    result = {
        "over": "genes",
        "baseline": EVIL["base"],
        "seed": 0,
        "n_resamples": 9,
        "rows": [row],
        "tasks": {EVIL["task"]: {"n": 3, "settings": {EVIL["set"]: EVIL["gene"]}}},
        "reference_rows": [control | {"spread": None, "source": EVIL["set"]}],
        "not_compared": {EVIL["run"]: [EVIL["task"]]},
        "pairwise": [test | {"name": EVIL["run"], "against": EVIL["gene"]}],
        "n_pairwise": 1,
    }
    asked = {"id": EVIL["gene"], "asked": EVIL["set"], "reference": EVIL["run"], "answers": [EVIL["task"]]}
    documents = {
        "task": EVIL["task"],
        "runs": [EVIL["base"]],
        "metrics": ["acc"],
        "documents": [asked | {"scores": [[1]]}],
    }
    page = Structure(html_page(result, "", documents=[documents]))
    check_structure(page)
    assert all(page.text.count(text) >= 1 for text in EVIL.values())


def test_drawings_have_no_markup(made):
    for drawing in made.glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(drawing).iter()}
        assert tags <= DRAWING_TAGS, drawing


def rendered(text):
    from markdown_it import MarkdownIt

    return Structure(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


@pytest.mark.parametrize("value", [*EVIL.values(), "a\nb", "``", "`", "", "\\", "\\|", "a\\`b", "&amp;", "x\r\n# y"])
def test_markdown_renders_to_the_text(value):
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
