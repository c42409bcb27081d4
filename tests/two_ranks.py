"""One of two ranks of test_two_ranks_equal_one: trains 2 x 2 x 2 rows and lets rank 0 save what came out."""

import sys
from pathlib import Path

import torch
from test_trainer import FIGURES, SGD, build, logged, sample_rows, weights_of


def main() -> None:
    folder = Path(sys.argv[1])
    rows = sample_rows(8)
    rows[3]["completion"] = ""
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 2}
    trainer = build(folder, rows, eval_rows=sample_rows(7, seed=3), **SGD, **cut, ddp_backend="gloo")
    trainer.train()
    evaluation = trainer.evaluate()
    if trainer.is_world_process_zero():
        result = {name: logged(trainer, name) for name in ("loss", *FIGURES)}
        result |= {f"eval_{name}": evaluation[f"eval_{name}"] for name in FIGURES}
        torch.save(result | {"weights": weights_of(trainer)}, folder / "two_ranks.pt")


if __name__ == "__main__":
    main()
