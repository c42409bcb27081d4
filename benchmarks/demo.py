"""One recipe for the demo: trains, names validation sets, and appends a row to demo.csv.

    python benchmarks/demo.py --token_weight_power 0.5 --learning_rate 1e-3 --max_steps 50

Every field of BFTConfig and ModelConfig is a flag; defaults are those of examples/train.py. The sets are those of the
split "eval" with up to 9 genes, which the report of the demo does not contain.
"""

import sys
import time
from pathlib import Path

import pandas as pd
from trl import ModelConfig, TrlParser, get_peft_config

from bft_trl import BFTConfig, BFTTrainer, demo_model, load_gene_sets
from bft_trl.demo import AFTER, name_gene_sets, report_names
from bft_trl.runs import use_cpu_well

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train import DEFAULTS, DEMO

OUT = Path(__file__).with_suffix(".csv")
SHOWN = ("loss_type", "bft_version", "token_weight_power", "min_token_weight", "anchor_coef", "learning_rate")


def main() -> None:
    parser = TrlParser((BFTConfig, ModelConfig))
    parser.set_defaults_with_config(
        **DEFAULTS | DEMO | {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no"}
    )
    args, model_args = parser.parse_args_and_config()
    args.load_best_model_at_end = False
    trainer = BFTTrainer(
        demo_model().path,
        args=args,
        train_dataset=load_gene_sets("train", described=True, max_genes=9),
        peft_config=get_peft_config(model_args),
    )
    use_cpu_well(trainer)
    sets = load_gene_sets("eval", described=True, max_genes=9).select(range(60))
    before = name_gene_sets(trainer, sets)
    start = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - start
    table = report_names(sets, before, name_gene_sets(trainer, sets)).table
    row = {name: getattr(args, name) for name in (*SHOWN, "max_steps", "group_size", "seed")}
    row |= {"lora_r": model_args.lora_r, "dtype": model_args.dtype, "seconds": round(seconds, 1)}
    row |= table.loc[AFTER].drop(["gain", "standard_error"], errors="ignore").round(4).to_dict()
    pd.concat([pd.read_csv(OUT), pd.DataFrame([row])]).to_csv(OUT, index=False)


if __name__ == "__main__":
    main()
