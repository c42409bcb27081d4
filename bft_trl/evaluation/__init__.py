"""Evaluation with lm-eval, and scores of answers."""
