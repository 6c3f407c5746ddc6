"""From features to a score: pooling, fusion, head, calibration, and the folder a scorer is saved as."""
