"""Floors of the tasks at hand: what answers score that know nothing of the question, on the same documents."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bft_trl.comparison.runs import TaskScores
from bft_trl.data.evaluation_sets import load_background
from bft_trl.encoders import Encoder, cached_vectors, load_encoder
from bft_trl.evaluation.baselines import choice_floors, name_floors
from bft_trl.evaluation.names import Background, score_names

logger = logging.getLogger(__name__)


def floors_of(task: str, scores: TaskScores, *, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Scores per document of each floor, by its name; none for a task that is neither of choices nor of names.

    Names are scored with the encoder and background that the run used, where these can be loaded and are the same;
    else similarity and percentile are left out of the floors, with a warning.
    """
    documents = scores.documents
    if scores.names_gene_sets:
        if len(documents) < 2:
            return {}
        names = [document["name"] for document in documents]
        encoder, background = _scorers(task, scores)
        return {
            name: score_names(names, answers, encoder=encoder, background=background).drop(columns="named")
            for name, answers in name_floors(names, rng=rng).items()
        }
    if "acc" in scores.scores and all({"labels", "answer"} <= set(document) for document in documents):
        options = [len(document["labels"]) for document in documents]
        targets = [document["answer"] for document in documents]
        return {name: pd.DataFrame({"acc": acc}) for name, acc in choice_floors(targets, options).items()}
    return {}


def _scorers(task: str, scores: TaskScores) -> tuple[Encoder | None, Background | None]:
    details: Mapping[str, Any] = scores.details
    if "similarity" not in scores.scores:
        return None, None
    try:
        if "percentile" in scores.scores:
            names = load_background(details.get("background"), data_dir=details.get("data_dir"))
            encoder = load_encoder(details["encoder"])
            background = Background(*cached_vectors(encoder, names))
        else:
            encoder, background = load_encoder(details["encoder"]), None
    except (ValueError, OSError) as error:
        logger.warning("%s: floors without similarity and percentile (%s)", task, error)
        return None, None
    found = (encoder.fingerprint, background and background.fingerprint)
    if found != (scores.settings["encoder_fingerprint"], scores.settings["background_fingerprint"]):
        logger.warning(
            "%s: floors without similarity and percentile: encoder or background changed since the evaluation", task
        )
        return None, None
    return encoder, background
