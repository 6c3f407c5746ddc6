"""Versions of a data folder: DVC records, history, changes, and where the data are stored."""
