"""Balanced Fine-Tuning (BFT) for TRL. Public names load what they need when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bft_trl.config import BFTConfig as BFTConfig
    from bft_trl.data.gene_sets import load_gene_sets as load_gene_sets
    from bft_trl.lm_head import frozen_log_probs as frozen_log_probs
    from bft_trl.models import demo_model as demo_model
    from bft_trl.trainer import BFTTrainer as BFTTrainer
    from bft_trl.weighting import token_and_sample_weights as token_and_sample_weights

__version__ = "0.1.0"

# torch and trl take seconds to import: a name imports its module when it is used.
_MODULES = {
    "BFTConfig": "bft_trl.config",
    "BFTTrainer": "bft_trl.trainer",
    "demo_model": "bft_trl.models",
    "frozen_log_probs": "bft_trl.lm_head",
    "load_gene_sets": "bft_trl.data.gene_sets",
    "token_and_sample_weights": "bft_trl.weighting",
}
__all__ = ["BFTConfig", "BFTTrainer", "demo_model", "frozen_log_probs", "load_gene_sets", "token_and_sample_weights"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bft_trl' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
