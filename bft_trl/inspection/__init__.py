"""Samples as the loss sees them: before training (inspection) and after it (hard samples)."""
