"""Reads, builds, downloads and checks training and evaluation data."""
