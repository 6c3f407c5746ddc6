"""Score singing recordings, and train, compare and register the scorers.

>>> from audioscore import load_scorer
>>> scorer = load_scorer("models:/audioscore@champion")  # doctest: +SKIP
>>> scorer.score("recording.m4a").score  # doctest: +SKIP
83.2
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audioscore.scoring.scorer import Scorer

__version__ = "0.1.0"


def load_scorer(uri: str | Path | None = None, device: str = "auto", fast: bool = False) -> "Scorer":
    """Load a scorer for use in Python.

    Args:
        uri: a scorer folder, the folder of a legacy model, `models:/NAME@ALIAS` or `models:/NAME/3`. Default: the
            champion of "audioscore", or of the demo if "audioscore" has no champion yet.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        fast: use the faster and less exact CPU kernels, see docs/scoring.md.

    Raises:
        ModelError: the scorer does not exist or is damaged.
        UsageError: `uri` is not a valid name, or the device is not available.
    """
    from audioscore.encoders.compute import choose_device
    from audioscore.scoring.checkpoint import load_scorer as load_folder
    from audioscore.tracking.find_scorer import find_scorer

    return load_folder(find_scorer(uri)[1], device=choose_device(device), fast=fast, needs_voice=True)
