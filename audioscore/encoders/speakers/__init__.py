"""Speaker encoders that the adversary learns to predict."""
