"""Models of the earlier code base (QwenFeat-Vocal-Score): loading, running and converting them."""
