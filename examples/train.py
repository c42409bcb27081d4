"""Fine-tune SmolLM2-135M-Instruct with BFT and LoRA on the gene sets of bft_trl: about seven minutes on two CPU cores.

    accelerate launch examples/train.py

Plain SFT instead, and a model and dataset of the Hub (in one of TRL's formats):

    accelerate launch examples/train.py --loss_type nll
    accelerate launch examples/train.py --model_name_or_path Qwen/Qwen3-1.7B --dataset_name trl-lib/Capybara

Without either, the run ends with a table: names of 100 held-out gene sets before and after training, beside baselines.
Every field of ScriptArguments, BFTConfig and ModelConfig is a flag, or a key of a YAML file (--config). `bft-trl
train` has the same flags, reads data files and columns of other names, and writes a plot and a report.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from bft_trl import BFTConfig, BFTTrainer, demo_model, load_gene_sets
from bft_trl.demo import name_gene_sets, report_names, write_names
from bft_trl.runs import check_run, remove_checkpoints, use_cpu_well

CUDA = torch.cuda.is_available()
BF16 = CUDA and torch.cuda.is_bf16_supported(including_emulation=False)
DEFAULTS: dict[str, Any] = {"use_cpu": not CUDA, "bf16": BF16, "fp16": CUDA and not BF16}
DEFAULTS["dtype"] = "bfloat16" if BF16 else "float16" if CUDA else "float32"
DEFAULTS |= {"dataloader_pin_memory": CUDA, "report_to": "none", "output_dir": "outputs/LOSS_TYPE[-DATASET][-MODEL]"}
DEFAULTS |= {"use_peft": True, "lora_target_modules": ["all-linear"], "load_in_4bit": True, "learning_rate": 2e-4}
# In addition, if no dataset is named: the answers have about 9 tokens
GENE_SETS: dict[str, Any] = {"group_size": 4, "max_length": 512}
# and if no model is named as well: chosen by experiment, see docs/demo.md
DEMO: dict[str, Any] = GENE_SETS | {"max_steps": 75, "learning_rate": 1e-3, "token_weight_power": 0.5}
DEMO |= {"per_device_train_batch_size": 8, "train_sampling_strategy": "group_by_length"}
DEMO |= {"eval_strategy": "steps", "eval_steps": 25, "eval_on_start": True, "gradient_checkpointing": False}
DEMO |= {"logging_steps": 5, "save_steps": 25, "save_total_limit": 2, "load_in_4bit": CUDA, "lora_dropout": 0.0}
# Layers 15 to 29 of 30: a step takes two thirds of the time of a step with all of them.
DEMO |= {"lora_target_modules": [r".*\.(1[5-9]|2\d)\..*_proj"]}


@dataclass
class ExampleArguments(ScriptArguments):
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the earlier run in `output_dir`."})


def main() -> None:
    epilog = f"The defaults are {GENE_SETS} without a dataset, and {DEMO} without a model as well."
    parser = TrlParser(
        (ExampleArguments, BFTConfig, ModelConfig), usage="train.py [--OPTION VALUE ...]", epilog=epilog
    )
    parser.set_defaults_with_config(**DEFAULTS)
    script_args, training_args, model_args = parser.parse_args_and_config()
    if not script_args.dataset_name:
        parser.set_defaults_with_config(**GENE_SETS if model_args.model_name_or_path else DEMO)
        script_args, training_args, model_args = parser.parse_args_and_config()
    if training_args.output_dir == DEFAULTS["output_dir"]:
        names = [training_args.loss_type, script_args.dataset_name, model_args.model_name_or_path]
        training_args.output_dir = f"outputs/{'-'.join(Path(name).name for name in names if name)}"
    # Raises if the output folder has an earlier run. Returns the checkpoint to resume from.
    checkpoint = check_run(training_args, model_args, overwrite_output_dir=script_args.overwrite_output_dir)

    train_dataset = load_gene_sets("train", described=True, max_genes=9)
    eval_dataset = load_gene_sets("eval", described=True, max_genes=9).select(range(48))
    if script_args.dataset_name:
        dataset = load_dataset(
            script_args.dataset_name, script_args.dataset_config, streaming=script_args.dataset_streaming
        )
        train_dataset = dataset[script_args.dataset_train_split]
        eval_dataset = dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None
    training_args.model_init_kwargs = {
        "dtype": model_args.dtype,
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
    } | (training_args.model_init_kwargs or {})
    trainer = BFTTrainer(
        model_args.model_name_or_path or demo_model().path,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if training_args.use_cpu:
        use_cpu_well(trainer)

    test = None if script_args.dataset_name else load_gene_sets("test", described=True)
    before = name_gene_sets(trainer, test)
    if script_args.overwrite_output_dir and not checkpoint:
        remove_checkpoints(training_args)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.create_model_card(dataset_name=script_args.dataset_name)
    after = name_gene_sets(trainer, test)

    if trainer.is_world_process_zero():
        if after.answers:
            report, folder = report_names(test, before, after), Path(training_args.output_dir)
            print(write_names(report, trainer.state.log_history, folder))
        print(f"Adapter and model card: {training_args.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"train.py: error: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\ntrain.py: stopped. --resume_from_checkpoint True continues from the last checkpoint.", file=sys.stderr
        )
        sys.exit(130)
