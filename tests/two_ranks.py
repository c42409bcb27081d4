"""Two gloo ranks against one process: the cases, and as a script the side of a rank, which saves the results.

torchrun --nproc_per_node=2 tests/two_ranks.py FOLDER CASE [CASE ...]
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from conftest import build_config, build_model, build_tokenizer, sample_rows
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.tensor import DTensor

from bft_trl import BFTTrainer
from bft_trl.training.sample_log import FOLDER, read_part

METRICS = (
    "nll",
    "token_weight",
    "sample_weight",
    "group_confidence",
    "group_confidence_min",
    "effective_sample_size",
    "windowed_fraction",
)
BY_VALUE = ("nll/a", "sample_weight/b", "group_confidence/b")
SGD = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 3}
LORA = {"r": 4, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
ANCHOR = {"loss_type": "bft", "token_weight_power": 0.5, "anchor_coef": 0.5}
EAFT = {"loss_type": "eaft", "token_weight_power": 0.5, "anchor_coef": 0.5}
PACKED = {"packing": True, "max_length": 128}  # 4 rows of 2, 2, 3 and 1 documents


def zero(stage: int) -> dict[str, Any]:
    """A DeepSpeed configuration that lets SGD through, and shards even the smallest weight."""
    return {
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


# For each case the options of one process, and how two ranks cut the same step.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all weights": ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2}),
    # 5 rows fill neither batch nor ranks: accelerate repeats three, which must count nowhere.
    "all weights, ragged": ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2}),
    "lora": ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2}),
    "lora, packed": ({"per_device_train_batch_size": 4, **PACKED}, {"per_device_train_batch_size": 1, **PACKED}),
    # The second rank's rows have no supervised token at all; both must still step together.
    "lora, masked rank": ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 2}),
    "lora, anchor": ({"per_device_train_batch_size": 8, **ANCHOR}, {"per_device_train_batch_size": 2, **ANCHOR}),
    "lora, anchor, fsdp2": (
        {"per_device_train_batch_size": 8, **ANCHOR},
        {"per_device_train_batch_size": 2, **ANCHOR},
    ),
    "lora, eaft": ({"per_device_train_batch_size": 8, **EAFT}, {"per_device_train_batch_size": 2, **EAFT}),
    "lora, fsdp2": ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2}),
    "all weights, fsdp2": ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2}),
    "lora, zero2": ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2, "deepspeed": zero(2)}),
    "lora, zero3": ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2, "deepspeed": zero(3)}),
}


def case_trainer(case: str, folder: Path, options: dict[str, Any], ranks: int) -> BFTTrainer:
    rows = sample_rows(5 if "ragged" in case else 8)
    rows[3]["completion"] = ""  # only its end-of-text is supervised: a sample of one token
    options = (
        SGD
        | {
            "metrics_by_column": "kind",
            "log_samples": True,
            "gradient_accumulation_steps": 2 if ranks > 1 and "masked" not in case else 1,
        }
        | options
    )
    dataset: Any = with_kinds(rows)
    if "masked" in case:
        options |= {
            "metrics_by_column": None,
            "log_samples": False,
            "max_length": None,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        dataset = masked_rows().to_iterable_dataset()
    trainer = BFTTrainer(
        build_model(),
        args=build_config(folder, **options, **({"ddp_backend": "gloo"} if ranks > 1 else {})),
        train_dataset=dataset,
        # Packed evaluation may repeat rows on several ranks, see docs/limits.md.
        eval_dataset=None if "masked" in case or "packed" in case else with_kinds(sample_rows(7, seed=3)),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(**LORA) if "lora" in case else None,
    )
    if ranks > 1 and "fsdp2" in case:
        use_fsdp2_on_cpu(trainer)
    return trainer


def with_kinds(rows: list[dict[str, str]]) -> Dataset:
    return Dataset.from_list([row | {"kind": "aab"[place % 3]} for place, row in enumerate(rows)])


def masked_rows() -> Dataset:
    """24 rows of ids, by twos: with and without labels. A rank of two gets the one kind, its peer the other."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 200, (24, 20), generator=generator)
    labels = torch.where(torch.arange(20) >= 12, ids, -100)
    labels[(torch.arange(24) // 2) % 2 == 1] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def use_fsdp2_on_cpu(trainer: BFTTrainer) -> None:
    """accelerate offers FSDP to accelerators only; its code runs on gloo all the same."""
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
    )
    trainer.is_fsdp_enabled = True


def outcome(trainer: BFTTrainer) -> dict[str, Any]:
    """Trains, evaluates, and returns losses, gradient norms, metrics and weights."""
    trainer.train()
    if trainer.is_deepspeed_enabled:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(trainer.model.parameters())):
            return measured(trainer)
    return measured(trainer)


def measured(trainer: BFTTrainer) -> dict[str, Any]:
    parameters = [parameter.detach() for parameter in trainer.model.parameters() if parameter.requires_grad]
    sharded = {isinstance(parameter, DTensor) for parameter in parameters} == {True}
    full = [parameter.full_tensor() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
    names = ("loss", "grad_norm", *METRICS, *BY_VALUE)
    result = {name: [entry[name] for entry in trainer.state.log_history if name in entry] for name in names}
    if trainer.eval_dataset is not None:
        evaluation = trainer.evaluate()
        result |= {f"eval_{name}": evaluation[f"eval_{name}"] for name in (*METRICS, *BY_VALUE)}
    trainer.accelerator.wait_for_everyone()  # each rank has written its record
    if trainer.args.log_samples:
        parts = [read_part(file).to_pandas() for file in Path(trainer.args.output_dir, FOLDER).glob("*.parquet")]
        record = pd.concat(parts).sort_values(["step", "row"])
        result["record"] = torch.tensor(record[["step", "row", "nll", "sample_weight"]].to_numpy("float64"))
    return result | {"weights": torch.cat([weight.flatten() for weight in full]), "sharded": sharded}


def main() -> None:
    folder = Path(sys.argv[1])
    results = {}
    for case in sys.argv[2:]:
        trainer = case_trainer(case, folder, CASES[case][1], ranks=2)
        results[case] = outcome(trainer) | {"head": trainer.lm_head_backend}
    if trainer.is_world_process_zero():
        torch.save(results, folder / "two_ranks.pt")


if __name__ == "__main__":
    main()
