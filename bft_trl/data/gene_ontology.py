"""GO biological processes from an OBO ontology and GAF annotations, or from Bioconductor's SQLite files."""

import csv
import io
import logging
import re
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from bft_trl import markdown
from bft_trl.data.card import Source
from bft_trl.data.tables import check_sizes, numbered_lines

if TYPE_CHECKING:
    import networkx

logger = logging.getLogger(__name__)

NAMESPACE = "biological_process"
# Relations that pass annotations on to the ancestor. A gene that regulates a process need not take part in it.
PROPAGATED = ("is_a", "part_of")
# https://geneontology.org/docs/guide-go-evidence-codes/
EVIDENCE_CODES = (
    {"EXP", "IDA", "IPI", "IMP", "IGI", "IEP", "HTP", "HDA", "HMP", "HGI", "HEP"}  # experiment
    | {"IBA", "IBD", "IKR", "IRD", "ISS", "ISO", "ISA", "ISM", "IGC", "RCA"}  # phylogeny and computation
    | {"TAS", "NAS", "IC", "ND", "IEA"}  # statement and electronic annotation
)
# The first 10 of the 17 columns of GAF 2, of which the named ones are used.
_GAF_HEADER = ["_0", "_1", "symbol", "qualifier", "term", "_5", "evidence", "_7", "aspect", "name"]
_LICENSE = (
    "https://geneontology.org, CC BY 4.0. Changed: annotations propagated to ancestors, sets selected by size, "
    "wrapped into prompts and answers."
)
_QUOTED = re.compile(r'"((?:\\.|[^"\\])*)"')
_ESCAPED = {"n": "\n", "t": "\t", "W": " "}
# go_bp_all contains each annotation at the term and at all its ancestors.
_QUERY_ANNOTATIONS = """
    SELECT DISTINCT go_bp_all.go_id AS id, gene_info.symbol, gene_info.gene_name
    FROM go_bp_all JOIN gene_info USING (_id)
    ORDER BY go_bp_all.go_id, gene_info.symbol
"""
_QUERY_TERMS = "SELECT go_id AS id, term AS name, definition FROM go_term WHERE ontology = 'BP'"


def read_bioconductor(org_db: Path, go_db: Path, *, min_genes: int = 3, max_genes: int = 100) -> Source:
    """Reads GO biological processes with their human genes from Bioconductor's org.Hs.eg.sqlite and GO.sqlite.

    Both are in Debian's packages r-bioc-org.hs.eg.db and r-bioc-go.db. Annotations are propagated to ancestors.

    Returns a source with one row per term with `min_genes` to `max_genes` symbols, ordered by id: id, name,
    definition, genes (sorted symbols) and gene_names (full names in the same order). Raises FileNotFoundError or
    ValueError.
    """
    check_sizes(min_genes, max_genes)
    annotations = _query(org_db, _QUERY_ANNOTATIONS).drop_duplicates(["id", "symbol"])
    sets = annotations.groupby("id").agg(genes=("symbol", list), gene_names=("gene_name", list)).reset_index()
    sets = sets[sets["genes"].str.len().between(min_genes, max_genes)]
    sets = _query(go_db, _QUERY_TERMS).merge(sets, on="id").sort_values("id", ignore_index=True)
    metadata = _query(go_db, "SELECT name, value FROM metadata").set_index("name")["value"]
    terms, genes = (markdown.text(metadata.get(key, "date unknown")) for key in ("GOSOURCEDATE", "GOEGSOURCEDATE"))
    attribution = [
        f"Terms, definitions and annotations: the Gene Ontology ({terms}), {_LICENSE}",
        f"Gene symbols and names: NCBI Gene ({genes}), public domain.",
        "Both taken from the Bioconductor packages org.Hs.eg.db and GO.db (Artistic-2.0), as packaged by Debian in "
        "r-bioc-org.hs.eg.db and r-bioc-go.db.",
    ]
    return Source(sets, "go_bp", attribution, [org_db, go_db])


def _query(database: Path, query: str) -> pd.DataFrame:
    if not database.is_file():
        raise FileNotFoundError(f"{database}: no such file. It is in Debian's r-bioc-org.hs.eg.db or r-bioc-go.db.")
    try:
        # Read-only: sqlite3 creates a missing database otherwise.
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return pd.read_sql_query(query, connection)
    except (pd.errors.DatabaseError, sqlite3.DatabaseError) as error:
        raise ValueError(f"{database}: not the expected Bioconductor database ({error}).") from error


def read_obo_gaf(
    obo: Path, gaf: Path, *, evidence: Sequence[str] = (), min_genes: int = 3, max_genes: int = 100
) -> Source:
    """Reads GO biological processes with the genes annotated to them or to their descendants over is_a and part_of.

    Annotations with the qualifier NOT and obsolete terms are left out; alternative ids count for their primary term.

    Args:
        obo: ontology in OBO 1.2 or 1.4, plain or gzipped, such as go-basic.obo.
        gaf: annotations in GAF 2, plain or gzipped, such as goa_human.gaf.gz.
        evidence: evidence codes to use, such as ["EXP", "IDA"], in any case; empty for all.
        min_genes, max_genes: smallest and largest set, after propagation.

    Returns a source with the columns of [`read_bioconductor`]; definition and gene_names are None where missing.
    Raises FileNotFoundError or ValueError.
    """
    check_sizes(min_genes, max_genes)
    logger.info("Reading %s and %s", obo.name, gaf.name)
    graph = read_obo(obo)
    terms = _processes(graph)
    if not terms:
        raise ValueError(f"{obo}: has no term of the namespace {NAMESPACE}. Use the Gene Ontology's go-basic.obo.")
    annotations = _read_gaf(gaf, evidence)
    members = _propagate(graph, terms, annotations, max_genes)
    if not members:
        raise ValueError(
            f"{gaf}: no annotation to a {NAMESPACE} of {obo.name} is left with `evidence={list(evidence)}`. "
            "Do the two files belong together?"
        )
    named = annotations[annotations["name"] != ""].drop_duplicates("symbol")
    gene_names = dict(zip(named["symbol"], named["name"], strict=True))
    rows = [
        {
            "id": term,
            "name": _unescape(terms[term]["name"]),
            "definition": _definition(terms[term].get("def")),
            "genes": sorted(genes),
            "gene_names": [gene_names.get(gene) for gene in sorted(genes)],
        }
        for term, genes in sorted(members.items())
        if min_genes <= len(genes) <= max_genes
    ]
    sets = pd.DataFrame(rows, columns=["id", "name", "definition", "genes", "gene_names"])
    return Source(sets, "go_bp", [_attribution(graph, gaf)], [obo, gaf])


def _processes(graph: "networkx.MultiDiGraph") -> dict[str, Any]:
    """Returns the attributes of each biological process. Obsolete terms and undefined parents have no name."""
    default = graph.graph.get("default-namespace", [None])[0]
    return {
        term: attributes
        for term, attributes in graph.nodes(data=True)
        if attributes.get("namespace", default) == NAMESPACE and "name" in attributes
    }


def _attribution(graph: "networkx.MultiDiGraph", gaf: Path) -> str:
    """Returns the entry of the data card, with the versions in the headers of both files."""
    header: dict[str, str] = {}
    for _, line in takewhile(lambda numbered: numbered[1].startswith("!"), numbered_lines(gaf)):
        name, _, value = line.lstrip("! ").partition(":")
        header.setdefault(name, value.strip())  # a merged file has the headers of its parts below
    versions = (graph.graph.get("data-version"), header.get("gaf-version"), header.get("date-generated"))
    ontology, gaf_version, date = (markdown.text(version or "unknown") for version in versions)
    return (
        f"Terms, definitions and annotations: the Gene Ontology (ontology {ontology}; annotations in GAF "
        f"{gaf_version}, generated {date}), {_LICENSE}"
    )


def read_obo(obo: Path) -> "networkx.MultiDiGraph":
    """Returns the graph of an OBO file by obonet, edges from child to parent. Raises ValueError with the file."""
    try:
        import obonet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Reading OBO files needs obonet: pip install 'bft-trl[data]'.") from error

    # obonet needs an empty line between stanzas; the format does not.
    lines = ["\n" + line if line.startswith("[") else line for _, line in numbered_lines(obo)]
    try:
        return obonet.read_obo(io.StringIO("\n".join(lines)))
    except (ValueError, KeyError) as error:  # KeyError: a term without id
        raise ValueError(f"{obo}: cannot be read as OBO: {' '.join(str(error).split())}") from error


def _read_gaf(gaf: Path, evidence: Sequence[str]) -> pd.DataFrame:
    """Returns the annotations to processes that have one of the evidence codes, with the columns `_GAF_HEADER`."""
    numbered = tqdm(numbered_lines(gaf), desc=gaf.name, unit=" lines", leave=False, delay=1)
    lines = {number: line for number, line in numbered if line.strip() and not line.startswith("!")}
    text = io.StringIO("\n".join(["\t".join(_GAF_HEADER), *lines.values()]))
    options = {"usecols": _GAF_HEADER, "index_col": False, "dtype": str, "na_filter": False}
    table = pd.read_csv(text, sep="\t", quoting=csv.QUOTE_NONE, **options)
    wrong = ~table["aspect"].isin(["P", "F", "C"]) | (table["symbol"] == "") | (table["term"] == "")
    if wrong.any():
        number = list(lines)[wrong.to_numpy().argmax()]
        raise ValueError(f"{gaf}, line {number}: {lines[number][:60]!r} has no symbol, term and aspect as in GAF.")
    codes = table["evidence"].str.upper()
    unknown = [code for code in evidence if code.upper() not in EVIDENCE_CODES.union(codes)]
    if unknown:
        raise ValueError(f"`evidence={unknown}`: unknown. {gaf.name} has {', '.join(sorted(codes.unique()))}.")
    kept = (table["aspect"] == "P") & ~table["qualifier"].str.contains(r"(?:^|\|)NOT(?:$|\|)", case=False)
    if evidence:
        kept &= codes.isin([code.upper() for code in evidence])
    return table[kept]


def _propagate(
    graph: "networkx.MultiDiGraph", terms: Mapping[str, Any], annotations: pd.DataFrame, max_genes: int
) -> dict[str, set[str]]:
    """Returns the genes of each term and its descendants.

    Sets that have more than `max_genes` genes do not grow further, to save memory.
    """
    parents = {
        term: {to for _, to, relation in graph.out_edges(term, keys=True) if relation in PROPAGATED and to in terms}
        for term in terms
    }
    primary = {alt: term for term, attributes in terms.items() for alt in attributes.get("alt_id", ())}
    written = annotations["term"]
    known = written.where(written.isin(list(terms)), written.map(primary))
    logger.info(
        "%d of %d annotations are to terms that are obsolete, unknown or no %s, and are left out",
        *(known.isna().sum(), len(known), NAMESPACE),
    )
    members: dict[str, set[str]] = defaultdict(set)
    for term, symbols in annotations["symbol"].groupby(known):
        ancestors, queue = {term}, [term]
        while queue:
            new = parents[queue.pop()] - ancestors
            ancestors |= new
            queue += new
        for ancestor in ancestors:
            if len(members[ancestor]) <= max_genes:
                members[ancestor].update(symbols)
    return members


def _definition(text: str | None) -> str | None:
    """Returns an OBO definition such as '"What it is." [GOC:ab, PMID:1]' without quotes, references and escapes."""
    if not text:
        return None
    quoted = _QUOTED.match(text)
    return _unescape(quoted[1] if quoted else text.strip('"')) or None


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPED.get(match[1], match[1]), text)
