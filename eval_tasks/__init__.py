"""lm-eval tasks of bft_trl: `lm_eval --include_path eval_tasks`; in an installed package, `bft_trl.eval_tasks`."""
