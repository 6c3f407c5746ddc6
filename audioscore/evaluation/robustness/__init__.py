"""Robustness tests: how scores change under known degradations."""
