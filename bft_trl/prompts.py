"""Prompt and answer text, and the parsing of answers: the one place that training data and evaluation share."""

import re
from collections.abc import Mapping, Sequence

LETTERS = "ABCDEFGHIJ"

# Genes whose full names the analysis mentions: enough to ground it, short enough for a laptop.
GENES_IN_ANALYSIS = 3

_PROCESS_LINE = re.compile(r"^[ \t*#]*process[ \t*]*:[ \t*]*(.*)$", re.IGNORECASE | re.MULTILINE)


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
    line, name = None, match[1] if match else ""
    while name != line:  # until nothing is left to take off: '"Process: **DNA repair**"'
        line = name
        repeated = _PROCESS_LINE.match(line)
        # Not single quotes: GO has names such as 'de novo' NAD biosynthetic process.
        name = (repeated[1] if repeated else line).strip().strip('*"').strip()
    return None if name.lower() in ("", "<name>", "process") else name


def has_process_line(answer: str) -> bool:
    """Whether an answer has a `Process:` line, with a name on it or without."""
    return bool(_PROCESS_LINE.search(answer))


def gene_profile_prompt(gene: str) -> str:
    """The user turn that asks for a profile of a human gene."""
    if not gene.strip():
        raise ValueError("`gene` is empty.")
    return (
        f"Describe the human gene {gene} in one short paragraph: where in the cell its product is found, what kind of "
        "protein it is, its molecular activity, the biological processes and pathways it takes part in, how it is "
        "regulated, and the diseases it is linked to."
    )


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Options under the labels A, B, C, ..., as [`choice_prompt`] takes them."""
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"`options` has {len(options)} entries: a question needs 2 to {len(LETTERS)}.")
    return dict(zip(LETTERS, options, strict=False))


def choice_prompt(question: str, choices: Mapping[str, str], *, context: str = "", reasoning: bool = False) -> str:
    """The user turn of a multiple-choice question.

    Args:
        question: the question.
        choices: label to option, such as [`lettered`] makes them. Where no option has a text ({"yes": "", "no": ""})
            they are not listed: their labels say all.
        context: what the question is about, such as an abstract; goes first.
        reasoning: ask for the reasoning before the answer.
    """
    if not question.strip():
        raise ValueError("`question` is empty.")
    listed = "\n".join(f"{label}. {option}" for label, option in choices.items()) if any(choices.values()) else ""
    labels = list(choices)
    wanted = "letter" if listed else f"{', '.join(labels[:-1])} or {labels[-1]}"
    ending = f'Think step by step, then write "Answer: <{wanted}>" on the last line.'
    if not reasoning:
        ending = f'Write "Answer: <{wanted}>" and nothing else.'
    return "\n\n".join(part for part in (context, question, listed, ending) if part)


def choice_answer(label: str, *, reasoning: str = "") -> str:
    """The assistant turn: the reasoning, where there is any, and `Answer: <label>` on the last line."""
    return f"{reasoning.strip()}\n\nAnswer: {label}".lstrip()


def parse_choice(answer: str, labels: Sequence[str]) -> str | None:
    """The label that an answer ends with, or None where it cannot be read or names two.

    Read in this order: the last "Answer: X" (in Markdown and brackets too), the last "answer is X", an answer that is
    nothing but the label. "Answer: A or B" names two. "Answer: A patient ..." names none: the A is an article.
    """
    any_label = "|".join(re.escape(label) for label in labels)
    opening, closing = r"[\s*_(\[\"'<`{]*", r"[*_)\]\"'>`}]*"
    # A label, not the first letter of a word or an article: something other than a word follows, or it is no "A".
    label = rf"({any_label})(?![\w'\u2019-])(?=[^\S\n]*(?:$|[^\w\s])|(?<!a)[^\S\n])"
    flags = re.IGNORECASE | re.MULTILINE
    for lead in (r"\banswer[\s*_]*:", r"\banswer\s+is:?"):
        found = list(re.finditer(rf"{lead}{opening}(?:\\boxed\{{)?{label}", answer, flags))
        if not found:
            continue
        *_, line = answer[: found[-1].start()].rsplit("\n", 1)
        on_the_line = {match[1].lower() for match in found if match.start() >= found[-1].start() - len(line)}
        # A second label stands near the first; all of a long line would take quadratic time.
        rest = answer[found[-1].end() :][:200].split("\n", 1)[0]
        # "or C", "and (C)"; ", C" and "C" alone up to the end or to the next one, since "B, C. difficile" names B.
        more = rf"(?:{any_label})(?![\w'\u2019-])[\s*_)\].\"'`]*(?:$|[,/&+;|]|\bor\b|\band\b)"
        seconds = (
            rf"{closing}[\s,(]*(?:\bor\b|\band\b){opening}{label}",
            rf"{closing}[ \t,/&+;|(]+{opening}{more}",
        )
        if len(on_the_line) > 1 or any(re.match(second, rest, flags) for second in seconds):
            return None
        if re.search(rf"\bor\s+[(\[\"'*]*(?:{any_label})[.)]", rest, flags):  # "B. Metoprolol or C. Verapamil"
            return None
        return _as_given(found[-1][1], labels)
    alone = re.fullmatch(rf"{opening}({any_label})[\s*_)\].\"'`}}]*", answer, flags)
    return _as_given(alone[1], labels) if alone else None


def _as_given(found: str, labels: Sequence[str]) -> str:
    return next(label for label in labels if label.lower() == found.lower())


def conversation(prompt: str, completion: str) -> dict[str, list[dict[str, str]]]:
    """A row in TRL's conversational prompt-completion form."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }
