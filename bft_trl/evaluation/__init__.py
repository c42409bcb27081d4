"""Scores of answers: arrays and texts in, one value per answer out. Nothing here loads a model."""
