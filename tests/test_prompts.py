import pytest

from bft_trl.prompts import conversation, gene_set_answer, gene_set_prompt, parse_process


def test_prompt_and_answer_by_hand():
    prompt = gene_set_prompt(["TP53", "MDM2"])
    assert prompt.endswith("Genes: TP53, MDM2")
    assert '"Process: <name>" on the first line' in prompt
    assert "nothing else" in gene_set_prompt(["TP53"], analysis=False)
    names = {"A": "alpha", "B": "beta", "C": "gamma", "D": "delta"}
    assert gene_set_answer("x") == "Process: x"
    assert gene_set_answer("x", definition="A\n process.", gene_names=names) == (
        "Process: x\n\nA process. Of these genes, A is alpha, B is beta and C is gamma."
    )
    assert (
        gene_set_answer("x", definition="D.", gene_names={"A": "alpha"})
        == "Process: x\n\nD. Of these genes, A is alpha."
    )
    assert gene_set_answer("x", definition="D.") == "Process: x\n\nD."


def test_prompt_with_full_names():
    prompt = gene_set_prompt(["LDLR", "X1"], analysis=False, full_names=["low density lipoprotein receptor", None])
    assert prompt.endswith(" and nothing else.\n\nGenes:\nLDLR: low density lipoprotein receptor\nX1")


def test_bad_gene_lists():
    with pytest.raises(ValueError, match="`genes` is empty"):
        gene_set_prompt([])
    with pytest.raises(ValueError, match="`full_names` has 1 entries for 2 genes"):
        gene_set_prompt(["A", "B"], full_names=["alpha"])


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Process: DNA repair\n\nBecause", "DNA repair"),
        ("**Process: DNA repair**\nBecause", "DNA repair"),
        ('**Process:** "DNA repair"', "DNA repair"),
        ("process:DNA repair", "DNA repair"),
        ("Sure!\n\nProcess: a\nProcess: b", "a"),
        ("Process:\nDNA repair", None),
        ("Process:   ", None),
        ("Process: <name>", None),
        ("Process: Process: Process", None),
        ("Process: process: DNA repair", "DNA repair"),
        ("Process: process of ageing", "process of ageing"),
        ("The process: unknown", None),
        ("", None),
        ("Process: " + "x" * 100_000, "x" * 100_000),
        ("Process: 修復 <script>", "修復 <script>"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_parse_process(answer, name):
    assert parse_process(answer) == name


def test_answer_parses_back():
    for name in (
        "nucleotide-excision repair, DNA incision",
        "G1/S transition",
        "tRNA 5'-end processing",
        "'de novo' NAD synthesis",
    ):
        assert parse_process(gene_set_answer(name, definition="D.")) == name


def test_conversation_is_trl_form():
    from trl.data_utils import is_conversational

    row = conversation("q", "a")
    assert is_conversational(row)
    assert set(row) == {"prompt", "completion"}
