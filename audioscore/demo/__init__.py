"""Synthetic singing of known quality: voices, songs, faults and rooms for the demo corpus, and the small encoders."""
