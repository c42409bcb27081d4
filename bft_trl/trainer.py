"""`BFTTrainer`: `trl.SFTTrainer` with the BFT reduction of the per-token log-probabilities, and its metrics."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from bft_trl import markdown
from bft_trl.config import BFTConfig
from bft_trl.model_head import choose_lm_head
from bft_trl.training import callbacks as run_callbacks
from bft_trl.training import metrics, rows, validation
from bft_trl.training.batches import RecordingForward, count_samples, mask_repeated_rows, target_documents
from bft_trl.training.checkpoints import resolve_checkpoint, write_run_files
from bft_trl.training.model_card import CARD_NAMES, PAPERS, complete_card
from bft_trl.training.sample_log import SampleLog
from bft_trl.weighting import SupervisedTokens, Weights, supervised_tokens, token_and_sample_weights

logger = get_logger(__name__)


class BFTTrainer(SFTTrainer):
    """
    Trainer for Balanced Fine-Tuning (BFT, https://arxiv.org/abs/2511.21075).

    It takes the arguments of `trl.SFTTrainer`. The only change is the reduction of the per-token log-probabilities:
    with `loss_type="bft"` each token is scaled by its weight, each sample by its own, and the loss is the mean over
    the samples of the whole optimizer step (all micro-batches and ranks; a packed document is a sample). With `"nll"`
    and `"dft"` the loss is TRL's own; with `lm_head_backend="trl"` it is equal bit for bit.

    Logged in training (over the steps since the last log) and in evaluation (exact over the set, with `eval_`): `nll`
    (unweighted, nats per token whose label is not -100), the means `token_weight`, `sample_weight` and
    `group_confidence`, `group_confidence_min`, `effective_sample_size` = (sum s)^2 / sum s^2 per step or evaluation
    set, `windowed_fraction`, the fraction of samples long enough for the confidence window to act, and, with
    `anchor_coef`, `anchor_kl`, the mean divergence from the base model per token.

    Raises ValueError at construction for arguments and data that cannot be used with this loss.
    """

    _tag_names = ("trl", "sft", "bft")

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable | None = None,
    ) -> None:
        args = validation.as_bft_config(args, model)
        validation.check_arguments(args, model, compute_loss_func, peft_config, eval_dataset)
        validation.check_dataset(train_dataset, args, formatting_func, "train")
        self._prepared: WeakValueDictionary[int, Any] = WeakValueDictionary()  # data sets that this trainer prepared
        self._columns = rows.row_columns(args, train_dataset, data_collator)
        self._values = self._columns.values if self._columns else []
        if self._columns:
            train_dataset = self._columns.add(train_dataset, "train", training=True)

        loss_type = args.loss_type
        self._name, self._paper = CARD_NAMES[loss_type], PAPERS[loss_type]
        # For TRL every objective but its own "dft" is an "nll" whose reduction is replaced here.
        args.loss_type = "dft" if loss_type == "dft" else "nll"
        first = (model, args, data_collator, train_dataset, eval_dataset, processing_class, compute_loss_func)
        second = (compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics)
        try:
            super().__init__(*first, *second, quantization_config, peft_config, formatting_func)
        finally:
            args.loss_type = loss_type

        validation.check_trainer(self)
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.lm_head_backend = choose_lm_head(
            base, args.lm_head_backend, has_aux_loss=self.aux_loss_enabled, needed_by=args.needs_frozen_head
        )
        # TRL has these two; every other loss is made here from the per-token log-probabilities.
        self._loss_of_trl = not args.anchor_coef and (
            loss_type == "nll" or (loss_type == "dft" and args.token_weight_power == 1)
        )
        if loss_type == "bft":  # the loss is divided by the samples of the whole step, not again by `Trainer`
            self.loss_is_scaled_for_ga = True
        # Of each step since the last log, and of each evaluation batch: (1, 1 + values, sums).
        self._step_sums, self._eval_sums = list[torch.Tensor](), list[torch.Tensor]()
        self._sample_log: SampleLog | None = None
        self._add_callbacks_and_columns(args)

    def _add_callbacks_and_columns(self, args: BFTConfig) -> None:
        self._finite_check = run_callbacks.FiniteCheck()
        self.add_callback(self._finite_check)
        self.add_callback(run_callbacks.RunWarnings(args))
        if self._columns:
            self.data_collator: Any = rows.RowCollator.of(self.data_collator)
            self._set_signature_columns_if_needed()
            self._signature_columns += rows.COLUMNS
        log = SampleLog(Path(args.output_dir), rank=self.accelerator.process_index)
        self._sample_log = log if args.log_samples else None
        self.add_callback(run_callbacks.SampleLogCallback(log))  # without `log_samples` it removes an earlier log

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        # Called once per optimizer step. Under "bft" the items of a step are its samples, not its tokens.
        if self.state.global_step >= self.state.max_steps:  # resumed at its end: transformers would take one more step
            self.control.should_training_stop = True
            return [], None
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.loss_type == "bft":  # also for a rank without batches: the others wait for its count
            ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
            mask_repeated_rows(batches, self.accelerator.gradient_state, ranks=ranks, rank=rank)
            counts = [count_samples(batch).to(device) for batch in batches]
            num_items = self.accelerator.reduce(
                sum(counts, torch.zeros((), dtype=torch.long, device=device)), reduction="sum"
            )
        if self.args.logging_strategy != "no":
            self._step_sums.append(metrics.zero_sums(1, 1, device=metrics.device_of_sums(device)))
        return batches, num_items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        # The place that TRL names for another loss. `num_items_in_batch` is the number of samples in the step under
        # "bft", None for the samples of this batch alone, and TRL's number of tokens under "nll" and "dft".
        inputs = dict(inputs)
        columns = {name: inputs.pop(name) for name in rows.COLUMNS if name in inputs}
        if self._columns and self.model.training:
            self._columns.check(columns)
        adapted = self.accelerator.unwrap_model(self.model) if self.args.anchor_coef else None
        eaft = self.args.loss_type == "eaft"
        forward = RecordingForward(model, self.lm_head_backend, top_entropy=eaft, adapted=adapted)
        # TRL's own loss and metrics, from the one forward whose per-token output is reduced again here.
        result = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        fused = forward.fused_output
        tokens = supervised_tokens(fused.log_probs, fused.label_mask, target_documents(inputs))
        width = fused.label_mask.shape[1]
        numbers = {name: rows.sample_numbers(values, tokens, width) for name, values in columns.items()}
        top_entropy = fused.top_entropy.flatten()[tokens.position] if eaft else None
        kl = fused.kl.flatten()[tokens.position] if self.args.anchor_coef else None
        weights = token_and_sample_weights(
            tokens.log_probs, tokens.lengths, **self.args.weighting(), top_entropy=top_entropy
        )
        if rows.WEIGHT in numbers and self.model.training:
            weights = weights._replace(sample=weights.sample * numbers[rows.WEIGHT])
        self._record(tokens, weights, numbers, len(fused.label_mask), kl)
        if self._loss_of_trl:
            return result
        loss = self._reduce(tokens, weights, num_items_in_batch, kl)
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * fused.aux_loss / steps
        return (loss, result[1]) if return_outputs else loss

    def _reduce(
        self, tokens: SupervisedTokens, weights: Weights, num_items: Any, kl: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns the part of this batch in the objective of the step.

        "bft": the mean over samples of s/L sum_t w_t (-log c_t). The others: the mean over tokens of w_t (-log c_t).
        The divergence `kl` from the base model has the same mean, without weights.
        """
        over_samples, scale, size = self.args.loss_type == "bft", weights.token, len(tokens.log_probs)
        if over_samples:
            scale = (weights.sample / tokens.lengths).repeat_interleave(tokens.lengths, output_size=size) * scale
            kl = None if kl is None else kl / tokens.lengths.repeat_interleave(tokens.lengths, output_size=size)
        if num_items is None:
            num_items = tokens.lengths.new_full((), len(tokens.lengths) if over_samples else size)
            ranks = 1
        else:  # DDP averages the gradients over the ranks
            ranks = self.accelerator.num_processes if over_samples or self.args.average_tokens_across_devices else 1
        total = -(scale * tokens.log_probs).sum()
        if kl is not None:
            total = total + self.args.anchor_coef * kl.sum()
        return total / torch.as_tensor(num_items, device=scale.device).clamp(min=1) * ranks

    @torch.no_grad()
    def _record(
        self,
        tokens: SupervisedTokens,
        weights: Weights,
        numbers: dict[str, torch.Tensor],
        batch_rows: int,
        kl: torch.Tensor | None = None,
    ) -> None:
        """Adds the batch to the metrics and to the sample log."""
        bft = self.args.loss_type == "bft"
        sums = metrics.sum_by_sample(tokens, weights, mean_over_samples=bft, kl=kl, anchor_coef=self.args.anchor_coef)
        row, numbers = tokens.row.to(sums.device), {name: part.to(sums.device) for name, part in numbers.items()}
        by_row = metrics.sum_by_row(sums, row, batch_rows, numbers.get(rows.VALUE), len(self._values))
        if not self.model.training:
            if self.accelerator.num_processes > 1:  # by row, so that rows that a sampler repeats are left out
                by_row = self.accelerator.gather_for_metrics(by_row.to(self.accelerator.device))
            self._eval_sums.append(metrics.pool_sums([by_row], len(self._values)))
            return
        step = self.state.global_step + 1
        self._finite_check.batches.append((sums, numbers.get(rows.ROW)))
        if self.is_deepspeed_enabled or "layerwise" in self.args.optim:  # their backward pass takes the step
            self._finite_check.check_losses(step)
        self._step_sums[-1:] = [metrics.pool_sums([*self._step_sums[-1:], by_row], len(self._values))]
        if self._sample_log:
            self._sample_log.add(numbers[rows.ROW], sums, weights.weakest, int(self.state.epoch or 0), step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The last log of a run, with "train_loss", holds the steps since the last multiple of `logging_steps`.
        if self._step_sums and ("loss" in logs or "train_loss" in logs):
            steps = metrics.gather_steps(self._step_sums, len(self._values), self.accelerator)
            self._step_sums = []
            logs.update(metrics.all_metrics(steps, self._values, anchor=bool(self.args.anchor_coef)))
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        # `Trainer` averages batch losses; the mean over the evaluation set does not depend on the batch size.
        prefix = kwargs.get("metric_key_prefix", args[2] if len(args) > 2 else "eval")
        outer, self._eval_sums = self._eval_sums, []  # `compute_metrics` may evaluate as well
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        sums, self._eval_sums = metrics.pool_sums(self._eval_sums, len(self._values)).cpu(), outer
        found = metrics.all_metrics(sums, self._values, anchor=bool(self.args.anchor_coef))
        if not math.isfinite(found.get("nll", 0)):
            logger.warning("The loss is not finite in the evaluation.")
        for name, value in found.items():
            output.metrics.setdefault(f"{prefix}_{name}", value)  # a value of the user's `compute_metrics` wins
        if self.args.metrics_by_column and not any("/" in name for name in found):
            logger.warning_once("`metrics_by_column` has no effect on evaluation sets without the column's values.")
        # The loss stays TRL's if `compute_metrics` may have set it, or if it holds an auxiliary loss for each batch.
        if found and not self.aux_loss_enabled and self.compute_metrics is None:
            output.metrics[f"{prefix}_loss"] = metrics.mean_loss(sums[:, 0], self.args.loss_type)
        return output

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        # TRL drops rows silently, packs `input_ids` and `labels` only, and would pack packed rows again in `evaluate`.
        def prepare(dataset: Any, args: Any, packing: bool) -> Any:
            return sft_prepare(dataset, processing_class, args, packing, formatting_func, dataset_name)

        sft_prepare = super()._prepare_dataset
        if dataset is self._prepared.get(id(dataset)):
            return dataset
        if dataset_name != "train":
            validation.check_dataset(dataset, args, formatting_func, dataset_name)
            if self._columns and isinstance(dataset, Dataset):
                dataset = self._columns.add(dataset, dataset_name, training=False)
        prepared = validation.prepare_dataset(prepare, dataset, args, packing, formatting_func, dataset_name)
        if isinstance(prepared, Dataset):
            self._prepared[id(prepared)] = prepared
        return prepared

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        # transformers takes the newest folder for True, also one that a killed run left incomplete.
        validation.check_trainable(self.model)
        self._step_sums = []
        folder = resolve_checkpoint(resume_from_checkpoint, Path(self.args.output_dir), self.args.objective())
        return super().train(folder, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Every saved folder says how to load its base model, which PEFT does not.
        folder = Path(output_dir or self.args.output_dir)
        if _internal_call and folder.name.startswith("checkpoint-"):
            if self._sample_log:
                self._sample_log.flush()  # a run that resumes here does not see the earlier samples again
            if self.args.should_save:  # complete again when transformers has written it
                (folder / "trainer_state.json").unlink(missing_ok=True)
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_run_files(folder, self.args.objective(), self.accelerator.unwrap_model(self.model))

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        # TRL's card has no place for the settings of the objective.
        super().create_model_card(*(name and markdown.text(name) for name in (model_name, dataset_name)), tags)
        if self.is_world_process_zero():
            complete_card(Path(self.args.output_dir), self.model.config._name_or_path, self.args.objective())
