"""What a run is warned of, once each: a window that never acts, a vanishing signal, an nll that rises."""

from typing import Any

import torch

from bft_trl.config import BFTConfig
from bft_trl.training.metrics import total


class RunWarner:
    """Looks at the figures of each log and says what is wrong with the run, each thing once."""

    def __init__(self, args: BFTConfig) -> None:
        self.args = args
        self.samples, self.windowed = 0.0, 0.0
        self.said: set[str] = set()

    def messages(self, logs: dict[str, float], steps: torch.Tensor, state: Any) -> list[str]:
        """The warnings that are new at this log.

        Args:
            logs: the figures that are logged, with `nll`.
            steps: their sums, a row for each optimizer step.
            state: the `TrainerState`. Its history is in the checkpoint too, so a resumed run still knows its start.
        """
        if "nll" not in logs or self.args.loss_type == "nll":
            return []
        found = {
            "window": self._window(steps),
            "vanishing": self._vanishing(logs),
            "rising": self._rising(logs, state),
        }
        new = {key: message for key, message in found.items() if message and key not in self.said}
        self.said |= new.keys()
        return list(new.values())

    @property
    def remedy(self) -> str:
        remedy = (
            "`bft_version='v3'`, a floor such as `min_token_weight=0.1`, or a base model that knows the field better"
        )
        return f"`loss_type='bft'` with {remedy}" if self.args.loss_type == "dft" else remedy

    def _window(self, steps: torch.Tensor) -> str | None:
        args = self.args
        self.samples += total(steps, "samples")
        self.windowed += total(steps, "windowed")
        uses_window = args.loss_type == "bft" and (args.sample_weighting or args.bft_version == "v3")
        # From 20 samples on, a share of 5 % is at least one sample.
        if not uses_window or self.samples < 20 or self.windowed >= 0.05 * self.samples:
            return None
        return (
            f"Only {self.windowed:.0f} of {self.samples:.0f} samples are long enough for the confidence window of "
            f"`group_size={args.group_size}` supervised tokens to act; for the others the group confidence is the "
            "mean over the sample. Lower `group_size` to below the typical answer length if that is not meant."
        )

    def _vanishing(self, logs: dict[str, float]) -> str | None:
        if (self.args.loss_type != "dft" and not self.args.token_weighting) or logs["token_weight"] >= 0.01:
            return None
        return (
            f"The mean token weight is {logs['token_weight']:.4f}: the training signal vanishes where the model knows "
            f"little. Try {self.remedy}."
        )

    def _rising(self, logs: dict[str, float], state: Any) -> str | None:
        tenth = state.max_steps / 10
        history = [(entry["step"], entry["nll"]) for entry in state.log_history if "nll" in entry]
        start = [nll for step, nll in history if step <= max(tenth, history[0][0])]
        later = [*history[len(start) :], (state.global_step, logs["nll"])]
        if not start or len(later) < 2:
            return None
        # A tenth of the run, at least two log points, against its start; 2 % is the noise between batches.
        recent = [nll for step, nll in later[:-2] if step > state.global_step - tenth]
        recent += [nll for _, nll in later[-2:]]
        before, now = sum(start) / len(start), sum(recent) / len(recent)
        if now <= 1.02 * before:
            return None
        return (
            f"The unweighted nll is {now:.3f} at step {state.global_step}, above its start of {before:.3f}: the model "
            f"unlearns the text it is trained on. Try {self.remedy}, or a lower `learning_rate`."
        )
