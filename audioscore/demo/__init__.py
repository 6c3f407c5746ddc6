"""Synthetic singing of known quality for the demo corpus, and pretraining of the small encoders on it."""
