"""What the objective cannot honour: said in words before anything expensive starts."""

from typing import Any

import torch

from bft_trl.config import BFTConfig


def check_arguments(args: Any, kwargs: dict[str, Any], model: Any) -> None:
    """Raises TypeError or ValueError for arguments of the trainer that exclude each other."""
    if not isinstance(args, BFTConfig):
        raise TypeError(f"`args` must be a `BFTConfig`, got `{type(args).__name__}`: replace the class name.")
    if kwargs.get("compute_loss_func") is not None:
        raise ValueError(
            "`compute_loss_func` replaces the loss that `BFTTrainer` is there for. Remove it, or choose the "
            "objective with `BFTConfig(loss_type=...)`."
        )
    peft_config = kwargs.get("peft_config") or getattr(model, "active_peft_config", None)
    if getattr(peft_config, "is_prompt_learning", False) and (args.packing or args.padding_free):
        raise ValueError(
            f"`{type(peft_config).__name__}` puts virtual tokens before each row, which breaks the documents of "
            "packed and padding-free batches. Set `packing=False` and `padding_free=False`, or use LoRA."
        )


def check_trainable(model: torch.nn.Module) -> None:
    """Raises ValueError where nothing would be learned."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "The model has no trainable parameter, so nothing would be learned. Pass a `peft_config`, load the "
            "adapter with `PeftModel.from_pretrained(..., is_trainable=True)`, or unfreeze some parameters."
        )


def check_weights(weights: list[float], loss_type: str, column: str | None) -> None:
    """Raises ValueError where the loss knows no sample weights."""
    if loss_type != "bft" and any(weight not in (0, 1) for weight in weights):
        raise ValueError(
            f"`weight_column={column!r}` multiplies into the sample weights of `loss_type='bft'`; the mean over "
            f"tokens of `loss_type={loss_type!r}` has none. Set `weight_column=None`, or weights of 0 and 1."
        )


def keep_gradients(model: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in an evaluation on a CPU with AVX512-BF16.

    The kernel for repacked weights (0.50) passes no gradient to its input: after the first evaluation all layers below
    would silently stop to learn.
    """
    for name, module in model.named_modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                f"`model`: the 4-bit weights of {name} have been used for inference on this CPU, and bitsandbytes has "
                "repacked them so that no gradient passes. Load the model anew before training."
            )


def check_parallelism(config: Any) -> None:
    if config is not None and (config.sp_enabled or config.cp_enabled or config.tp_enabled):
        raise ValueError(
            "Sequence, context and tensor parallelism are not supported: a sample's confidence window needs all its "
            "tokens on one rank. Use data parallelism (DDP, FSDP or ZeRO) instead of `parallelism_config`."
        )


def resolve_best_metric(args: BFTConfig, eval_dataset: Any) -> None:
    """With several evaluation sets there is no `eval_nll`, only one per set: ask for a choice at once."""
    if not isinstance(eval_dataset, dict) or args.metric_for_best_model not in ("nll", "eval_nll"):
        return
    names = [f"eval_{name}_nll" for name in eval_dataset]
    if args.load_best_model_at_end or args.save_strategy == "best":
        raise ValueError(
            f"`metric_for_best_model='{args.metric_for_best_model}'` does not exist with several evaluation sets: "
            f"choose one of {names}."
        )
    args.metric_for_best_model = None
