"""The authors' recorded losses and gradients, reproduced through BFTTrainer.compute_loss."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from conftest import build_config, build_model, build_tokenizer
from datasets import Dataset
from peft import LoraConfig

from bft_trl import BFTTrainer

GOLDEN = Path(__file__).parent / "golden"


class RecordedBackbone(torch.nn.Module):
    """A backbone whose hidden states are recorded logits; with an identity LM head they come out again."""

    def __init__(self, logits: torch.Tensor, base: torch.Tensor | None = None) -> None:
        super().__init__()
        self.logits, self.base, self.adapted = torch.nn.Parameter(logits), base, True

    def forward(self, **inputs: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.logits if self.adapted else self.base)

    @contextmanager
    def disable_adapter(self):
        self.adapted = False
        yield
        self.adapted = True


def recorded_trainer(
    logits: torch.Tensor, tmp_path: Path, base: torch.Tensor | None = None, **config: object
) -> BFTTrainer:
    """`base` holds the logits of the base model, which an anchor needs."""
    trainer = BFTTrainer(
        build_model(),
        args=build_config(tmp_path, **config),
        train_dataset=Dataset.from_dict({"text": ["some text"]}),
        processing_class=build_tokenizer(),
        peft_config=None if base is None and config.get("loss_type") != "eaft" else LoraConfig(task_type="CAUSAL_LM"),
    )
    vocabulary, backbone = logits.shape[-1], RecordedBackbone(logits, base)
    model = trainer.model.get_base_model() if base is not None or config.get("loss_type") == "eaft" else trainer.model
    model.model, trainer.model.disable_adapter = backbone, backbone.disable_adapter
    head = torch.nn.Linear(vocabulary, vocabulary, bias=False)
    head.weight = torch.nn.Parameter(torch.eye(vocabulary, dtype=logits.dtype), requires_grad=False)
    model.get_output_embeddings = lambda: head
    return trainer


def loss_and_gradient(trainer: BFTTrainer, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of the recorded logits as one step, and its gradient with respect to them."""
    inputs = {"input_ids": labels.clamp(min=0), "labels": labels, "attention_mask": torch.ones_like(labels)}
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    (logits,) = (parameter for name, parameter in trainer.model.named_parameters() if name.endswith(".logits"))
    return loss.detach(), logits.grad


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
    loss, gradient = loss_and_gradient(trainer, torch.tensor(case["labels"]))
    # The authors' BFT counts the empty row as a sample; their DFT is a mean over tokens, where it cannot count.
    ratio = samples_ratio if loss_type == "bft" else 1.0
    assert loss.item() == pytest.approx(ratio * case[f"{loss_type}_loss"].item(), abs=1e-5)
    expected = torch.tensor(ratio * case[f"{loss_type}_grad"])
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["peers_small", "peers_odd"])
@pytest.mark.parametrize(
    ("peer", "options"),
    [
        ("dft", {"loss_type": "dft"}),
        ("eaft", {"loss_type": "eaft"}),
        ("eaft_alpha_half", {"loss_type": "eaft", "token_weight_power": 0.5}),
        ("asft", {"loss_type": "dft", "anchor_coef": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_golden_peers(name, peer, options, tmp_path):
    case = np.load(GOLDEN / f"{name}.npz")
    base = torch.tensor(case["ref_logits"]) if peer == "asft" else None
    trainer = recorded_trainer(torch.tensor(case["logits"]), tmp_path, base, **options)
    loss, gradient = loss_and_gradient(trainer, torch.tensor(case["labels"]))
    assert loss.item() == pytest.approx(case[f"{peer}_loss"].item(), abs=1e-5)
    expected = torch.tensor(case[f"{peer}_grad"])
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("loss_type", ["bft", "nll", "dft", "eaft"])
@pytest.mark.parametrize(("power", "anchor"), [(1.0, 0.3), (0.5, 0.0), (0.25, 1.5)])
@pytest.mark.parametrize("version", ["v1", "v3"])
def test_objectives_equal_the_loop_reference(loss_type, power, anchor, version, tmp_path):
    """Float64, odd shapes: rows of 7, 1, 0 and 3 supervised tokens, windows of 3, a vocabulary of 29."""
    if version == "v3" and loss_type != "bft":
        pytest.skip("the version acts under bft only")
    generator = torch.Generator().manual_seed(7)
    logits, base = (3 * torch.randn(4, 9, 29, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(29, (4, 9), generator=generator)
    for row, count in enumerate((7, 1, 0, 3)):
        labels[row, torch.randperm(8, generator=generator)[count:] + 1] = -100
    twin = logits.clone().requires_grad_()
    expected = reference.objective(
        twin,
        labels,
        base if anchor else None,
        loss_type=loss_type,
        power=power,
        anchor=anchor,
        version=version,
        group_size=3,
        floor=0.05,
    )
    expected.backward()
    options = {"loss_type": loss_type, "token_weight_power": power, "anchor_coef": anchor, "bft_version": version}
    options |= {"group_size": 3, "min_token_weight": 0.05}
    trainer = recorded_trainer(logits, tmp_path, base, **options)
    loss, gradient = loss_and_gradient(trainer, labels)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradient, twin.grad, rtol=1e-7, atol=1e-10)
