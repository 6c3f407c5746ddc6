"""The data gate: decides which clips are used for training, and reports why others are rejected."""
