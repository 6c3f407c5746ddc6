"""Scoring: pooling, fusion, head, calibration, the scorer, and the folder that stores a scorer."""
