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

from audioscore.errors import DataError, UsageError, shorten
from audioscore.evaluation.bootstrap import Estimate, cluster_counts, interval, singer_clusters, undefined_resamples
from audioscore.evaluation.estimates import with_wilson
from audioscore.units import band_of

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection


Array = NDArray[np.float64]

PENALTIES = 10.0 ** np.arange(-5, 3)  # of the largest singular value squared; leave-one-out chooses one a fold
MIN_CLIPS_PER_SINGER = 2  # a singer's: one to learn from, one to ask about


def speaker_probe(features: ArrayLike, speakers: Sequence[str], *, folds: int = 5, seed: int = 0) -> float:
    """Balanced accuracy of who sings: a mean over singers of the share of their clips that are recognised.

    Chance is 1 / number of singers, which is also what features give that say nothing of the singer.

    Shape: features [N, D], N names. Raises as `recognised` does.
    """
    hits, names = recognised(features, speakers, folds=folds, seed=seed), np.asarray(speakers, dtype=str)
    return float(np.mean([hits[names == name].mean() for name in np.unique(names)]))


def recognised(features: ArrayLike, speakers: Sequence[str], *, folds: int = 5, seed: int = 0) -> NDArray[np.bool_]:
    """Whether each clip's singer was named by a probe that was trained without the clip, but with others of the singer.

    Every singer counts the same in training, however many clips there are. The same seed deals the same folds.

    Shape: features [N, D], N names -> [N]. Raises DataError for features that are not finite or not one row a name,
    below two singers, or a singer with one clip; UsageError for fewer than two folds.
    """
    values, names = np.asarray(features, dtype=np.float64), np.asarray(speakers, dtype=str)
    _check(values, names, folds)
    singers, label = np.unique(names, return_inverse=True)
    fold_of = _assign_folds(label, folds, np.random.default_rng(seed))
    hits = np.zeros(len(names), dtype=np.bool_)
    for fold in range(folds):
        held = fold_of == fold
        if held.any():
            guessed = ridge_classes(values[~held], label[~held], values[held], len(singers))
            hits[held] = guessed == label[held]
    return hits


def _assign_folds(label: NDArray[np.intp], folds: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """A fold for each clip: those of one singer are spread as evenly as they go, from a random fold on."""
    fold_of = np.zeros(len(label), dtype=np.intp)
    for singer in range(label.max() + 1):
        own = rng.permutation(np.flatnonzero(label == singer))
        fold_of[own] = (np.arange(len(own)) + rng.integers(folds)) % folds
    return fold_of


def ridge_classes(known: Array, label: NDArray[np.intp], asked: Array, singers: int) -> NDArray[np.intp]:
    """Weighted ridge regression on one column a singer; the largest output names the singer.

    Shape: known [N, D], label [N], asked [M, D] -> [M].
    """
    weight = 1.0 / (singers * np.bincount(label, minlength=singers)[label])  # (N,), sums to 1
    centre = weight @ known
    spread = np.sqrt(weight @ (known - centre) ** 2)
    # Rounding leaves a constant channel a spread of about 1e-16 of its values, which must not become a signal.
    scale = np.where(spread > 1e-9 * (1.0 + np.abs(centre)), spread, np.inf)
    root = np.sqrt(weight)[:, None]
    wanted = root * (np.eye(singers)[label] - 1.0 / singers)
    left, size, right = np.linalg.svd(root * (known - centre) / scale, full_matrices=False)
    along = left.T @ wanted  # (R, singers)
    if size[0] == 0.0:  # features that never change
        return np.zeros(len(asked), dtype=np.intp)
    penalty = min(
        PENALTIES * size[0] ** 2, key=lambda one: _left_out(left, size**2 / (size**2 + one), along, wanted, root)
    )
    outputs = ((asked - centre) / scale) @ right.T @ (along * (size / (size**2 + penalty))[:, None])
    return np.asarray(outputs.argmax(axis=1), dtype=np.intp)


def _left_out(left: Array, shrink: Array, along: Array, wanted: Array, root: Array) -> float:
    """Squared error of leaving one clip out at a time, without fitting anew; the mean counts as fitted too.

    Source: Allen 1974, the PRESS statistic.
    """
    leverage = (left**2) @ shrink + root[:, 0] ** 2
    residual = (wanted - left @ (shrink[:, None] * along)) / np.maximum(1.0 - leverage, 1e-9)[:, None]
    return float((residual**2).sum())


def _check(values: Array, names: NDArray[np.str_], folds: int) -> None:
    if folds < 2:
        raise UsageError(f"A speaker probe needs 2 folds or more; got {folds}.")
    if values.ndim != 2 or values.shape[0] != len(names) or values.shape[1] == 0:
        raise DataError(f"A speaker probe needs features [N, D] of {len(names)} clips; got {list(values.shape)}.")
    if bad := int((~np.isfinite(values).all(axis=1)).sum()):
        raise DataError(f"{bad} of {len(values)} clips have features that are not finite. Leave these clips out.")
    singers, counts = np.unique(names, return_counts=True)
    if len(singers) < 2:
        raise DataError(f"A speaker probe needs 2 singers or more; got {len(singers)}. Add singers.")
    if len(few := singers[counts < MIN_CLIPS_PER_SINGER]):
        raise DataError(
            f"{len(few)} of {len(singers)} singers have a single clip ({shorten(few.tolist())}), and could not be "
            "learned and asked about. Leave these clips out."
        )


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
