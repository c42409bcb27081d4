"""Time and memory of the biology commands: profiles against plain `generate`, both tasks at real and larger sizes.

    python benchmarks/embeddings.py --train ggi_train.parquet --test ggi_valid.parquet

Each case runs in its own process; the results are in embeddings.csv. Without the two tables of gene pairs (gene_a,
gene_b, label), the same number of random pairs is used. Profiles are by SmolLM2-135M, 64 genes, 64 tokens each.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import isolated
import numpy as np
import pandas as pd

from bft_trl.biology.cells import Changes
from bft_trl.biology.pairs import pair_features, read_pairs
from bft_trl.biology.perturbation import score_perturbations
from bft_trl.biology.predictors import fit
from bft_trl.biology.profiles import write_profiles
from bft_trl.biology.vectors import Vectors
from bft_trl.io import atomic_file
from bft_trl.models import demo_model, load_run, load_tokenizer, read_run
from bft_trl.prompts import gene_profile_prompt

OUT = Path(__file__).with_name("embeddings.csv")
GENES = [f"GENE{number}" for number in range(64)]
TOKENS, BATCH = 64, 32


def profiles(case: dict[str, Any]) -> dict[str, Any]:
    """Our command, loading and writing included, or loading and one plain call of generate per batch."""
    run = read_run(demo_model().path, None)
    started = time.perf_counter()
    if case["arm"] == "bft-trl profiles":
        with tempfile.TemporaryDirectory() as folder:
            write_profiles(GENES, run, Path(folder) / "p.parquet", max_new_tokens=TOKENS, batch_size=BATCH)
    else:
        import torch

        model, tokenizer = load_run(run), load_tokenizer(run)
        turns = [[{"role": "user", "content": gene_profile_prompt(gene)}] for gene in GENES]
        texts = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        for first in range(0, len(texts), BATCH):
            inputs = tokenizer(
                texts[first : first + BATCH], padding=True, return_tensors="pt", add_special_tokens=False
            )
            with torch.inference_mode():
                model.generate(**inputs.to(model.device), max_new_tokens=TOKENS, do_sample=False)
    return {"seconds": time.perf_counter() - started}


def interactions(case: dict[str, Any]) -> dict[str, Any]:
    """Both classifiers on all training pairs, with 384 random numbers for each gene: features, fits, predictions."""
    rng = np.random.default_rng(0)
    train, test = (_pairs(case[part], rng) for part in ("train", "test"))
    genes = sorted({gene for part in (train, test) for end in ("gene_a", "gene_b") for gene in part[end]})
    index = {gene: row for row, gene in enumerate(genes)}
    vectors = rng.standard_normal((len(genes), 384)).astype(np.float32)
    started = time.perf_counter()

    def featured(part: pd.DataFrame) -> np.ndarray:
        return pair_features(vectors, part["gene_a"].map(index).to_numpy(), part["gene_b"].map(index).to_numpy())

    labels = [part["label"].to_numpy() for part in (train, test)]
    found = fit((featured(train), labels[0]), (featured(test), labels[1]), featured(test), seed=0)
    return {"seconds": time.perf_counter() - started, "size": f"{len(train)} pairs x 384", "chosen": found.chosen}


def perturbation(case: dict[str, Any]) -> dict[str, Any]:
    """The whole scoring with all controls, on random changes."""
    count, n_genes = case["perturbations"], case["genes"]
    rng = np.random.default_rng(0)
    names = [f"P{number}" for number in range(count)]
    changes = rng.standard_normal((count, n_genes))
    found = Changes(names, [f"G{number}" for number in range(n_genes)], changes, changes, changes > 1)
    vectors = Vectors(names, rng.standard_normal((count, 384)).astype(np.float32))
    started = time.perf_counter()
    score_perturbations(found, {"text": vectors})
    return {"seconds": time.perf_counter() - started, "size": f"{count} x {n_genes}"}


def _pairs(path: str | None, rng: np.random.Generator) -> pd.DataFrame:
    if path is not None:
        return read_pairs(Path(path))
    drawn = rng.integers(8000, size=(263_016, 2))
    pairs = pd.DataFrame(drawn, columns=["gene_a", "gene_b"]).astype(str)
    return pairs.assign(label=rng.integers(0, 2, len(pairs)))


PARTS = {"profiles": profiles, "interactions": interactions, "perturbation": perturbation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="table of gene pairs")
    parser.add_argument("--test", help="table of gene pairs")
    parser.add_argument("--repeats", type=int, default=3, help="of the profiles; the others run once (default: 3)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="the others' rows stay")
    parser.add_argument("--memory-gib", type=float, default=20.0, help="at most (default: 20)")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:

        def measured() -> dict[str, Any]:
            isolated.reset_peak()
            found = PARTS[args.case["part"]](args.case)
            return found | {"peak_gib": round(isolated.peak() / 2**30, 3)}

        isolated.answer(measured, args.memory_gib)
        return
    cases: list[dict[str, Any]] = [{"part": "profiles", "arm": arm} for arm in ("generate", "bft-trl profiles")]
    cases.append(
        {"part": "interactions", "arm": "both classifiers", "train": args.train, "test": args.test, "repeats": 1}
    )
    for count, n_genes in ((25, 299), (2000, 5000)):
        cases.append({"part": "perturbation", "arm": "all", "perturbations": count, "genes": n_genes, "repeats": 1})
    cases = [case for case in cases if case["part"] in args.parts]
    isolated.measure_all(Path(__file__), cases, repeats=args.repeats, memory_gib=args.memory_gib, out=OUT)
    rows = pd.read_csv(OUT).drop(columns=["train", "test"], errors="ignore")  # no paths in the results
    with atomic_file(OUT) as temporary:
        rows.to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
