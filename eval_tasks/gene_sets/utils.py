"""Functions of the gene-set tasks: the data, the prompt, and a task that scores all answers together."""

import logging
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from bft_trl.data.evaluation_sets import load_evaluation_sets, load_gene_names
from bft_trl.evaluation.names import load_scorer, proposed_name, score_names
from bft_trl.models import MEDCPT
from bft_trl.prompts import gene_set_prompt, parse_process

logger = logging.getLogger(__name__)


def load(source: str, described: bool = False, data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    sets = load_evaluation_sets(source, data_dir=data_dir)[["id", "name", "genes", "source"]]
    if described:
        names = load_gene_names(data_dir)
        if not names:
            raise FileNotFoundError(f"`data_dir={data_dir!r}` has no gene_names.parquet or .tsv with symbol and name.")
        sets["gene_names"] = [[names.get(gene) for gene in genes] for genes in sets["genes"]]
    return DatasetDict(test=Dataset.from_pandas(sets, preserve_index=False))


def described_prompt(doc: dict[str, Any]) -> str:
    return gene_set_prompt(doc["genes"], analysis=False, full_names=doc["gene_names"])


def prompt(doc: dict[str, Any]) -> str:
    return gene_set_prompt(doc["genes"])


def _name(doc: dict[str, Any], response: str) -> str | None:
    return proposed_name(parse_process(response), doc["genes"])


class GeneSetTask(ConfigurableTask):
    """An lm-eval task whose answers are scored together, because an encoder works in batches.

    Reads from the metadata: data_dir, encoder (default MedCPT; "none" leaves similarity and percentile out),
    background (a file; "none" leaves the percentile out) and ontology (an OBO file, for the metrics of GO sets).
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config={key: value for key, value in (config or {}).items() if key != "class"})
        settings = self.config.metadata
        encoder, background = settings.setdefault("encoder", MEDCPT), settings.get("background")
        options = {name: settings.get(name) for name in ("data_dir", "ontology")}
        self.scorer = load_scorer(encoder, background, **options)
        settings |= self.scorer.settings
        self._scores: dict[tuple[str, str, str | None], dict[str, float]] = {}

    def apply_filters(self) -> Any:
        filtered = super().apply_filters()
        if self.scorer.background is None:
            without = "similarity and percentile are" if self.scorer.encoder is None else "percentile is"
            logger.warning("%s: %s left out.", self.config.task, without)
        self._score(
            [
                (instance.doc["id"], instance.doc["name"], _name(instance.doc, response))
                for instance in self.instances
                for response in instance.filtered_resps.values()
            ]
        )
        return filtered

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        answer = (doc["id"], doc["name"], _name(doc, results[0]))
        if answer not in self._scores:
            self._score([answer])
        return self._scores[answer]

    def _score(self, answers: list[tuple[str, str, str | None]]) -> None:
        ids, names, given = zip(*answers, strict=True)
        table = score_names(names, given, self.scorer, terms=ids)
        self._scores |= dict(zip(answers, table.to_dict("records"), strict=True))
