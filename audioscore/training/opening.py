"""What comes before MuQ is tuned: some epochs of the head alone, on what the untuned MuQ made of the clips."""

from dataclasses import dataclass
from pathlib import Path

from audioscore.training.data import Fold


@dataclass(frozen=True)
class Opening:
    """`epochs` of the head alone, on the same clips as MuQ hears them untuned.

    A head that knows nothing would first pull MuQ's layers where they do not belong, and each of its steps would cost
    theirs. Source: Kumar et al. 2022, arXiv 2202.10054.
    """

    train: Fold
    val: Fold
    epochs: int


def head_checkpoint(checkpoint: Path) -> Path:
    """Where an opening's is kept, beside the fit's own.

    >>> head_checkpoint(Path("seed-1.checkpoint")).name
    'seed-1.head.checkpoint'
    """
    return checkpoint.with_suffix(f".head{checkpoint.suffix}")
