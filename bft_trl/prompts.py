"""Prompt and answer text, and the parsing of answers: the one place that training data and evaluation share."""

import re
from collections.abc import Mapping, Sequence

# Genes whose full names the analysis mentions: enough to ground it, short enough for a laptop.
GENES_IN_ANALYSIS = 3

_PROCESS_LINE = re.compile(r"^[\s*#]*process[\s*]*:[ \t*]*(.*)$", re.IGNORECASE | re.MULTILINE)


def gene_set_prompt(genes: Sequence[str], *, analysis: bool = True) -> str:
    """The user turn that asks for the biological process of a gene set, after GeneAgent's protocol.

    With `analysis=False` the model is asked for the name alone.
    """
    if not genes:
        raise ValueError("`genes` is empty: a gene set needs at least one gene.")
    ending = ", then give a short analysis." if analysis else " and nothing else."
    return (
        "Propose a brief name for the most prominent biological process performed by this set of human genes. "
        f'Write "Process: <name>" on the first line{ending}\n\nGenes: {", ".join(genes)}'
    )


def gene_set_answer(name: str, *, definition: str | None = None, gene_names: Mapping[str, str] | None = None) -> str:
    """The assistant turn: `Process: <name>`, then the term's definition and the full names of some of the genes.

    Args:
        name: the process.
        definition: the term's definition; None gives the first line alone.
        gene_names: symbol to full name, in the order in which to mention them.
    """
    first_line = f"Process: {name}"
    if definition is None:
        return first_line
    mentioned = [f"{symbol} is {full}" for symbol, full in list((gene_names or {}).items())[:GENES_IN_ANALYSIS]]
    sentence = ""
    if mentioned:
        *head, last = mentioned
        sentence = f" Of these genes, {', '.join(head) + ' and ' if head else ''}{last}."
    return f"{first_line}\n\n{' '.join(definition.split())}{sentence}"


def parse_process(answer: str) -> str | None:
    """The name on the first `Process:` line of an answer, or None where there is no such line or nothing on it.

    Tolerates Markdown emphasis, another case and a repeated "Process:", as chat models write them. The prompt's own
    `<name>` is no name.
    """
    match = _PROCESS_LINE.search(answer)
    line = match[1] if match else ""
    while repeated := _PROCESS_LINE.match(line):
        line = repeated[1]
    # Not single quotes: GO has names such as 'de novo' NAD biosynthetic process.
    name = line.strip().strip('*"').strip()
    return None if name.lower() in ("", "<name>", "process") else name


def conversation(prompt: str, completion: str) -> dict[str, list[dict[str, str]]]:
    """A row in TRL's conversational prompt-completion form."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }
