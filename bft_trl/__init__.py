"""Balanced Fine-Tuning (BFT) for TRL. Public names load what they need when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bft_trl.config import BFTConfig as BFTConfig
    from bft_trl.data.gene_sets import load_gene_sets as load_gene_sets
    from bft_trl.trainer import BFTTrainer as BFTTrainer

__version__ = "0.1.0"
__all__ = ["BFTConfig", "BFTTrainer", "load_gene_sets"]

# torch and trl take seconds to import: only the name that is asked for pays.
_MODULES = {"BFTConfig": "bft_trl.config", "BFTTrainer": "bft_trl.trainer", "load_gene_sets": "bft_trl.data.gene_sets"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bft_trl' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
