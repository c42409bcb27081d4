"""`BFTTrainer`: `trl.SFTTrainer` with the BFT reduction of the per-token log-probabilities, and its metrics."""

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from bft_trl.atomic import CHECKSUMS, exclusive, replacing_folder, write_text
from bft_trl.checkpoints import (
    check_checkpoint,
    check_output_dir,
    check_same_objective,
    last_complete_checkpoint,
    saving_into,
    write_checksums,
)
from bft_trl.config import BFTConfig
from bft_trl.dataset_checks import check_dataset, has_target, no_supervised_token
from bft_trl.lm_head import frozen_head_obstacle, use_frozen_head
from bft_trl.metrics import figures, no_samples, pooled, sums_by_row, total
from bft_trl.model_card import CARD_NAMES, PAPERS, complete_card, objective_section
from bft_trl.warner import RunWarner
from bft_trl.weighting import SupervisedTokens, Weights, bft_weights, supervised_tokens

logger = get_logger(__name__)

# Marks a row through TRL's preparation, so that dropped rows can be named.
_ROW = "_bft_row"


class BFTTrainer(SFTTrainer):
    """
    Trainer for Balanced Fine-Tuning (BFT, https://arxiv.org/abs/2511.21075).

    It takes everything that `trl.SFTTrainer` takes. The only change is the reduction of the per-token
    log-probabilities: with `loss_type="bft"` each token is scaled by its weight, each sample by its own, and the loss
    is the mean over the samples of the whole optimizer step (all micro-batches and ranks; a packed document is a
    sample). With `"nll"` and `"dft"` the loss is TRL's own, and the same metrics are logged beside it. Where the LM
    head is not trained, every objective takes its log-probabilities from [`bft_trl.lm_head`], which saves time and
    memory; with `lm_head_backend="trl"` `"nll"` and `"dft"` equal TRL bit for bit.

    Logged in training (pooled over the steps since the last log) and in evaluation (exact over the set, with `eval_`):
    `nll` (unweighted, nats per token), the means `token_weight`, `sample_weight` and `group_confidence`,
    `group_confidence_min`, `effective_sample_size` = (sum s)^2 / sum s^2 per step or evaluation set, and
    `windowed_share`, the share of samples that are long enough for the confidence window to act.

    Raises:
        ValueError: at construction, for whatever the objective cannot honour, and for data without a supervised token.
    """

    _tag_names = ("trl", "bft")

    def __init__(
        self,
        model: Any,
        args: BFTConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = BFTConfig(f"{name.rstrip('/').split('/')[-1]}-BFT")
        if not isinstance(args, BFTConfig):
            raise TypeError(f"`args` must be a `BFTConfig`, got `{type(args).__name__}`: replace the class name.")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "`compute_loss_func` replaces the loss that `BFTTrainer` is there for. Remove it, or choose the "
                "objective with `BFTConfig(loss_type=...)`."
            )
        check_output_dir(Path(args.output_dir))
        if train_dataset is not None:
            check_dataset(train_dataset, args, kwargs.get("formatting_func"), "train")
        peft_config = kwargs.get("peft_config") or getattr(model, "active_peft_config", None)
        if getattr(peft_config, "is_prompt_learning", False) and (args.packing or args.padding_free):
            raise ValueError(
                f"`{type(peft_config).__name__}` puts virtual tokens before each row, which breaks the documents of "
                "packed and padding-free batches. Set `packing=False` and `padding_free=False`, or use LoRA."
            )
        _resolve_best_metric(args, eval_dataset)

        loss_type = args.loss_type
        self._name = CARD_NAMES[loss_type]
        self._paper = PAPERS[loss_type]
        # For TRL every objective but its own "dft" is an "nll" whose reduction we replace.
        args.loss_type = "dft" if loss_type == "dft" else "nll"
        try:
            super().__init__(model, args, data_collator, train_dataset, eval_dataset, **kwargs)
        finally:
            args.loss_type = loss_type

        self.lm_head_backend = self._choose_lm_head()
        _keep_gradients(self.model)
        _check_parallelism(self.accelerator.parallelism_config)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                "The model has no trainable parameter, so nothing would be learned. Pass a `peft_config`, load the "
                "adapter with `PeftModel.from_pretrained(..., is_trainable=True)`, or unfreeze some parameters."
            )
        streamed = isinstance(self.eval_dataset, IterableDataset)
        if self.accelerator.num_processes > 1 and eval_dataset is not None and (self.padding_free or streamed):
            logger.warning(
                "On several ranks an evaluation set that is packed, padding-free or streamed may count the rows twice "
                "that fill up the last batch. For exact figures evaluate on one rank, or unpacked, not streamed."
            )
        if loss_type == "bft":
            # Our loss is divided by the samples of the whole step, so `Trainer` must not divide it again.
            self.loss_is_scaled_for_ga = True
        self._step_sums: list[torch.Tensor] = []  # a row of sums for each step since the last log
        self._eval_sums: list[torch.Tensor] = []  # a row of sums for each evaluation batch
        self._warner = RunWarner(args)

    def _choose_lm_head(self) -> str:
        """Puts the frozen LM head into the model where `lm_head_backend` asks for it and it holds."""
        backend = self.args.lm_head_backend
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        head = model.get_output_embeddings()
        if not (hasattr(head, "weight") and hasattr(head, "bias")):
            raise ValueError(
                f"The LM head is a `{type(head).__name__}`, whose weight and bias TRL's fused head cannot read. Where "
                "PEFT adapts an embedding that is tied to it, remove `trainable_token_indices` from the configuration."
            )
        if backend == "trl":
            return backend
        obstacle = frozen_head_obstacle(model)
        if self.aux_loss_enabled:
            obstacle = "the auxiliary loss of a mixture of experts comes from TRL's head"
        if obstacle is None:
            use_frozen_head(model)
            return "frozen"
        if backend == "frozen":
            raise ValueError(
                f"`lm_head_backend='frozen'` does not hold here: {obstacle}. Set `lm_head_backend='auto'` or 'trl'."
            )
        logger.warning("The log-probabilities come from TRL's fused LM head, not from the frozen one: %s.", obstacle)
        return "trl"

    # --- the loss ----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        # Called once per optimizer step. Under "bft" the items of a step are its samples, not its tokens.
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.loss_type == "bft":  # also for a rank without batches: the others wait for its count
            self._leave_out_repeated_rows(batches)
            count = sum(_count_samples(batch) for batch in batches)
            num_items = self.accelerator.reduce(torch.tensor(count, device=device), reduction="sum")
        if self.args.logging_strategy == "no":
            self._step_sums.clear()  # nobody will ever collect them
        self._step_sums.append(no_samples())
        return batches, num_items

    def _leave_out_repeated_rows(self, batches: list[dict[str, Any]]) -> None:
        """Unlabels the rows by which accelerate fills up the last batch of an epoch, so that all ranks have one."""
        loader = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not (batches and loader.end_of_dataloader and loader.remainder > 0):
            return
        labels = batches[-1]["labels"]
        if _target_documents(batches[-1]) is None:  # the rows of a padding-free batch cannot be told from documents
            labels[max(loader.remainder - self.accelerator.process_index * len(labels), 0) :] = -100

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch: its share of the step's mean over samples.

        `num_items_in_batch` is the number of samples in the step under "bft", None for the samples of this batch
        alone, and TRL's number of tokens under "nll" and "dft".
        """
        forward = _RecordingForward(model, self.lm_head_backend)
        # TRL's own loss and metrics, from the one forward whose per-token output we record and reduce ourselves.
        result = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        loss, outputs = result if return_outputs else (result, None)
        loss = self._reduce(forward.fused_output, _target_documents(inputs), loss, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _reduce(
        self, fused: Any, documents: torch.Tensor | None, trl_loss: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """All that BFT adds to a step: weights, reduction and figures, from the (B, S-1) log-probabilities."""
        tokens = supervised_tokens(fused.log_probs, fused.label_mask, documents)
        weights = self._weights(tokens)
        self._record(tokens, weights, rows=len(fused.label_mask))
        if self.args.loss_type != "bft":
            return trl_loss
        samples = len(tokens.lengths) if num_items is None else num_items
        scale = (weights.sample / tokens.lengths).repeat_interleave(tokens.lengths) * weights.token
        loss = -(scale * tokens.log_probs).sum() / torch.as_tensor(samples, device=scale.device).clamp(min=1)
        if num_items is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages the gradients over the ranks
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items is not None else 1
            loss = loss + self.router_aux_loss_coef * fused.aux_loss / steps
        return loss

    def _weights(self, tokens: SupervisedTokens) -> Weights:
        """The weights of this objective. Group confidence is measured by the same rule for all objectives."""
        args = self.args
        weights = bft_weights(
            tokens.log_probs,
            tokens.lengths,
            version=args.bft_version,
            group_size=args.group_size,
            confidence_mean=args.confidence_mean,
            confidence_gamma=args.confidence_gamma,
            min_token_weight=args.min_token_weight,
        )
        if args.loss_type == "dft":
            weights = weights._replace(token=tokens.log_probs.detach().float().exp())
        if args.loss_type == "nll" or (args.loss_type == "bft" and not args.token_weighting):
            weights = weights._replace(token=torch.ones_like(weights.token))
        if args.loss_type != "bft" or not args.sample_weighting:
            weights = weights._replace(sample=torch.ones_like(weights.sample))
        return weights

    # --- the metrics -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _record(self, tokens: SupervisedTokens, weights: Weights, rows: int) -> None:
        sums = sums_by_row(tokens, weights, rows=rows, mean_over_samples=self.args.loss_type == "bft")
        if not self.model.training:
            if self.accelerator.num_processes > 1:
                # By row, so that the rows are left out that a sampler repeats to give every rank the same number.
                sums = self.accelerator.gather_for_metrics(sums.to(self.accelerator.device)).cpu()
            self._eval_sums.append(pooled(sums))
        elif self._step_sums:
            self._step_sums[-1] = pooled(torch.cat([self._step_sums[-1], sums]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._step_sums and "loss" in logs:
            steps = torch.cat(self._step_sums)
            self._step_sums = []
            if self.accelerator.num_processes > 1:
                ranks = self.accelerator.gather(steps[None].to(self.accelerator.device)).cpu()
                steps = torch.cat([pooled(ranks[:, step]) for step in range(len(steps))])
            logs.update(figures(steps))
            for message in self._warner.messages(logs, steps, self.state):
                logger.warning(message)
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        prefix = kwargs.get("metric_key_prefix", args[2] if len(args) > 2 else "eval")
        self._eval_sums = []
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        sums = pooled(torch.cat([no_samples(), *self._eval_sums]))
        self._eval_sums = []
        found = figures(sums)
        output.metrics.update({f"{prefix}_{name}": value for name, value in found.items()})
        # `Trainer` averages batch losses; the mean over the evaluation set does not depend on the batch size.
        # (With a mixture of experts it stays TRL's, which holds the auxiliary loss of each batch.)
        if found and not self.aux_loss_enabled:
            unit = "samples" if self.args.loss_type == "bft" else "tokens"
            output.metrics[f"{prefix}_loss"] = total(sums, "objective") / total(sums, unit)
        return output

    # --- the data ----------------------------------------------------------------------------------------------------

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: BFTConfig,
        packing: bool,
        formatting_func: Callable | None,
        dataset_name: str,
    ) -> Any:
        """TRL's preparation, which drops rows without a supervised token in silence: here they are named."""
        if dataset_name != "train":  # that one was checked before the model was loaded, and reading it all takes time
            check_dataset(dataset, args, formatting_func, dataset_name)
        if not isinstance(dataset, Dataset):
            # A stream cannot be counted beforehand; rows without a supervised token weigh nothing in a batch.
            stream = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
            if next(iter(stream), None) is None:
                raise ValueError(no_supervised_token(dataset_name, args))
            return stream
        ids = dataset["id"] if "id" in dataset.column_names else range(len(dataset))
        dataset = dataset.add_column(_ROW, list(range(len(dataset))))
        first_args = args
        if packing:
            # Packing comes in a second pass. It shuffles and, where it splits long documents, needs them whole.
            first_args = copy.copy(args)
            first_args.shuffle_dataset = False
            first_args.max_length = None if args.packing_strategy == "bfd_split" else args.max_length
        dataset = (
            super()
            ._prepare_dataset(dataset, processing_class, first_args, False, formatting_func, dataset_name)
            .filter(has_target, input_columns="labels", desc=f"Checking {dataset_name} dataset for supervised tokens")
        )
        kept = {int(row) for row in dataset[_ROW]}
        dropped = [ids[row] for row in range(len(ids)) if row not in kept]
        if not kept:
            raise ValueError(no_supervised_token(dataset_name, args))
        if dropped:
            named = ", ".join(str(name) for name in dropped[:10]) + (", ..." if len(dropped) > 10 else "")
            logger.warning(
                "Dropped %d of %d rows of the %s dataset: they have no supervised token, as happens when "
                "`max_length=%s` cuts the whole answer off (%s).",
                *(len(dropped), len(ids), dataset_name, args.max_length, named),
            )
        dataset = dataset.remove_columns(_ROW)
        if packing:
            dataset = super()._prepare_dataset(dataset, processing_class, args, True, None, dataset_name)
        return dataset

    # --- checkpoints and the model card ------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`; `resume_from_checkpoint=True` takes the last *complete* checkpoint and says which."""
        self._step_sums, self._warner = [], RunWarner(self.args)
        if resume_from_checkpoint is True:
            resume_from_checkpoint, skipped = last_complete_checkpoint(Path(self.args.output_dir))
            for folder, reason in skipped:
                logger.warning("Skipped the incomplete checkpoint %s: %s.", folder, reason)
            logger.warning("Resuming from %s.", resume_from_checkpoint)
        elif resume_from_checkpoint:
            check_checkpoint(Path(resume_from_checkpoint))
        elif any(Path(self.args.output_dir).glob("checkpoint-*")):
            logger.warning(
                "`output_dir=%r` holds checkpoints of an earlier run, which this one will write over. Resume with "
                "`resume_from_checkpoint=True`, or choose another folder.",
                self.args.output_dir,
            )
        if resume_from_checkpoint:
            check_same_objective(Path(resume_from_checkpoint), self.args.objective())
        with exclusive(Path(self.args.output_dir), name="output_dir") if self.args.should_save else nullcontext():
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # From a checkpoint with all steps, which a run has that was killed at its end, transformers trains another.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: PreTrainedModel, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            # A checkpoint is complete once it has its trainer_state.json, which is written last. Overwriting an older
            # run's folder must not leave that run's file beside half of our weights.
            for name in ("trainer_state.json", CHECKSUMS):
                (folder / name).unlink(missing_ok=True)
        with saving_into(folder, resumable=True):
            super()._save_checkpoint(model, trial)
            if self.args.should_save and folder.is_dir():  # `save_total_limit` may have removed it
                write_checksums(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """In place for a checkpoint, whose last file says that it is whole; else beside, and then moved."""
        folder = Path(output_dir or self.args.output_dir)
        if folder.name.startswith("checkpoint-") or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        with saving_into(folder, resumable=False), replacing_folder(folder) as temporary:
            super()._save(str(temporary), state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            write_text(folder / "objective.json", json.dumps(self.args.objective(), indent=2) + "\n")
            # PEFT keeps the base model's name but not how it was quantized: an evaluation must load it the same way.
            quantization = getattr(self.accelerator.unwrap_model(self.model).config, "quantization_config", None)
            loading = {"quantization": quantization.to_dict() if quantization is not None else None}
            write_text(folder / "base_model.json", json.dumps(loading, indent=2, default=str) + "\n")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            card = Path(self.args.output_dir, "README.md")
            base = Path(self.model.config._name_or_path).name
            text = complete_card(card.read_text(encoding="utf-8"), base=base, folder=Path(self.args.output_dir).name)
            write_text(card, f"{text.rstrip()}\n\n{objective_section(self.args.objective())}")


class _RecordingForward:
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


def _target_documents(inputs: dict[str, Any]) -> torch.Tensor | None:
    """(B, S-1) index of the document of each target token, or None where every row is one document."""
    if inputs.get("seq_idx") is not None:
        return inputs["seq_idx"][:, 1:]
    if inputs.get("position_ids") is not None and inputs.get("attention_mask") is None:
        return (inputs["position_ids"] == 0).cumsum(1)[:, 1:]
    return None


def _count_samples(batch: dict[str, Any]) -> int:
    mask = batch["labels"][:, 1:] != -100
    return len(supervised_tokens(mask, mask, _target_documents(batch)).lengths)


def _keep_gradients(model: torch.nn.Module) -> None:
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


def _check_parallelism(config: Any) -> None:
    if config is not None and (config.sp_enabled or config.cp_enabled or config.tp_enabled):
        raise ValueError(
            "Sequence, context and tensor parallelism are not supported: a sample's confidence window needs all its "
            "tokens on one rank. Use data parallelism (DDP, FSDP or ZeRO) instead of `parallelism_config`."
        )


def _resolve_best_metric(args: BFTConfig, eval_dataset: Any) -> None:
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
