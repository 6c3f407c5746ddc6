"""How much of the recording domain can be read from what a model knows of clips that people scored alike.

Sources differ in score as well as in sound, so that any good model tells them apart overall. Within a band of scores it
need not: what is read there is the room, the microphone or the mix. A ridge classifier is asked, in closed form, about
clips of singers that it was not trained on.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError
from audioscore.evaluation.bootstrap import Estimate, cluster_counts, interval, singer_clusters, undefined_resamples
from audioscore.evaluation.estimates import with_wilson
from audioscore.evaluation.speaker_probe import ridge_classes
from audioscore.units import band_of

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection

Array = NDArray[np.float64]

FOLDS = 5  # at most; fewer where a source has fewer singers in a band
MIN_CLIPS, MIN_SINGERS = 4, 2  # of a source in a band


def domain_probe(
    known: ArrayLike,
    scores: Sequence[float],
    sources: Sequence[str | None],
    singers: Sequence[str | None],
    settings: "EvaluationSection",
) -> dict[str, Any]:
    """Balanced accuracy of naming a clip's source within its score band, with its interval, beside chance.

    Each source of each band counts the same. `bands` says which were asked, and how many clips of which source.
    `balanced_accuracy` and `chance` are None, with a `reason`, where no band holds enough clips of two sources.

    Shape: known [N, P], the others N long. Raises DataError for features that are not finite or not one row a clip.
    """
    values = np.asarray(known, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(scores) or not np.isfinite(values).all():
        raise DataError(
            f"A domain probe needs finite features [N, P] of {len(scores)} clips; got {list(values.shape)}."
        )
    clusters = singer_clusters(singers)
    cells: list[tuple[NDArray[np.intp], NDArray[np.bool_], float]] = []  # places, hits, chance
    bands: dict[str, dict[str, int]] = {}
    for band, by_source in _bands(scores, sources, clusters).items():
        hits = _ask(values, by_source, clusters, settings.seed)
        if hits is not None:
            bands[band] = {source: len(places) for source, places in by_source.items()}
            cells += [(places, hits[places], 1 / len(by_source)) for places in by_source.values()]
    if not cells:
        return {"balanced_accuracy": None, "chance": None, "clips": 0, "bands": {}, "reason": _reason(scores, sources)}
    return {
        "balanced_accuracy": _balanced(cells, clusters, settings).as_dict(),
        "chance": float(np.mean([chance for _, _, chance in cells])),
        "clips": sum(len(places) for places, _, _ in cells),
        "bands": bands,
        "reason": None,
    }


def _bands(
    scores: Sequence[float], sources: Sequence[str | None], clusters: NDArray[np.int64]
) -> dict[str, dict[str, NDArray[np.intp]]]:
    """Bands in which two sources or more have enough clips and singers: the places of their clips by source."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place in np.argsort(scores, kind="stable"):
        source = sources[place]
        if source is not None:
            found[band_of(float(scores[place]))][source].append(int(place))
    enough = {
        band: {
            source: np.array(places)
            for source, places in sorted(by_source.items())
            if len(places) >= MIN_CLIPS and len(np.unique(clusters[places])) >= MIN_SINGERS
        }
        for band, by_source in found.items()
    }
    return {band: by_source for band, by_source in enough.items() if len(by_source) > 1}


def _ask(
    values: Array, by_source: dict[str, NDArray[np.intp]], clusters: NDArray[np.int64], seed: int
) -> NDArray[np.bool_] | None:
    """Whether each clip's source was named by a classifier that heard no clip of its singer.

    None where singers that are in several sources leave a fold without one of these to learn from. Shape: -> [N], of
    which only the places asked about say something.
    """
    places = np.concatenate(list(by_source.values()))
    label = np.repeat(np.arange(len(by_source)), [len(own) for own in by_source.values()])
    fold_of = _deal([clusters[own] for own in by_source.values()], np.random.default_rng(seed))
    folds = np.array([fold_of[cluster] for cluster in clusters[places]])
    hits = np.zeros(len(values), dtype=np.bool_)
    for fold in np.unique(folds):
        held = folds == fold
        if len(np.unique(label[~held])) < len(by_source):
            return None
        guessed = ridge_classes(values[places[~held]], label[~held], values[places[held]], len(by_source))
        hits[places[held]] = guessed == label[held]
    return hits


def _deal(singers: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> dict[int, int]:
    """A fold for each singer, those of each source spread as evenly as they go."""
    own = [np.unique(clusters) for clusters in singers]
    folds, fold_of = min(FOLDS, *(len(clusters) for clusters in own)), dict[int, int]()
    for clusters in own:
        new = [int(cluster) for cluster in rng.permutation(clusters) if int(cluster) not in fold_of]
        fold_of |= {cluster: place % folds for place, cluster in enumerate(new)}
    return fold_of


def _balanced(
    cells: Sequence[tuple[NDArray[np.intp], NDArray[np.bool_], float]],
    clusters: NDArray[np.int64],
    settings: "EvaluationSection",
) -> Estimate:
    """The mean over cells of the share named rightly; singers are resampled whole, and a cell that a resample lacks is
    left out of its mean.
    """
    asked = np.concatenate([places for places, _, _ in cells])
    drawn = cluster_counts(clusters[asked], settings.resamples, settings.seed).astype(np.float64)
    total, present, start = np.zeros(len(drawn)), np.zeros(len(drawn)), 0
    for places, hits, _ in cells:
        weights = drawn[:, start : start + len(places)]
        start += len(places)
        size = weights.sum(axis=1)
        total += weights @ hits / np.maximum(size, 1.0)
        present += size > 0
    values = np.where(present > 0, total / np.maximum(present, 1.0), np.nan)
    value = float(np.mean([hits.mean() for _, hits, _ in cells]))
    found = Estimate(value, *interval(values, settings.confidence), undefined_resamples(values))
    if found.lo == found.hi and value in (0.0, 1.0):  # every resample is alike, however few singers there are
        return with_wilson(found, len(np.unique(clusters[asked])), settings.confidence)
    return found


def _reason(scores: Sequence[float], sources: Sequence[str | None]) -> str:
    """Why nothing could be asked, with where each source's scores lie."""
    by_source: dict[str, list[float]] = defaultdict(list)
    for score, source in zip(scores, sources, strict=True):
        by_source[source or "unknown"].append(score)
    ranges = [f"{name} {min(own):g} to {max(own):g}" for name, own in sorted(by_source.items())]
    return (
        f"no score band holds {MIN_CLIPS} clips by {MIN_SINGERS} singers of each of two sources, by whom a fold can be "
        f"learned from (scores: {', '.join(ranges) or 'no clips'})"
    )
