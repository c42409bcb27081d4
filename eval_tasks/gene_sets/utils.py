"""What the YAML files of gene-set naming refer to: the data, the prompt, and a task that scores all answers."""

import logging
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask

from bft_trl.data.evaluation_sets import load_background, load_evaluation_sets
from bft_trl.encoders import MEDCPT, cached_vectors, load_encoder
from bft_trl.evaluation.names import SCORER_VERSION, Background, score_names
from bft_trl.prompts import gene_set_prompt, parse_process

logger = logging.getLogger(__name__)


def _load(name: str, data_dir: str | None) -> DatasetDict:
    sets = load_evaluation_sets(name, data_dir=data_dir)
    return DatasetDict(test=Dataset.from_pandas(sets[["id", "name", "genes", "source"]], preserve_index=False))


def go(data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    return _load("go", data_dir)


def nest(data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    return _load("nest", data_dir)


def msigdb(data_dir: str | None = None, **kwargs: Any) -> DatasetDict:
    return _load("msigdb", data_dir)


def prompt(doc: dict[str, Any]) -> str:
    return gene_set_prompt(doc["genes"])


class GeneSetTask(ConfigurableTask):
    """A task of lm-eval whose answers are scored together, because an encoder works in batches.

    Reads from `--metadata`: data_dir, encoder (default MedCPT; "none" leaves similarity and percentile out) and
    background (a file; "none" leaves percentile out).
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config={key: value for key, value in (config or {}).items() if key != "class"})
        settings = self.config.metadata
        encoder = settings.setdefault("encoder", MEDCPT)
        settings |= {"scorer_version": SCORER_VERSION, "encoder_fingerprint": None, "background_fingerprint": None}
        self._encoder = self._background = None
        self._scores: dict[tuple[str, str | None], dict[str, float]] = {}
        if encoder == "none":
            logger.warning("%s: encoder is none; similarity and percentile are left out.", self.config.task)
            return
        background = settings.get("background")
        if background == "none":
            logger.warning("%s: background is none; percentile is left out.", self.config.task)
            self._encoder = load_encoder(encoder)
        else:
            names = load_background(background, data_dir=settings.get("data_dir"))
            self._encoder = load_encoder(encoder)
            self._background = Background(*cached_vectors(self._encoder, names))
            settings["background_fingerprint"] = self._background.fingerprint
        settings["encoder_fingerprint"] = self._encoder.fingerprint

    def apply_filters(self) -> Any:
        filtered = super().apply_filters()
        answers = [
            (instance.doc["name"], parse_process(response))
            for instance in self.instances
            for response in instance.filtered_resps.values()
        ]
        self._score(answers)
        return filtered

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        answer = (doc["name"], parse_process(results[0]))
        if answer not in self._scores:
            self._score([answer])
        return self._scores[answer]

    def _score(self, answers: list[tuple[str, str | None]]) -> None:
        names, given = zip(*answers, strict=True)
        table = score_names(names, given, encoder=self._encoder, background=self._background)
        self._scores |= dict(zip(answers, table.to_dict("records"), strict=True))
