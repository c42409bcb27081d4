"""A step waits for the device no more often than one of `SFTTrainer`: counted by CUDA, and on a CPU by a stand-in."""

import warnings
from collections import Counter

import pytest
import torch
import trl.trainer.utils
from conftest import DEVICES, build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from bft_trl import BFTTrainer

STEPS, MICRO_BATCHES = 2, 3


class Waits(TorchDispatchMode):
    """Counts the operations for which the host waits for a GPU: values it reads, and sizes that depend on values."""

    SYNCHRONIZE = ("_local_scalar_dense", "nonzero", "masked_select", "masked_scatter_backward", "equal", "_unique2")

    def __init__(self):
        super().__init__()
        self.counts, self.counting = Counter(), False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name.removeprefix("_").startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self.add(f"{name} by a mask")
        elif name in self.SYNCHRONIZE or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.add(name)
        return func(*args, **kwargs)

    def add(self, name):
        self.counts[name] += self.counting


class Copies(TorchFunctionMode):
    """Counts the copies between host and device in `waits`; between CPU tensors they are no operations."""

    COPIES = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.new_tensor, torch.tensor)

    def __init__(self, waits):
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        number = func is torch.where and not all(isinstance(arg, torch.Tensor) for arg in args)
        if func in self.COPIES or number:
            self.waits.add(func.__name__)
        return func(*args, **(kwargs or {}))


class CountSteps(TrainerCallback):
    """Switches `count` on at the first step, and off at the end of the last one, before the log of the run."""

    def __init__(self, count):
        self.count = count

    def on_step_begin(self, args, state, control, **kwargs):
        self.count(True)

    def on_step_end(self, args, state, control, **kwargs):
        self.count(state.global_step < STEPS)


def waits_on_cpu(trainer):
    waits = Waits()
    trainer.add_callback(CountSteps(lambda on: setattr(waits, "counting", on)))
    collate = trainer.data_collator

    def on_the_host(rows):
        counting, waits.counting = waits.counting, False
        batch = collate(rows)
        waits.counting = counting
        return batch

    trainer.data_collator = on_the_host
    with waits, Copies(waits):
        trainer.train()
    return waits.counts


def waits_on_cuda(trainer):
    trainer.add_callback(CountSteps(lambda on: torch.cuda.set_sync_debug_mode("warn" if on else "default")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    found = [entry for entry in caught if "synchronizing CUDA operation" in str(entry.message)]
    return Counter(f"{entry.filename}:{entry.lineno}" for entry in found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"lm_head_backend": "trl"},
        {"lm_head_backend": "trl", "loss_type": "nll"},
        {"bft_version": "v3"},
        {"log_samples": True, "weight_column": "weight", "metrics_by_column": "kind"},
        {"loss_type": "eaft"},
        {"anchor_coef": 0.1},
    ],
    ids=str,
)
def test_no_more_waits_than_sft(options, packing, device, tmp_path, monkeypatch):
    monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: True)  # TRL's head as on a GPU
    rows = [row | {"weight": 1.5, "kind": row["prompt"][0]} for row in sample_rows(24)]
    common = {"max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": MICRO_BATCHES}
    common |= {"packing": packing, "max_length": 96, "logging_steps": 100, "optim": "sgd", "use_cpu": device == "cpu"}
    shared = {"bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    arguments = SFTConfig(str(tmp_path), save_strategy="no", disable_tqdm=True, **shared, **common)
    found = []
    for kind, args in ((SFTTrainer, arguments), (BFTTrainer, build_config(tmp_path, **common, **options))):
        trainer = kind(
            build_model(),
            args=args,
            train_dataset=Dataset.from_list(rows if kind is BFTTrainer else sample_rows(24)),
            processing_class=build_tokenizer(),
            peft_config=LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        found.append(waits_on_cpu(trainer) if device == "cpu" else waits_on_cuda(trainer))
    sft, bft = found
    forwards = STEPS * MICRO_BATCHES
    assert sft.total() >= 8 * forwards  # TRL's own are seen
    # An anchor needs the forward pass of the base model too, for whose mask transformers reads two values.
    assert bft.total() <= sft.total() + (2 * forwards if "anchor_coef" in options else 0), (bft, sft)
