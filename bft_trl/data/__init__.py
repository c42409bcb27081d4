"""Data to train and to evaluate on: built, read, downloaded, and checked for leakage."""
