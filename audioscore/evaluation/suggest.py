"""Active learning: rank unlabelled recordings by how much a human score of them would help.

Source: Settles, Active Learning Literature Survey, 2009 (query by committee, density). The four criteria have equal
weight, by rank, because their relative value is not known beforehand.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError

Array = NDArray[np.float64]

KERNEL_POINTS = 2.0  # standard deviation of the density kernel, in score points


@dataclass(frozen=True)
class Suggestion:
    """A recording to label next, with the criteria that ranked it.

    `predicted`: mean of the models, points. `disagreement`: their standard deviation, points. `width`: of the winner's
    prediction interval, points. `sparsity`: 1 / (1 + density of training scores at the prediction), 0 to 1. `novelty`:
    distance of its voice from all training voices, 0 to 1. `gain`: mean rank of the four criteria, 0 to 1, reduced for
    a singer's second and later clips.
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
        """Return the entry of `suggest --json`."""
        return asdict(self)


def rank_suggestions(
    names: Sequence[str],
    singers: Sequence[str | None],
    predicted: ArrayLike,
    widths: ArrayLike,
    novelty: ArrayLike,
    labelled: ArrayLike,
) -> list[Suggestion]:
    """Rank all recordings by gain, highest first; ties are ordered by name.

    A singer's second clip counts half, the third a third, because many clips of one voice add little. A clip without a
    singer counts as a separate singer.

    Shape: predicted [models, N] in points, widths [N], novelty [N] in 0 to 1, labelled [M] scores of the training
        clips.
    Raises: DataError where a value is not finite or the shapes do not fit.
    """
    points, width, distance = (np.asarray(values, dtype=np.float64) for values in (predicted, widths, novelty))
    scores = np.asarray(labelled, dtype=np.float64)
    count = len(names)
    if points.ndim != 2 or {points.shape[1], len(width), len(distance), len(singers)} != {count} or not len(points):
        raise DataError(
            f"Suggestions: {count} recordings have predictions, widths, novelties and singers of sizes "
            f"{list(points.shape)}, {len(width)}, {len(distance)} and {len(singers)}. Pass {count} of each."
        )
    if not all(np.isfinite(values).all() for values in (points, width, distance, scores)):
        raise DataError("Suggestions: some predictions, widths, novelties or scores are not finite. Remove them.")
    mean = points.mean(axis=0)
    criteria = {
        "disagreement": points.std(axis=0),
        "width": width,
        "sparsity": 1.0 / (1.0 + _density(mean, scores)),
        "novelty": distance,
    }
    value = np.mean([_rank_share(values) for values in criteria.values()], axis=0)
    order = _spread_over_singers(value, names, singers)
    return [
        Suggestion(
            audio_file=names[index],
            singer_id=singers[index],
            predicted=float(mean[index]),
            disagreement=float(criteria["disagreement"][index]),
            width=float(width[index]),
            sparsity=float(criteria["sparsity"][index]),
            novelty=float(distance[index]),
            gain=gain,
        )
        for index, gain in order
    ]


def _density(points: Array, labelled: Array) -> Array:
    """Sum a Gaussian kernel of height 1 over the labelled scores, at each point. Shape: [N], [M] -> [N]."""
    return np.asarray(np.exp(-0.5 * ((points[:, None] - labelled[None, :]) / KERNEL_POINTS) ** 2).sum(axis=1))


def _rank_share(values: Array) -> Array:
    """Scale ranks to 0..1, with midranks for ties; 0.5 where all are equal. Shape: [N] -> [N].

    >>> _rank_share(np.array([3.0, 1.0, 1.0])).tolist()
    [1.0, 0.25, 0.25]
    """
    from scipy.stats import rankdata

    return np.full(1, 0.5) if len(values) == 1 else np.asarray((rankdata(values) - 1) / (len(values) - 1))


def _spread_over_singers(value: Array, names: Sequence[str], singers: Sequence[str | None]) -> list[tuple[int, float]]:
    """Return (index, gain) pairs, highest gain first, with the gain divided for a singer's later clips."""
    seen: dict[str, int] = {}
    gains = []
    for index in sorted(range(len(value)), key=lambda one: (-value[one], names[one])):
        singer = singers[index]
        earlier = 0 if singer is None else seen.get(singer, 0)
        if singer is not None:
            seen[singer] = earlier + 1
        gains.append((index, float(value[index]) / (1 + earlier)))
    return sorted(gains, key=lambda found: (-found[1], names[found[0]]))
