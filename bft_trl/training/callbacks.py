"""Callbacks of the trainer: gradients that are not finite, warnings, and the sample log."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.state import PartialState
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from bft_trl.config import BFTConfig
from bft_trl.training.metrics import SUMS
from bft_trl.training.sample_log import SampleLog

logger = get_logger(__name__)

# Threshold of this project, not measured.
FEW_WINDOWED = 0.05


def weights_tokens(objective: Mapping[str, Any]) -> bool:
    """Returns whether the loss of `BFTConfig.objective()` has token weights."""
    return objective["loss_type"] == "dft" or (objective["loss_type"] == "bft" and objective["token_weighting"])


def window_advice(objective: Mapping[str, Any], fraction: float) -> str | None:
    """Returns advice if the objective has a window that acts only in a small `fraction` of the samples, else None."""
    uses_window = objective["sample_weighting"] or objective["bft_version"] == "v3"
    if objective["loss_type"] != "bft" or not uses_window or fraction >= FEW_WINDOWED:
        return None
    return (
        f"Only {fraction:.0%} of the samples are long enough for the confidence window of "
        f"`group_size={objective['group_size']}` supervised tokens to act; for the others the group confidence is the "
        "mean over the sample. Lower `group_size` to below the typical answer length if that is not meant."
    )


def vanishing_remedy(objective: Mapping[str, Any]) -> str:
    """Returns what to try, and is not set yet, if the token weights of an objective are near zero."""
    remedies = ["a base model that knows the field better"]
    if objective["loss_type"] == "bft" and objective["min_token_weight"] < 0.1:
        remedies.insert(0, "a floor such as `min_token_weight=0.1`")
    if objective["token_weight_power"] > 0.25:
        remedies.insert(0, "`token_weight_power=0.25`")
    return ", or ".join(filter(None, [", ".join(remedies[:-1]), remedies[-1]]))


def check_finite(sums: torch.Tensor, rows: torch.Tensor | None, step: int) -> None:
    """Raises FloatingPointError if the nll of a sample is not finite in an optimizer step (from 1).

    `sums` are (B, len(SUMS) + 1) of `sum_by_sample`, `rows` (B,) row numbers, None without `log_samples`.
    """
    broken = (~sums[:, SUMS.index("nll")].isfinite()).nonzero().squeeze(1)
    if not len(broken):
        return
    named = "set `log_samples=True` to see which" if rows is None else f"rows {rows[broken].tolist()[:10]}"
    raise FloatingPointError(
        f"The loss is not finite in step {step}, for {len(broken)} samples ({named}). The step was not taken. Check "
        "these samples and the learning rate, then resume from the last checkpoint (`resume_from_checkpoint=True`) "
        "without the samples (0 in `weight_column`) or with a lower `learning_rate`."
    )


class FiniteCheck(TrainerCallback):
    """Stops the training before a step whose loss or gradient is not finite, with one read from the device."""

    def __init__(self) -> None:
        # Of each micro-batch of the step: the sums of `sum_by_sample`, and the row numbers with `log_samples`.
        self.batches: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def check_losses(self, step: int) -> None:
        """Raises FloatingPointError if the nll of a sample of the micro-batches is not finite."""
        sums, rows = zip(*self.batches, strict=True)
        numbers = torch.cat([part.cpu() for part in rows]) if rows[0] is not None else None
        check_finite(torch.cat([part.cpu() for part in sums]), numbers, step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.clear()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradients = [parameter.grad for parameter in kwargs["model"].parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        losses = [sums[:, SUMS.index("nll")].isfinite().all().to(norm.device) for sums, _ in self.batches]
        if torch.stack([norm.isfinite(), *losses]).all():
            return
        if self.batches:
            self.check_losses(state.global_step + 1)
        message = f"The gradient is not finite at step {state.global_step + 1}"
        if getattr(kwargs["optimizer"], "scaler", None) is None:
            raise FloatingPointError(
                f"{message}. The step was not taken. Lower `learning_rate`, or check the number format and the "
                "samples, then resume from the last checkpoint (`resume_from_checkpoint=True`)."
            )
        # float16: the loss scale is too large; the scaler skips the step and lowers the scale.
        logger.warning("%s; the loss scaling of float16 skips it.", message)


class RunWarnings(TrainerCallback):
    """Warns once each of a window that never acts, of vanishing token weights, and of an nll that rises."""

    def __init__(self, args: BFTConfig) -> None:
        self.args = args
        self.given: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.given.clear()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        objective = self.args.objective()
        if not logs or "nll" not in logs or objective["loss_type"] == "nll":
            return
        messages = {"window": window_advice(objective, logs["windowed_fraction"]), "nll": self._nll(state)}
        if weights_tokens(objective) and logs["token_weight"] < 0.01:
            messages["weight"] = (
                f"The mean token weight is {logs['token_weight']:.4f}: the training signal vanishes where the model "
                f"knows little. Try {vanishing_remedy(objective)}."
            )
        for kind, message in messages.items():
            if message and kind not in self.given:
                self.given.add(kind)
                logger.warning(message)

    def _nll(self, state: Any) -> str | None:
        tenth = state.max_steps / 10
        history = [(entry["step"], entry["nll"]) for entry in state.log_history if "nll" in entry]
        start = [nll for step, nll in history if step <= max(tenth, history[0][0])]
        later = history[len(start) :]
        if len(later) < 2:
            return None
        # The last tenth of the run, at least two logs, against its start; 2 % is the noise between batches.
        recent = [nll for step, nll in later[:-2] if step > state.global_step - tenth]
        recent += [nll for _, nll in later[-2:]]
        before, now = sum(start) / len(start), sum(recent) / len(recent)
        if now <= 1.02 * before:
            return None
        return (
            f"The unweighted nll is {now:.3f} at step {state.global_step}, above its start of {before:.3f}: the model "
            f"gets worse on its training text. Try {vanishing_remedy(self.args.objective())}, or a lower "
            "`learning_rate`."
        )


class SampleLogCallback(TrainerCallback):
    """Opens the sample log, without the rows after the checkpoint of a resumed run, and writes it at the end."""

    def __init__(self, log: SampleLog) -> None:
        self.log = log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save:
            self.log.drop_after(state.global_step)
        PartialState().wait_for_everyone()
        self.log.open_last_part()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.log.flush()
