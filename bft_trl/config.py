"""`BFTConfig`: what BFT adds to `trl.SFTConfig`."""

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from trl import SFTConfig

# What a checkpoint and a model card say about the objective, in this order.
OBJECTIVE_FIELDS = (
    "loss_type",
    "bft_version",
    "token_weighting",
    "sample_weighting",
    "group_size",
    "confidence_mean",
    "confidence_gamma",
    "token_weight_power",
    "min_token_weight",
    "anchor_coef",
)


@dataclass
class BFTConfig(SFTConfig):
    r"""
    Configuration class for the [`BFTTrainer`].

    It inherits every parameter from `trl.SFTConfig` and adds the choice of objective. With `load_best_model_at_end`
    the default metric is the unweighted `eval_nll`; compare *objectives* by task scores, since nll favors SFT by
    construction. The options from `bft_version` to `min_token_weight` act under `loss_type="bft"` only, except
    `token_weight_power`, which "dft" and "eaft" have as well. The help text of each field says what it
    means (`bft-trl train --help`).
    """

    loss_type: str = field(
        default="bft",
        metadata={
            "help": "Objective: 'bft' (Balanced Fine-Tuning, https://arxiv.org/abs/2511.21075), 'nll' (plain SFT), "
            "'dft' (Dynamic Fine-Tuning, https://arxiv.org/abs/2508.05629) or 'eaft' (tokens weighed by the entropy "
            "of the 20 most likely tokens; needs a frozen LM head).",
            "choices": ["bft", "nll", "dft", "eaft"],
        },
    )
    bft_version: str = field(
        default="v1",
        metadata={
            "help": "'v1' weighs a token by its probability, 'v3' by its probability relative to the tokens around "
            "it, which keeps learning where the model knows little.",
            "choices": ["v1", "v3"],
        },
    )
    token_weighting: bool = field(default=True, metadata={"help": "Weigh tokens. False is the sample-only ablation."})
    sample_weighting: bool = field(default=True, metadata={"help": "Weigh samples. False is the token-only ablation."})
    group_size: int = field(
        default=256,
        metadata={"help": "Window length of the group confidence in supervised tokens; acts on longer samples only."},
    )
    confidence_mean: str = field(
        default="geometric",
        metadata={
            "help": "Mean inside a v1 window: 'geometric' as in the reference code, 'arithmetic' as in the paper.",
            "choices": ["geometric", "arithmetic"],
        },
    )
    confidence_gamma: float = field(
        default=1.0, metadata={"help": "Exponent on the minimum group confidence of v1: sample weight = 1 - p**gamma."}
    )
    token_weight_power: float = field(
        default=1.0,
        metadata={
            "help": "Exponent on the token weight of 'dft', 'eaft' and 'bft': 1 is the papers, 0 is no token "
            "weighting. Try 0.5 where the model knows little: weights near 0 grow."
        },
    )
    min_token_weight: float = field(
        default=0.0, metadata={"help": "Floor on the token weight, 0 is the paper. Try 0.1 where the signal vanishes."}
    )
    anchor_coef: float = field(
        default=0.0,
        metadata={
            "help": "Adds this multiple of KL(base model || policy) per supervised token to any objective; 'dft' with "
            "0.1 is ASFT. The base model is the model without its adapter."
        },
    )
    lm_head_backend: str = field(
        default="auto",
        metadata={
            "help": "How the LM head is computed, for every objective: 'frozen' forms the gradient in the forward "
            "pass (faster, equal up to rounding, for a head that is not trained), 'trl' is TRL's fused head, 'auto' "
            "takes 'frozen' if the head is frozen.",
            "choices": ["auto", "frozen", "trl"],
        },
    )

    weight_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the training data that multiplies into the sample weight of 'bft'; the loss is still "
            "divided by the number of samples. 0 drops the row, under every objective."
        },
    )
    metrics_by_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of few values, such as the source: nll, sample weight and group confidence are also "
            "logged for each value."
        },
    )
    log_samples: bool = field(
        default=False,
        metadata={
            "help": "Log nll, confidence and weight of each sample to `output_dir`/_samples, for `bft-trl "
            "hard-samples`. The log holds numbers only, and `push_to_hub` skips it."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "As in `transformers`, where it is True: it reads the loss of every micro-batch from the device. "
            "Here a loss that is not finite ends the training."
        },
    )

    def __post_init__(self) -> None:
        self._check_objective()
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor={self.label_smoothing_factor}` cannot be combined with the per-token "
                "log-probabilities that all objectives here are made of. Set it to 0."
            )
        if self.packing and self.packing_strategy == "wrapped":
            raise ValueError(
                "`packing_strategy='wrapped'` cuts documents without leaving a trace of where, so samples can be "
                "neither weighed nor counted. Use `packing_strategy='bfd'`."
            )
        self.metric_for_best_model: str | None
        self.greater_is_better: bool | None
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "eval_nll"  # the objectives' own losses cannot be compared
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # transformers takes any name that does not end in "loss" for a score; "nll/go" is that of a column value.
            self.greater_is_better = not self.metric_for_best_model.split("/")[0].endswith(("nll", "loss"))
        super().__post_init__()
        secret = {"token", "use_auth_token"} & set(self.model_init_kwargs or {})
        if secret:
            raise ValueError(
                f"`model_init_kwargs` holds {secret.pop()!r}, which checkpoints and logs would show. Leave it out: "
                "set HF_TOKEN in the environment, log in with `hf auth login`, or pass a loaded model."
            )

    def _check_objective(self) -> None:
        for name in ("loss_type", "bft_version", "confidence_mean", "lm_head_backend"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            # TRL's own alias for "nll", which SFTConfig still translates with a deprecation warning.
            if getattr(self, name) not in (*choices, *(["chunked_nll"] if name == "loss_type" else [])):
                raise ValueError(f"`{name}={getattr(self, name)!r}` is not known: choose one of {choices}.")
        for name in ("token_weighting", "sample_weighting"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}={getattr(self, name)!r}` must be True or False.")
        if (
            not hasattr(self.group_size, "__index__")
            or not _is_number(self.group_size)
            or not 1 <= self.group_size < 2**31
        ):
            raise ValueError(
                f"`group_size={self.group_size!r}` must be a whole number of supervised tokens, 1 or more; "
                "the paper uses 256."
            )
        if not _is_number(self.confidence_gamma) or not 0 < self.confidence_gamma < math.inf:
            raise ValueError(
                f"`confidence_gamma={self.confidence_gamma!r}` must be a number above 0 (1 is the paper)."
            )
        if not _is_number(self.token_weight_power) or not 0 <= self.token_weight_power < math.inf:
            raise ValueError(
                f"`token_weight_power={self.token_weight_power!r}` must be a number of 0 or more (1 is the papers)."
            )
        if not _is_number(self.anchor_coef) or not 0 <= self.anchor_coef < math.inf:
            raise ValueError(f"`anchor_coef={self.anchor_coef!r}` must be a number of 0 or more (ASFT: 0.1).")
        if self.needs_frozen_head and self.lm_head_backend == "trl":
            raise ValueError(
                f"`{self.needs_frozen_head}` needs the frozen LM head, which `lm_head_backend='trl'` excludes. Set it "
                "to 'auto'."
            )
        if not _is_number(self.min_token_weight) or not 0 <= self.min_token_weight <= 1:
            raise ValueError(f"`min_token_weight={self.min_token_weight!r}` must lie in [0, 1] (0 is the paper).")
        if self.bft_version == "v3" and (self.confidence_mean != "geometric" or self.confidence_gamma != 1):
            raise ValueError(
                f"`confidence_mean={self.confidence_mean!r}` and `confidence_gamma={self.confidence_gamma}` belong to "
                "`bft_version='v1'`; v3 has an arithmetic mean and no gamma by definition. Leave both at their "
                "defaults."
            )
        self.group_size = int(self.group_size)  # also of numpy, which JSON would not take
        for name in ("confidence_gamma", "token_weight_power", "min_token_weight", "anchor_coef"):
            setattr(self, name, float(getattr(self, name)))

    # A dataclass makes a representation of its own, with the token in it; that of `TrainingArguments` hides it.
    __repr__ = SFTConfig.__str__

    def __reduce_ex__(self, protocol: Any) -> Any:
        # `Trainer` writes its arguments beside the weights with torch.save, which pickles with protocol 2. Copies and
        # spawned workers use a later protocol and keep the token.
        function, arguments, state, *rest = super().__reduce_ex__(protocol)
        if protocol == torch.serialization.DEFAULT_PROTOCOL:
            state = state | {"hub_token": None}
        return function, arguments, state, *rest

    @property
    def needs_frozen_head(self) -> str | None:
        """The option, with its value, that only the frozen LM head can serve."""
        if self.anchor_coef:
            return f"anchor_coef={self.anchor_coef}"
        return f"loss_type={self.loss_type!r}" if self.loss_type == "eaft" else None

    def weighting(self) -> dict[str, Any]:
        """The options of `token_and_sample_weights`, by name."""
        return {name: value for name, value in self.objective().items() if name != "anchor_coef"}

    def objective(self) -> dict[str, Any]:
        """The fields that define the loss, by name: what goes into checkpoints and model cards."""
        return {name: getattr(self, name) for name in OBJECTIVE_FIELDS}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
