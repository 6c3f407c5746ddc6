"""The data gate: which clips may be trained on, and why others may not."""
