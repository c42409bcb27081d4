"""Where gene sets come from: each source reads its files and knows what the data card must say of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bft_trl import markdown
from bft_trl.data.bioconductor import bioconductor_versions, read_bioconductor
from bft_trl.data.gene_ontology import obo_gaf_versions, read_obo_gaf
from bft_trl.data.tables import check_sizes, read_gene_sets, read_gmt

ROW = "in TRL's conversational prompt-completion form, with `id`, `source`, `name` and `genes` beside it."
GO_LICENCE = (
    "https://geneontology.org, CC BY 4.0. Changed: annotations propagated to ancestors, sets selected by size, "
    "wrapped into prompts and answers."
)


@dataclass(frozen=True)
class Source:
    """Gene sets and their provenance.

    Attributes:
        sets: id, name, definition (may be missing), genes and, from some sources, gene_names.
        label: the rows' `source`.
        title, description, attribution: for the data card.
        files: what was read.
        options: command-line options that name the source.
        min_genes, max_genes: the sizes that `sets` was cut to.
    """

    sets: pd.DataFrame
    label: str
    title: str
    description: str
    attribution: Sequence[str]
    files: Sequence[Path]
    options: Sequence[str]
    min_genes: int
    max_genes: int


def bioconductor_source(org_db: Path, go_db: Path, *, min_genes: int = 3, max_genes: int = 100) -> Source:
    """GO biological processes of [`read_bioconductor`]."""
    dates = {key: markdown.text(date) for key, date in bioconductor_versions(go_db).items()}
    return Source(
        sets=read_bioconductor(org_db, go_db, min_genes=min_genes, max_genes=max_genes),
        label="go_bp",
        title="Gene sets of GO biological processes",
        description=f"Human genes annotated to a process or its descendants, {ROW}",
        attribution=[
            f"Terms, definitions and annotations: the Gene Ontology ({dates.get('GOSOURCEDATE', 'date unknown')}), "
            f"{GO_LICENCE}",
            f"Gene symbols and names: NCBI Gene ({dates.get('GOEGSOURCEDATE', 'date unknown')}), public domain.",
            "Both taken from the Bioconductor packages org.Hs.eg.db and GO.db (Artistic-2.0), as packaged by Debian "
            "in r-bioc-org.hs.eg.db and r-bioc-go.db.",
        ],
        files=[org_db, go_db],
        options=["--org-db", org_db.name, "--go-db", go_db.name],
        min_genes=min_genes,
        max_genes=max_genes,
    )


def obo_gaf_source(
    obo: Path, gaf: Path, *, evidence: Sequence[str] = (), min_genes: int = 3, max_genes: int = 100
) -> Source:
    """GO biological processes of [`read_obo_gaf`]."""
    sets = read_obo_gaf(obo, gaf, evidence=evidence, min_genes=min_genes, max_genes=max_genes)
    versions = {key: markdown.text(version) for key, version in obo_gaf_versions(obo, gaf).items()}
    chosen = f" with evidence {', '.join(code.upper() for code in evidence)}" if evidence else ""
    return Source(
        sets=sets,
        label="go_bp",
        title="Gene sets of GO biological processes",
        description=f"Genes annotated{chosen} to a process or its descendants over is_a and part_of, {ROW}",
        attribution=[
            "Terms, definitions and annotations: the Gene Ontology (ontology "
            f"{versions.get('data-version', 'of unknown version')}; annotations in GAF "
            f"{versions.get('gaf-version', 'of unknown version')}, generated "
            f"{versions.get('date-generated', 'at an unknown date')}), {GO_LICENCE}",
        ],
        files=[obo, gaf],
        options=["--obo", obo.name, "--gaf", gaf.name, *(["--evidence", *evidence] if evidence else [])],
        min_genes=min_genes,
        max_genes=max_genes,
    )


def gmt_source(gmt: Path, *, min_genes: int = 3, max_genes: int = 100) -> Source:
    """The gene sets of a GMT file, which has no definitions."""
    return _published(gmt, read_gmt(gmt), "--gmt", min_genes, max_genes)


def table_source(table: Path, *, min_genes: int = 3, max_genes: int = 100) -> Source:
    """The gene sets of a table that [`read_gene_sets`] reads, with its column definition where it has one."""
    sets = read_gene_sets(table)
    given = sets["definition"] if "definition" in sets else pd.Series(None, index=sets.index, dtype=object)
    stated = given.map(lambda text: str(text) if pd.notna(text) and str(text).strip() else None)
    # A symbol that is listed twice is one gene.
    genes = sets["genes"].map(lambda symbols: list(dict.fromkeys(symbols)))
    return _published(
        table, sets[["id", "name"]].assign(definition=stated, genes=genes), "--table", min_genes, max_genes
    )


def _published(path: Path, sets: pd.DataFrame, option: str, min_genes: int, max_genes: int) -> Source:
    check_sizes(min_genes, max_genes)
    return Source(
        sets=sets[sets["genes"].str.len().between(min_genes, max_genes)].reset_index(drop=True),
        label=Path(path.name.removesuffix(".gz")).stem,
        title=f"Gene sets of {markdown.text(path.name)}",
        description=f"Gene sets {ROW}",
        attribution=[
            f"{markdown.text(path.name)}: as published by the file's author; "
            "check its licence before you pass this on."
        ],
        files=[path],
        options=[option, path.name],
        min_genes=min_genes,
        max_genes=max_genes,
    )
