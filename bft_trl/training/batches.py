"""A batch as the loss takes it: the head's output, the documents, and the rows that its samples came from."""

from typing import Any, NamedTuple

import torch

from bft_trl.weighting import SupervisedTokens, supervised_tokens


class RecordingForward:
    """Calls the model, with the LM head of this trainer, and keeps the output of that head."""

    def __init__(self, model: torch.nn.Module, backend: str) -> None:
        self.model = model
        self.head: bool | str = backend if backend == "frozen" else True
        self.fused_output: Any = None

    def __call__(self, **inputs: Any) -> Any:
        if not inputs.get("fused_lm_head"):
            return self.model(**inputs)
        self.fused_output = self.model(**inputs | {"fused_lm_head": self.head})
        return self.fused_output


class Targets(NamedTuple):
    """What is known of a batch beside its log-probabilities."""

    input_ids: torch.Tensor  # (B, S)
    documents: torch.Tensor | None  # (B, S-1)
    row_numbers: torch.Tensor | None  # (B, S), of the data

    def rows_of(self, tokens: SupervisedTokens, mask: torch.Tensor) -> torch.Tensor | None:
        """(samples,) the row of each sample."""
        if self.row_numbers is None:
            return None
        return self.supervised(self.row_numbers, mask)[tokens.lengths.cumsum(0) - tokens.lengths]

    def supervised(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, S) -> (N,) at the supervised tokens; prompt learning puts virtual tokens before each row of the mask."""
        missing = mask.shape[1] - values.shape[1]
        return torch.nn.functional.pad(values, (missing, 0))[mask]  # a negative padding cuts: the first has no target


def target_documents(inputs: dict[str, Any]) -> torch.Tensor | None:
    """(B, S-1) index of the document of each target token, or None where every row is one document."""
    if inputs.get("seq_idx") is not None:
        return inputs["seq_idx"][:, 1:]
    if inputs.get("position_ids") is not None and inputs.get("attention_mask") is None:
        return (inputs["position_ids"] == 0).cumsum(1)[:, 1:]
    return None


def count_samples(batch: dict[str, Any]) -> int:
    mask = batch["labels"][:, 1:] != -100
    return len(supervised_tokens(mask, mask, target_documents(batch)).lengths)
