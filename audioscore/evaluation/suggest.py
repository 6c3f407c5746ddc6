"""Which unlabelled recordings are worth a human score most: where models disagree, are unsure, or know little.

Source: Settles, Active Learning Literature Survey, 2009 (query by committee, density); which of the four signs pays
most is not known beforehand, so each counts the same, by rank.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError

Array = NDArray[np.float64]

KERNEL_POINTS = 2.0  # width of the kernel that counts labelled clips around a score


@dataclass(frozen=True)
class Suggestion:
    """A recording and why it should be scored next.

    `predicted`: mean of the models, points. `disagreement`: their standard deviation, points. `width`: of the winner's
    interval, points. `sparsity`: 1 / (1 + labelled training clips about as good), 0 to 1. `novelty`: how far its voice
    is from every voice that was trained on, 0 to 1. `gain`, 0 to 1: the mean of the four by rank, less for a singer of
    whom other clips are suggested first.
    """

    audio_file: str
    singer_id: str | None
    predicted: float
    disagreement: float
    width: float
    sparsity: float
    novelty: float
    gain: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rank_suggestions(
    names: Sequence[str],
    singers: Sequence[str | None],
    predicted: ArrayLike,
    widths: ArrayLike,
    novelty: ArrayLike,
    labelled: ArrayLike,
) -> list[Suggestion]:
    """Every recording, the most useful first; equal ones in the order of their names.

    After a singer's first clip the second counts half, the third a third: ten takes of one new voice teach little more
    than two. Clips without a singer count as singers of their own.

    Shape: predicted [models, N] in points, widths [N], novelty [N] in 0 to 1, labelled [M] scores of the training
    clips. Raises DataError where a value is not finite or the shapes do not fit.
    """
    points, width, far = (np.asarray(values, dtype=np.float64) for values in (predicted, widths, novelty))
    known = np.asarray(labelled, dtype=np.float64)
    count = len(names)
    if points.ndim != 2 or {points.shape[1], len(width), len(far), len(singers)} != {count} or not len(points):
        raise DataError(
            f"Suggesting among {count} recordings needs as many predictions, widths, novelties and singers; got "
            f"{list(points.shape)}, {len(width)}, {len(far)} and {len(singers)}."
        )
    if not all(np.isfinite(values).all() for values in (points, width, far, known)):
        raise DataError("Suggesting needs finite predictions, widths, novelties and scores. Leave broken clips out.")
    mean = points.mean(axis=0)
    signs = {
        "disagreement": points.std(axis=0),
        "width": width,
        "sparsity": 1.0 / (1.0 + _density(mean, known)),
        "novelty": far,
    }
    value = np.mean([_rank_share(values) for values in signs.values()], axis=0)
    order = _spread_over_singers(value, names, singers)
    return [
        Suggestion(
            audio_file=names[place],
            singer_id=singers[place],
            predicted=float(mean[place]),
            disagreement=float(signs["disagreement"][place]),
            width=float(width[place]),
            sparsity=float(signs["sparsity"][place]),
            novelty=float(far[place]),
            gain=gain,
        )
        for place, gain in order
    ]


def _density(points: Array, labelled: Array) -> Array:
    """Labelled clips around each score, by a Gaussian kernel with height 1. Shape: [N], [M] -> [N]."""
    return np.asarray(np.exp(-0.5 * ((points[:, None] - labelled[None, :]) / KERNEL_POINTS) ** 2).sum(axis=1))


def _rank_share(values: Array) -> Array:
    """Rank of each value among all, 0 to 1, ties sharing theirs; 0.5 where all are equal. Shape: [N] -> [N].

    >>> _rank_share(np.array([3.0, 1.0, 1.0])).tolist()
    [1.0, 0.25, 0.25]
    """
    from scipy.stats import rankdata

    return np.full(1, 0.5) if len(values) == 1 else np.asarray((rankdata(values) - 1) / (len(values) - 1))


def _spread_over_singers(value: Array, names: Sequence[str], singers: Sequence[str | None]) -> list[tuple[int, float]]:
    """Places and what each brings, the most first, when a singer's later clips count less."""
    seen: dict[str, int] = {}
    gains = []
    for place in sorted(range(len(value)), key=lambda one: (-value[one], names[one])):
        singer = singers[place]
        earlier = 0 if singer is None else seen.get(singer, 0)
        if singer is not None:
            seen[singer] = earlier + 1
        gains.append((place, float(value[place]) / (1 + earlier)))
    return sorted(gains, key=lambda found: (-found[1], names[found[0]]))
