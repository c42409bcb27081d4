"""Documents and samples of a batch, and the recorded output of the LM head."""

from typing import Any

import torch
from accelerate.state import GradientState

from bft_trl.weighting import sample_starts


class RecordingForward:
    """Calls the model with the LM head `backend` and keeps the output of the head in `fused_output`.

    With `top_entropy` the frozen head scores it too. With `adapted`, the same model without its wrappers, the forward
    pass is done without adapter first, and the frozen head scores the divergence from it.
    """

    def __init__(
        self, model: torch.nn.Module, backend: str, *, top_entropy: bool = False, adapted: Any = None
    ) -> None:
        self.model, self.adapted = model, adapted
        self.requested: dict[str, Any] = {"top_entropy": True} if top_entropy else {}
        self.head: bool | str = backend if backend == "frozen" else True
        self.fused_output: Any = None

    def __call__(self, **inputs: Any) -> Any:
        if not inputs.get("fused_lm_head"):
            return self.model(**inputs)
        if self.adapted is not None:
            self.requested["reference"] = self._reference(**inputs | {"fused_lm_head": "hidden"})
        self.fused_output = self.model(**inputs | self.requested | {"fused_lm_head": self.head})
        return self.fused_output

    @torch.no_grad()
    def _reference(self, **inputs: Any) -> torch.Tensor:
        """The hidden states without the adapter, and without the base model's dropout."""
        training = self.adapted.training
        trained = {parameter: parameter.requires_grad for parameter in self.adapted.parameters()}
        self.adapted.eval()
        try:
            with self.adapted.disable_adapter():
                return self.model(**inputs)
        finally:
            self.adapted.train(training)
            for parameter, required in trained.items():  # PEFT leaves all of the adapter trainable
                parameter.requires_grad_(required)


def target_documents(inputs: dict[str, Any]) -> torch.Tensor | None:
    """(B, S-1) index of the document of each target token, or None if every row is one document."""
    if inputs.get("seq_idx") is not None:
        return inputs["seq_idx"][:, 1:]
    positions = inputs.get("position_ids")
    if positions is not None and positions.dim() == 2 and inputs.get("attention_mask") is None:
        return (positions == 0).cumsum(1)[:, 1:]
    return None


def count_samples(batch: dict[str, Any]) -> torch.Tensor:
    """Returns the number of documents with a supervised token, a scalar on the device of the batch."""
    return sample_starts(batch["labels"][:, 1:] != -100, target_documents(batch)).sum()


def mask_repeated_rows(batches: list[dict[str, Any]], state: GradientState, *, ranks: int, rank: int) -> None:
    """Masks the labels of the rows that accelerate repeats in the last batch of an epoch to fill all ranks."""
    if ranks == 1 or not (batches and state.end_of_dataloader and state.remainder > 0):
        return
    labels = batches[-1]["labels"]
    if target_documents(batches[-1]) is None:  # rows of a padding-free batch cannot be told apart from documents
        labels[max(state.remainder - rank * len(labels), 0) :] = -100
