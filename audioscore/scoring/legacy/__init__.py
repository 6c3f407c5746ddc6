"""Legacy models (QwenFeat-Vocal-Score): load, run and convert them."""
