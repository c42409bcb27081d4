"""Time and peak memory of scoring: ROUGE of names, and their percentile among background names.

    python benchmarks/scoring.py

Names are drawn from the words of the gene sets that ship, vectors at random with MedCPT's 768 dimensions. Medians of
five; the rows are written to benchmarks/scoring.csv.
"""

import csv
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bft_trl import load_gene_sets
from bft_trl.evaluation.rouge import rouge_scores
from bft_trl.evaluation.similarity import background_percentile

REPEATS = 5


def measure(action: Callable[[], Any]) -> dict[str, float]:
    """Returns the median seconds after one warm-up call, and the peak allocation of a call in MB."""
    action()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": round(statistics.median(times), 3), "peak_mb": round(peak / 1e6, 1)}


def unit_vectors(count: int, *, rng: np.random.Generator) -> np.ndarray:
    vectors = rng.normal(size=(count, 768)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    rng = np.random.default_rng(0)
    true = load_gene_sets("train")["name"][:1000]
    words = [word for name in true for word in name.split()]
    answers = [" ".join(rng.choice(words, 5)) for _ in true]
    rows = [{"what": "ROUGE-1, -2, -L", "names": 1000, "background": 0} | measure(lambda: rouge_scores(true, answers))]
    for names, terms in ((1000, 12_000), (4000, 12_000), (1000, 48_000)):
        given, truth, background = (unit_vectors(count, rng=rng) for count in (names, names, terms))
        measured = measure(lambda a=given, t=truth, b=background: background_percentile(a, t, b))  # type: ignore[misc]
        rows.append({"what": "background percentile", "names": names, "background": terms} | measured)
    with (Path(__file__).parent / "scoring.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
