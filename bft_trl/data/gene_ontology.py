"""GO biological processes from an OBO ontology and a GAF annotation file, as geneontology.org publishes them."""

import io
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from bft_trl.data.lines import numbered_lines
from bft_trl.data.tables import check_sizes

if TYPE_CHECKING:
    import networkx

logger = logging.getLogger(__name__)

NAMESPACE = "biological_process"
# A gene of a part or of a kind is a gene of the whole; one that regulates a process need not take part in it.
PROPAGATED = ("is_a", "part_of")
# https://geneontology.org/docs/guide-go-evidence-codes/
EVIDENCE_CODES = (
    {"EXP", "IDA", "IPI", "IMP", "IGI", "IEP", "HTP", "HDA", "HMP", "HGI", "HEP"}  # experiment
    | {"IBA", "IBD", "IKR", "IRD", "ISS", "ISO", "ISA", "ISM", "IGC", "RCA"}  # phylogeny and computation
    | {"TAS", "NAS", "IC", "ND", "IEA"}  # statement and electronic annotation
)
_SMALL = 2_000_000  # bytes that are read before a progress bar would be seen
_QUOTED = re.compile(r'"((?:\\.|[^"\\])*)"')
_ESCAPED = {"n": "\n", "t": "\t", "W": " "}


def read_obo_gaf(
    obo: Path, gaf: Path, *, evidence: Sequence[str] = (), min_genes: int = 3, max_genes: int = 100
) -> pd.DataFrame:
    """GO biological processes with the genes annotated to them or to their descendants over is_a and part_of.

    Left out: annotations with the qualifier NOT, obsolete terms (alternative ids count for their primary term), and
    what is not of the namespace biological_process. Formats: OBO 1.2 or 1.4, GAF 2.x; plain or gzipped.

    Args:
        obo: ontology, such as go-basic.obo.
        gaf: annotations, such as goa_human.gaf.gz.
        evidence: evidence codes to use, such as ["EXP", "IDA"], in any case; empty for all.
        min_genes, max_genes: smallest and largest set, after propagation.

    Returns:
        As `read_bioconductor`: one row per term, ordered by id: id, name, definition (None where there is none), genes
        (sorted symbols), gene_names (full names in the same order, None where the GAF has none).

    Raises:
        FileNotFoundError, ValueError: in one line with the file, and the line number where there is one.
    """
    check_sizes(min_genes, max_genes)
    logger.info("Reading %s and %s", obo.name, gaf.name)
    graph = _read_obo(obo)
    default = graph.graph.get("default-namespace", [None])[0]
    # Nodes without a name are the parents of others, but not in the file, or obsolete.
    terms = {
        term: attributes
        for term, attributes in graph.nodes(data=True)
        if attributes.get("namespace", default) == NAMESPACE and "name" in attributes
    }
    if not terms:
        raise ValueError(f"{obo}: has no term of the namespace {NAMESPACE}. The Gene Ontology's go-basic.obo has.")
    primary = {alt: term for term, attributes in terms.items() for alt in attributes.get("alt_id", ())}
    parents = {
        term: [to for _, to, relation in graph.out_edges(term, keys=True) if relation in PROPAGATED and to in terms]
        for term in terms
    }

    annotated, counts, gene_names = _read_gaf(gaf, evidence)
    members: dict[str, set[str]] = defaultdict(set)
    unknown = 0
    for written, genes in annotated.items():
        term = written if written in terms else primary.get(written)
        if term is None:
            unknown += counts[written]
            continue
        for ancestor in _with_ancestors(term, parents):
            if len(members[ancestor]) <= max_genes:  # of larger sets no more need be known: that keeps memory low
                members[ancestor] |= genes
    logger.info(
        "%d of %d annotations are to terms that are obsolete, unknown or no %s, and are left out",
        *(unknown, counts.total(), NAMESPACE),
    )
    if not members:
        raise ValueError(
            f"{gaf}: no annotation to a {NAMESPACE} of {obo.name} is left with `evidence={list(evidence)}`. "
            "Do the two files belong together?"
        )
    rows = [
        {
            "id": term,
            "name": _unescaped(terms[term]["name"]),
            "definition": _definition(terms[term].get("def")),
            "genes": sorted(genes),
            "gene_names": [gene_names.get(gene) for gene in sorted(genes)],
        }
        for term, genes in sorted(members.items())
        if min_genes <= len(genes) <= max_genes
    ]
    return pd.DataFrame(rows, columns=["id", "name", "definition", "genes", "gene_names"])


def obo_gaf_versions(obo: Path, gaf: Path) -> dict[str, str]:
    """What the headers say: data-version of the OBO file, gaf-version and date-generated of the GAF file."""
    found: dict[str, str] = {}
    for path, names in ((obo, ("data-version",)), (gaf, ("gaf-version", "date-generated"))):
        for _, line in numbered_lines(path):
            if line.startswith("[") or (path == gaf and not line.startswith("!")):
                break
            name, _, value = line.lstrip("! ").partition(":")
            if name in names and value.strip():
                found.setdefault(name, value.strip())  # a second header is that of the file before
    return found


def _read_obo(obo: Path) -> "networkx.MultiDiGraph":
    try:
        import obonet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Reading OBO files needs obonet: pip install 'bft-trl[data]'.") from error

    lines = []
    without_id = 0  # line of a [Term] whose id has not come yet
    has_terms = False
    for number, line in numbered_lines(obo):
        if line.startswith("["):
            if without_id:
                break
            lines.append("")  # obonet needs the empty line between stanzas, OBO does not
            without_id = number if line.startswith("[Term]") else 0
            has_terms = has_terms or without_id > 0
        elif line.startswith("id:"):
            without_id = 0
        elif line.strip() and not line.startswith("!") and not re.match(r"[\w-]+:", line):
            raise ValueError(f"{obo}, line {number}: {line[:60]!r} is no line of OBO ('tag: value').")
        lines.append(line)
    if without_id:
        raise ValueError(f"{obo}, line {without_id}: the [Term] has no id. Is the file whole?")
    if not has_terms:
        raise ValueError(f"{obo}: has no [Term]; expected an OBO file, such as go-basic.obo.")
    try:
        return obonet.read_obo(io.StringIO("\n".join(lines)))
    except ValueError as error:
        raise ValueError(f"{obo}: cannot be read as OBO: {' '.join(str(error).split())}") from error


def _read_gaf(gaf: Path, evidence: Sequence[str]) -> tuple[dict[str, set[str]], Counter[str], dict[str, str]]:
    """Symbols of each term as written, annotations of each term, and full names of the symbols."""
    wanted = {code.upper() for code in evidence}
    codes = set()
    annotated: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    gene_names: dict[str, str] = {}
    small = gaf.is_file() and gaf.stat().st_size < _SMALL
    for number, line in tqdm(numbered_lines(gaf), desc=gaf.name, unit=" lines", leave=False, disable=small):
        if line.startswith("!") or not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) < 15:
            raise ValueError(f"{gaf}, line {number}: has {len(columns)} columns, a GAF line has 15 to 17.")
        symbol, qualifier, term, code, aspect, full_name = (columns[i] for i in (2, 3, 4, 6, 8, 9))
        if aspect not in ("P", "F", "C"):
            raise ValueError(f"{gaf}, line {number}: aspect {aspect!r} (column 9); GAF knows P, F and C.")
        if not symbol or not term:
            raise ValueError(
                f"{gaf}, line {number}: no {'term' if symbol else 'symbol'} (column {5 if symbol else 3})."
            )
        codes.add(code.upper())
        if aspect != "P" or "NOT" in qualifier.upper().split("|") or (wanted and code.upper() not in wanted):
            continue
        annotated[term].add(symbol)
        counts[term] += 1
        if full_name:
            gene_names.setdefault(symbol, full_name)
    if not codes:
        raise ValueError(f"{gaf}: has no annotations; expected a GAF file, such as goa_human.gaf.")
    strange = [code for code in evidence if code.upper() not in EVIDENCE_CODES | codes]
    if strange:
        raise ValueError(f"`evidence={strange}`: unknown. {gaf.name} has {', '.join(sorted(codes))}.")
    return annotated, counts, gene_names


def _with_ancestors(term: str, parents: dict[str, list[str]]) -> set[str]:
    found = {term}
    ahead = [term]
    while ahead:
        new = set(parents[ahead.pop()]) - found
        found |= new
        ahead += new
    return found


def _definition(text: Any) -> str | None:
    """'"What it is." [GOC:ab, PMID:1]' without quotes, references and escapes."""
    if not text:
        return None
    quoted = _QUOTED.match(text)
    return _unescaped(quoted[1] if quoted else text.strip('"')) or None


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPED.get(match[1], match[1]), text)
