"""Inspection of a data set before training, and of the hard samples after it."""
