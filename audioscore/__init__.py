"""A singing-voice scorer on the 50-99 scale, and the pipeline that trains, compares and registers it.

>>> from audioscore import load_scorer
>>> scorer = load_scorer("models:/audioscore@champion")  # doctest: +SKIP
>>> scorer.score("take.m4a").score  # doctest: +SKIP
83.2
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audioscore.scoring.scorer import Scorer

__version__ = "0.1.0"


def load_scorer(uri: str | Path | None = None, device: str = "auto", fast: bool = False) -> "Scorer":
    """The scorer that `uri` names: a scorer folder, a predecessor's folder, `models:/NAME@ALIAS` or `models:/NAME/3`;
    by default the champion, and where there is none yet the demo's.

    `device` "auto" is a GPU where there is one. `fast` multiplies rounder numbers on a CPU, see docs/scoring.md.
    Raises ModelError where there is no such scorer, or it is damaged; UsageError for what is no name of one, and for a
    device that is not there.
    """
    from audioscore.encoders.extract import choose_device
    from audioscore.scoring.checkpoint import load_scorer as load_folder
    from audioscore.tracking.find_scorer import find_scorer

    return load_folder(find_scorer(uri)[1], device=choose_device(device), fast=fast, needs_voice=True)
