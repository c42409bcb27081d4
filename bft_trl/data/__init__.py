"""Training data: gene sets, tables, and the leakage check."""
