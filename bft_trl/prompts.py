"""Prompts, answers and the parsing of answers, shared by training data and evaluation."""

import re
from collections.abc import Mapping, Sequence

LETTERS = "ABCDEFGHIJ"

# Number of genes whose full names the analysis mentions.
GENES_IN_ANALYSIS = 3

_PROCESS_LINE = re.compile(r"^[ \t*#]*process[ \t*]*:[ \t*]*(.*)$", re.IGNORECASE | re.MULTILINE)


def gene_set_prompt(
    genes: Sequence[str], *, analysis: bool = True, full_names: Sequence[str | None] | None = None
) -> str:
    """Returns the user turn that asks for the biological process of a gene set, after GeneAgent's protocol.

    Args:
        genes: symbols, listed in one line.
        analysis: False asks for the name of the process alone.
        full_names: full name of each gene, None where there is none: genes are listed one per line, with their names.

    Raises ValueError if `genes` is empty, or if `full_names` has another length.
    """
    if not genes:
        raise ValueError("`genes` is empty: a gene set needs at least one gene.")
    listed = f" {', '.join(genes)}"
    if full_names is not None:
        if len(full_names) != len(genes):
            raise ValueError(f"`full_names` has {len(full_names)} entries for {len(genes)} genes: give one per gene.")
        pairs = zip(genes, full_names, strict=True)
        listed = "".join(f"\n{gene}: {full}" if full else f"\n{gene}" for gene, full in pairs)
    ending = ", then give a short analysis." if analysis else " and nothing else."
    return (
        "Propose a brief name for the most prominent biological process performed by this set of human genes. "
        f'Write "Process: <name>" on the first line{ending}\n\nGenes:{listed}'
    )


def gene_set_answer(name: str, *, definition: str | None = None, gene_names: Mapping[str, str] | None = None) -> str:
    """Returns the assistant turn: `Process: <name>`, then the definition and the full names of the first genes.

    Args:
        name: name of the process.
        definition: definition of the process; None gives the first line alone.
        gene_names: full name by symbol, in the order in which they are mentioned.
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
    """Returns the name on the first `Process:` line of an answer, or None if there is no such line or no name on it.

    Markdown emphasis, case and a repeated "Process:" are ignored. The placeholder `<name>` of the prompt is no name.
    """
    match = _PROCESS_LINE.search(answer)
    line, name = None, match[1] if match else ""
    while name != line:  # nested, as in '"Process: **DNA repair**"'
        line = name
        repeated = _PROCESS_LINE.match(line)
        # Not single quotes: GO has names such as 'de novo' NAD biosynthetic process.
        name = (repeated[1] if repeated else line).strip().strip('*"').strip()
    return None if name.lower() in ("", "<name>", "process") else name


def has_process_line(answer: str) -> bool:
    """Returns whether an answer has a `Process:` line, with or without a name."""
    return bool(_PROCESS_LINE.search(answer))


def gene_profile_prompt(gene: str) -> str:
    """Returns the user turn that asks for a profile of a human gene. Raises ValueError if `gene` is empty."""
    if not gene.strip():
        raise ValueError("`gene` is empty.")
    return (
        f"Describe the human gene {gene} in one short paragraph: where in the cell its product is found, what kind of "
        "protein it is, its molecular activity, the biological processes and pathways it takes part in, how it is "
        "regulated, and the diseases it is linked to."
    )


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Returns 2 to 10 options by their label A, B, C, ... Raises ValueError for another number of options."""
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"`options` has {len(options)} entries: a question needs 2 to {len(LETTERS)}.")
    return dict(zip(LETTERS, options, strict=False))


def choice_prompt(question: str, choices: Mapping[str, str], *, context: str = "", reasoning: bool = False) -> str:
    """Returns the user turn of a multiple-choice question.

    Args:
        question: question.
        choices: option by label, see [`lettered`]. If all options are empty, as in {"yes": "", "no": ""}, the labels
            are the answers and no options are listed.
        context: text before the question, such as an abstract.
        reasoning: ask for the reasoning before the answer.

    Raises ValueError if `question` is empty.
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
    """Returns the assistant turn: the reasoning, if any, and `Answer: <label>` on the last line."""
    return f"{reasoning.strip()}\n\nAnswer: {label}".lstrip()


def parse_choice(answer: str, labels: Sequence[str]) -> str | None:
    """Returns the label that an answer gives, or None if it gives none or two.

    The first match counts: the last "Answer: X" (also in Markdown and brackets), the last "answer is X", an answer
    that is only a label. "Answer: A or B" gives two labels. "Answer: A patient ..." and "Answer: I think ..." give
    none: A and I are words there.
    """
    any_label = "|".join(re.escape(label) for label in labels)
    opening, closing = r"[\s*_(\[\"'<`{]*", r"[*_)\]\"'>`}]*"
    # A label, not the first letter of a word and not the words "A" and "I": no word follows it.
    label = rf"({any_label})(?![\w'\u2019-])(?=[^\S\n]*(?:$|[^\w\s])|(?<![ai])[^\S\n])"
    flags = re.IGNORECASE | re.MULTILINE
    for lead in (r"\banswer[\s*_]*:", r"\banswer\s+is:?"):
        found = list(re.finditer(rf"{lead}{opening}(?:\\boxed\{{)?{label}", answer, flags))
        if not found:
            continue
        *_, line = answer[: found[-1].start()].rsplit("\n", 1)
        on_the_line = {match[1].lower() for match in found if match.start() >= found[-1].start() - len(line)}
        # A second label is near the first; searching all of a long line takes quadratic time.
        rest = answer[found[-1].end() :][:200].split("\n", 1)[0]
        # "or C", "and (C)"; ", C" and "C" only at the end or before another label: "B, C. difficile" gives B.
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
    """Returns a row in TRL's conversational prompt-completion form: prompt and completion, one message each."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }
