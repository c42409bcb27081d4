"""Paired comparison of evaluated runs, with tables, plots and a page."""
