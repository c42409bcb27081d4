"""Results of other systems as their authors published them. They were not re-run, and are on other documents."""

from typing import NamedTuple

PUBLISHED_KIND = "published, not re-run"
GENEAGENT = "Nature Methods 2025, doi 10.1038/s41592-025-02748-6 (preprint arXiv 2405.16205)"


class Published(NamedTuple):
    """A published result; `spread` is the authors' own, over nine random batches; "all" are all 1,106 sets."""

    task: str
    name: str
    metric: str
    value: float
    spread: float | None = None
    source: str = GENEAGENT


_GPT4 = "GPT-4 (prompt of Hu et al.)"
# On all sets of each source, similarity and percentile by MedCPT. ROUGE on GO and NeST was published as bars only.
PUBLISHED = (
    Published("bft_gene_sets_msigdb", _GPT4, "rougeL", 0.239, 0.038),
    Published("bft_gene_sets_msigdb", _GPT4, "rouge1", 0.239),
    Published("bft_gene_sets_msigdb", _GPT4, "rouge2", 0.074),
    Published("bft_gene_sets_msigdb", "GeneAgent", "rougeL", 0.310, 0.047),
    Published("bft_gene_sets_msigdb", "GeneAgent", "rouge1", 0.310),
    Published("bft_gene_sets_msigdb", "GeneAgent", "rouge2", 0.155),
    Published("bft_gene_sets_msigdb", "GeneAgent", "similarity", 0.736),
    Published("bft_gene_sets_go", "GeneAgent", "similarity", 0.705),
    Published("bft_gene_sets_nest", "GeneAgent", "similarity", 0.761),
    Published("all", _GPT4, "sets with similarity > 0.9", 104),
    Published("all", _GPT4, "sets with similarity > 0.7", 545),
    Published("all", _GPT4, "sets with similarity = 1", 3),
    Published("all", _GPT4, "sets with percentile >= 90", 824),
    Published("all", _GPT4, "sets with percentile >= 98", 598),
    Published("all", _GPT4, "sets with percentile = 100", 43),
    Published("all", "GeneAgent", "sets with similarity > 0.9", 170),
    Published("all", "GeneAgent", "sets with similarity > 0.7", 614),
    Published("all", "GeneAgent", "sets with similarity = 1", 15),
    Published("all", "GeneAgent", "sets with percentile >= 90", 850),
    Published("all", "GeneAgent", "sets with percentile >= 98", 675),
    Published("all", "GeneAgent", "sets with percentile = 100", 82),
)
