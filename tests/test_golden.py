"""The authors' recorded losses and gradients, reproduced through BFTTrainer.compute_loss."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_config, build_model, build_tokenizer
from datasets import Dataset

from bft_trl import BFTTrainer

GOLDEN = Path(__file__).parent / "golden"


class RecordedBackbone(torch.nn.Module):
    """A backbone whose hidden states are recorded logits; with an identity LM head they come out again."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, **inputs: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.logits)


def recorded_trainer(logits: torch.Tensor, tmp_path: Path, **config: object) -> BFTTrainer:
    trainer = BFTTrainer(
        build_model(),
        args=build_config(tmp_path, **config),
        train_dataset=Dataset.from_dict({"text": ["some text"]}),
        processing_class=build_tokenizer(),
    )
    vocabulary = logits.shape[-1]
    trainer.model.model = RecordedBackbone(logits)
    head = torch.nn.Linear(vocabulary, vocabulary, bias=False)
    head.weight = torch.nn.Parameter(torch.eye(vocabulary), requires_grad=False)
    trainer.model.get_output_embeddings = lambda: head
    return trainer


@pytest.mark.parametrize(
    ("name", "samples_ratio"),
    [("longer_than_group", 1.0), ("shorter_than_group", 1.0), ("gamma_two_with_empty_row", 3 / 2)],
)
@pytest.mark.parametrize("loss_type", ["bft", "dft"])
def test_golden(name, samples_ratio, loss_type, tmp_path):
    case = np.load(GOLDEN / f"{name}.npz")
    trainer = recorded_trainer(
        torch.tensor(case["logits"]),
        tmp_path,
        loss_type=loss_type,
        group_size=int(case["group_size"]),
        confidence_gamma=float(case["gamma"]),
    )
    labels = torch.tensor(case["labels"])
    inputs = {"input_ids": labels.clamp(min=0), "labels": labels, "attention_mask": torch.ones_like(labels)}
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    # The authors' BFT counts the empty row as a sample; their DFT is a mean over tokens, where it cannot count.
    ratio = samples_ratio if loss_type == "bft" else 1.0
    assert loss.item() == pytest.approx(ratio * case[f"{loss_type}_loss"].item(), abs=1e-5)
    gradient = trainer.model.model.logits.grad
    expected = torch.tensor(ratio * case[f"{loss_type}_grad"])
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()
