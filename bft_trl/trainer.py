"""`BFTTrainer`: `trl.SFTTrainer` with the BFT reduction of the per-token log-probabilities, and its metrics."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from bft_trl import markdown
from bft_trl.config import BFTConfig
from bft_trl.io import CHECKSUMS, lock, atomic_folder, write_text
from bft_trl.lm_head import frozen_head_obstacle, use_frozen_head
from bft_trl.training.batches import RecordingForward, Targets, count_samples, target_documents
from bft_trl.training.checkpoints import (
    check_checkpoint,
    check_output_dir,
    check_same_objective,
    last_complete_checkpoint,
    saving_into,
    write_checksums,
)
from bft_trl.training.dataset_checks import check_dataset, has_target, no_supervised_token
from bft_trl.training.metrics import SUMS, all_figures, no_samples, pooled, sums_by_row, sums_by_sample, total
from bft_trl.training.model_card import CARD_NAMES, PAPERS, complete_card, objective_section
from bft_trl.training.refusals import (
    check_arguments,
    check_parallelism,
    check_trainable,
    check_weights,
    keep_gradients,
    resolve_best_metric,
)
from bft_trl.training.rows import ROW, DataRows, RowCollator, known_rows, packed
from bft_trl.training.run_page import PAGE, write_run_page
from bft_trl.training.sample_log import SampleLog
from bft_trl.training.warner import RunWarner
from bft_trl.weighting import SupervisedTokens, Weights, bft_weights, supervised_tokens

logger = get_logger(__name__)


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
        check_arguments(args, kwargs, model)
        check_output_dir(Path(args.output_dir))
        if train_dataset is not None:
            check_dataset(train_dataset, args, kwargs.get("formatting_func"), "train")
        resolve_best_metric(args, eval_dataset)
        self._rows = known_rows(args, train_dataset, data_collator)
        if self._rows and train_dataset is not None:  # now, so that what is wrong is said before a model is loaded
            train_dataset = self._rows.mark(train_dataset, "train", training=True)
            check_weights(self._rows.weight, args.loss_type, args.weight_column)

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
        keep_gradients(self.model)
        check_parallelism(self.accelerator.parallelism_config)
        check_trainable(self.model)
        streamed = isinstance(self.eval_dataset, IterableDataset)
        if self.accelerator.num_processes > 1 and eval_dataset is not None and (self.padding_free or streamed):
            logger.warning(
                "On several ranks an evaluation set that is packed, padding-free or streamed may count the rows twice "
                "that fill up the last batch. For exact figures evaluate on one rank, or unpacked, not streamed."
            )
        if loss_type == "bft":
            # Our loss is divided by the samples of the whole step, so `Trainer` must not divide it again.
            self.loss_is_scaled_for_ga = True
        self._step_sums: list[torch.Tensor] = []  # the sums of each step since the last log, (1, 1 + groups, sums)
        self._eval_sums: list[torch.Tensor] = []  # those of each evaluation batch
        self._step_rows: list[int] = []  # the rows of this rank's part of the step
        self._warner = RunWarner(args)
        self._sample_log: SampleLog | None = None
        if self._rows:
            self.data_collator: Any = RowCollator(self.data_collator)
            if args.record_samples:
                self._sample_log = SampleLog(
                    Path(args.output_dir), self._rows, self._tokenizer, rank=self.accelerator.process_index
                )

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
        self._step_rows = []
        if self.args.loss_type == "bft":  # also for a rank without batches: the others wait for its count
            self._leave_out_repeated_rows(batches)
            count = sum(count_samples(batch) for batch in batches)
            num_items = self.accelerator.reduce(torch.tensor(count, device=device), reduction="sum")
        if self.args.logging_strategy == "no":
            self._step_sums.clear()  # nobody will ever collect them
        self._step_sums.append(no_samples(1, 1 + len(self._groups)))
        return batches, num_items

    def _leave_out_repeated_rows(self, batches: list[dict[str, Any]]) -> None:
        """Unlabels the rows by which accelerate fills up the last batch of an epoch, so that all ranks have one."""
        loader = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not (batches and loader.end_of_dataloader and loader.remainder > 0):
            return
        labels = batches[-1]["labels"]
        if target_documents(batches[-1]) is None:  # the rows of a padding-free batch cannot be told from documents
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
        inputs = dict(inputs)
        row_numbers = inputs.pop(ROW, None)
        forward = RecordingForward(model, self.lm_head_backend)
        # TRL's own loss and metrics, from the one forward whose per-token output we record and reduce ourselves.
        result = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        loss, outputs = result if return_outputs else (result, None)
        batch = Targets(inputs["input_ids"], target_documents(inputs), row_numbers)
        loss = self._reduce(forward.fused_output, batch, loss, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _reduce(
        self, fused: Any, batch: Targets, trl_loss: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """All that BFT adds to a step: weights, reduction and figures, from the (B, S-1) log-probabilities."""
        tokens = supervised_tokens(fused.log_probs, fused.label_mask, batch.documents)
        rows = batch.rows_of(tokens, fused.label_mask)
        weights = self._weights(tokens)
        if rows is not None and self._rows and self._rows.weighted and self.model.training:
            weights = weights._replace(sample=weights.sample * self._rows.weights_of(rows))
        self._record(
            tokens,
            weights,
            rows,
            batch.supervised(batch.input_ids, fused.label_mask),
            batch_rows=len(fused.label_mask),
        )
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

    @property
    def _groups(self) -> list[str]:
        return self._rows.groups if self._rows else []

    @torch.no_grad()
    def _record(
        self,
        tokens: SupervisedTokens,
        weights: Weights,
        rows: torch.Tensor | None,
        targets: torch.Tensor,
        *,
        batch_rows: int,
    ) -> None:
        """Figures, the record of samples, and the end of a run whose loss is not finite.

        `rows` (B,) are the numbers of the samples' rows, `targets` (N,) the token ids.
        """
        sums = sums_by_sample(tokens, weights, mean_over_samples=self.args.loss_type == "bft")
        rows = rows.cpu() if rows is not None else None
        self._check_finite(sums, rows)
        groups = self._rows.groups_of(rows) if rows is not None and self._groups and self._rows else None
        by_row = sums_by_row(sums, tokens.row.cpu(), batch_rows, groups, len(self._groups))
        if not self.model.training:
            if self.accelerator.num_processes > 1:
                # By row, so that the rows are left out that a sampler repeats to give every rank the same number.
                by_row = self.accelerator.gather_for_metrics(by_row.to(self.accelerator.device)).cpu()
            self._eval_sums.append(pooled(by_row))
        elif self._step_sums:
            self._step_sums[-1] = pooled(torch.cat([self._step_sums[-1], by_row]))
            if rows is not None:
                self._step_rows += rows.tolist()
                if self._sample_log:
                    self._sample_log.add(
                        rows,
                        sums,
                        weights.weakest.cpu(),
                        targets.cpu(),
                        epoch=int(self.state.epoch or 0),
                        step=self.state.global_step + 1,
                    )

    def _check_finite(self, sums: torch.Tensor, rows: torch.Tensor | None) -> None:
        """A loss that is NaN or infinite ends the training before the step; in an evaluation it is said."""
        # Of the nll alone: a running sum carries the NaN of one sample into the confidence of those behind it.
        broken = (~sums[:, SUMS.index("nll")].isfinite()).nonzero().squeeze(1)
        if not len(broken):
            return
        where = f"step {self.state.global_step + 1}" if self.model.training else "the evaluation"
        named = self._rows.named(rows[broken].tolist()) if rows is not None and self._rows else "not known here"
        message = f"The loss is not finite in {where}, for {len(broken)} samples (id: {named})"
        if not self.model.training:
            logger.warning("%s.", message)
            return
        raise FloatingPointError(
            f"{message}. The step was not taken. Look at these samples and at the learning rate, then resume from the "
            "last checkpoint (`resume_from_checkpoint=True`) without the samples (weight 0) or with a lower "
            "`learning_rate`."
        )

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if grad_norm is not None and not math.isfinite(grad_norm):
            named = self._rows.named(self._step_rows) if self._rows and self._step_rows else "not known here"
            message = f"The gradient is not finite at step {self.state.global_step + 1} (samples of the step: {named})"
            if self.accelerator.scaler is None:
                raise FloatingPointError(
                    f"{message}. The step was not taken. Lower `learning_rate`, set `max_grad_norm`, or look at the "
                    "samples, then resume from the last checkpoint (`resume_from_checkpoint=True`)."
                )
            # float16: the loss scale was too large; the scaler skips this step by itself and lowers the scale.
            logger.warning("%s; float16's loss scaling skips it.", message)
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._step_sums and "loss" in logs:
            steps = torch.cat(self._step_sums)
            self._step_sums = []
            if self.accelerator.num_processes > 1:
                ranks = self.accelerator.gather(steps[None].to(self.accelerator.device)).cpu()
                steps = torch.cat([pooled(ranks[:, step]) for step in range(len(steps))])
            logs.update(all_figures(steps, self._groups))
            for message in self._warner.messages(logs, steps[:, 0], self.state):
                logger.warning(message)
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        prefix = kwargs.get("metric_key_prefix", args[2] if len(args) > 2 else "eval")
        self._eval_sums = []
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        sums = pooled(torch.cat([no_samples(1, 1 + len(self._groups)), *self._eval_sums]))
        self._eval_sums = []
        found = all_figures(sums, self._groups)
        output.metrics.update({f"{prefix}_{name}": value for name, value in found.items()})
        # `Trainer` averages batch losses; the mean over the evaluation set does not depend on the batch size.
        # (With a mixture of experts it stays TRL's, which holds the auxiliary loss of each batch.)
        if found and not self.aux_loss_enabled:
            unit = "samples" if self.args.loss_type == "bft" else "tokens"
            output.metrics[f"{prefix}_loss"] = total(sums[:, 0], "objective") / total(sums[:, 0], unit)
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
        rows = self._rows or DataRows()  # the latter only to name what is dropped
        if ROW not in dataset.column_names:
            dataset = rows.mark(dataset, dataset_name, training=False)
        before = dataset[ROW]
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
        kept = {int(row) for row in dataset[ROW]}
        dropped = [int(row) for row in before if int(row) not in kept]
        if not kept:
            raise ValueError(no_supervised_token(dataset_name, args))
        if dropped:
            logger.warning(
                "Dropped %d of %d rows of the %s dataset: they have no supervised token, as happens when "
                "`max_length=%s` cuts the whole answer off (%s).",
                *(len(dropped), len(before), dataset_name, args.max_length, rows.named(dropped)),
            )
        if not self._rows:
            dataset = dataset.remove_columns(ROW)
        return packed(dataset, args, dataset_name) if packing else dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ROW not in self._signature_columns:
            self._signature_columns.append(ROW)

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
        locked = lock(Path(self.args.output_dir), name="output_dir") if self.args.should_save else nullcontext()
        with locked:
            if self.args.should_save:
                Path(self.args.output_dir, PAGE).unlink(missing_ok=True)  # of an earlier run
            with self._recording(resume_from_checkpoint):
                output = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
            if self.args.should_save and self.args.save_strategy != "no":
                self.write_run_page()
        return output

    @contextmanager
    def _recording(self, checkpoint: str | bool | None) -> Iterator[None]:
        """The record of samples goes on where the checkpoint stands, and is written whatever ends the run."""
        if self._sample_log is None:
            yield
            return
        step = 0
        if checkpoint:
            step = TrainerState.load_from_json(str(Path(str(checkpoint), "trainer_state.json"))).global_step
        self._sample_log.begin(step, main=self.args.should_save)
        self.accelerator.wait_for_everyone()
        self._sample_log.number_parts()
        try:
            yield
        finally:
            self._sample_log.flush()

    def write_run_page(self) -> None:
        """Writes `run.html`, the curves and final figures of the run, and links it from the model card."""
        folder = Path(self.args.output_dir)
        write_run_page(
            folder,
            self.state.log_history,
            objective=self.args.objective(),
            name=self._name,
            samples=self._sample_log is not None,
        )
        hub_name = self.args.hub_model_id
        self.create_model_card(model_name=hub_name.split("/")[-1] if hub_name else folder.name)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # From a checkpoint with all steps, which a run has that was killed at its end, transformers trains another.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: PreTrainedModel, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if self._sample_log:
            self._sample_log.flush()  # first: what lies behind a complete checkpoint is never seen again
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
        with saving_into(folder, resumable=False), atomic_folder(folder) as temporary:
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

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        names = [name and markdown.text(name) for name in (model_name, dataset_name)]
        super().create_model_card(*names, tags)
        if self.is_world_process_zero():
            card = Path(self.args.output_dir, "README.md")
            base = Path(self.model.config._name_or_path).name
            text = complete_card(card.read_text(encoding="utf-8"), base=base, folder=Path(self.args.output_dir).name)
            page = Path(self.args.output_dir, PAGE).is_file()
            link = f"Curves and final figures: [{PAGE}]({PAGE}).\n\n" if page else ""
            write_text(card, f"{text.rstrip()}\n\n{link}{objective_section(self.args.objective())}")
