"""How well `bft-trl hard-samples` finds planted noise and planted hard facts: precision at k.

Trains SmolLM2-135M (LoRA, float32) on 160 short gene sets that ship, 20 of them with their names exchanged among
each other (noise), and 20 rows that teach 5 invented processes of invented genes, each in 4 rows (hard facts, which
repetition makes learnable). Prints the precision of the first k samples of each list.

    python benchmarks/hard_samples.py --output_dir outputs/hard_samples [--seeds 0 1 2]
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from peft import LoraConfig

from bft_trl import BFTConfig, BFTTrainer, load_gene_sets
from bft_trl.inspection.hard_samples import LISTS, by_sample, rank, read_sample_log
from bft_trl.models import demo_model
from bft_trl.prompts import conversation, gene_set_answer, gene_set_prompt
from bft_trl.training.sample_log import FOLDER

OBJECTIVES: dict[str, dict[str, Any]] = {
    "SFT": {"loss_type": "nll"},
    "BFT v1": {},
    "BFT v3": {"bft_version": "v3"},
}
PLAIN, PLANTED = 160, 20
FACTS = {
    "velorin catabolic process": "ZQXA1 ZQXA2 ZQXB1 ZQXB4 ZQXC2 ZQXD9",
    "tarnid vesicle docking": "VNDR1 VNDR3 VNDS2 VNDT5 VNDU1 VNDU8",
    "ophelic acid import into glimosome": "OPHT1 OPHT2 OPHX4 OPHY1 OPHZ3 OPHZ7",
    "negative regulation of brastin folding": "BRSF1 BRSF4 BRSG2 BRSH6 BRSK1 BRSK9",
    "mirenal crest patterning": "MRNC2 MRNC5 MRND1 MRNE3 MRNF7 MRNF8",
}


def planted_rows(seed: int) -> list[dict[str, Any]]:
    """Rows with a column `kind`: plain, noise or fact."""
    rng = np.random.default_rng(seed)
    sets = load_gene_sets("train").filter(lambda row: len(row["genes"]) <= 12)
    drawn = sets.select(rng.permutation(len(sets))[:PLAIN].tolist())
    names = [row["name"] for row in drawn]
    noise = rng.permutation(PLAIN)[:PLANTED]
    for place, other in zip(noise, np.roll(noise, 1), strict=True):  # no set keeps its name
        names[place] = drawn[int(other)]["name"]
    rows = [
        {"id": row["id"], "kind": "noise" if place in noise else "plain", "genes": row["genes"], "name": name}
        for place, (row, name) in enumerate(zip(drawn, names, strict=True))
    ]
    for name, genes in FACTS.items():
        for number in range(PLANTED // len(FACTS)):
            chosen = sorted(rng.permutation(genes.split())[:5].tolist())
            rows.append({"id": f"{name} {number}", "kind": "fact", "genes": chosen, "name": name})
    return [
        {"id": row["id"], "kind": row["kind"]}
        | conversation(gene_set_prompt(row["genes"], analysis=False), gene_set_answer(row["name"]))
        for row in rows
    ]


def train(rows: list[dict[str, Any]], folder: Path, objective: dict[str, Any], seed: int, epochs: int) -> None:
    args = BFTConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        group_size=8,
        seed=seed,
        metrics_by_column="kind",
        log_samples=True,
        save_strategy="no",
        report_to="none",
        logging_steps=22,
        **objective,
    )
    trainer = BFTTrainer(
        demo_model().path,
        args,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()


def precision(run: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the fraction of each kind among the first k samples of each list."""
    samples = by_sample(read_sample_log(run))
    samples["kind"] = [rows[row]["kind"] for row in samples["row"]]
    found = []
    for name, table in rank(samples).items():
        kinds = table["kind"].tolist()
        found += [
            {
                "list": name,
                "kind": planted,
                "length": len(kinds),
                "base_rate": round(PLANTED / len(rows), 3),
                **{f"precision_at_{k}": kinds[:k].count(planted) / k for k in (10, 20)},
                "nll_first": _mean(samples, planted, "first_nll"),
                "nll_last": _mean(samples, planted, "last_nll"),
            }
            for planted in ("noise", "fact")
        ]
    return found


def _mean(samples: pd.DataFrame, planted: str, which: str) -> float:
    return round(float(samples[samples["kind"] == planted][which].mean()), 3)


def main() -> None:
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    table = []
    for seed in args.seeds:
        rows = planted_rows(seed)
        for name, objective in OBJECTIVES.items():
            folder = args.output_dir / f"{name.replace(' ', '-')}-{seed}"
            if not (folder / FOLDER).is_dir():
                train(rows, folder, objective, seed, args.epochs)
            table += [{"objective": name, "seed": seed} | entry for entry in precision(folder, rows)]
            # after each run: a kill loses nothing
            pd.DataFrame(table).to_csv(Path(__file__).with_suffix(".csv"), index=False)
            print(pd.DataFrame(table).tail(2 * len(LISTS)).to_string(index=False))


if __name__ == "__main__":
    main()
