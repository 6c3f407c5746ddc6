"""Linear probes: how well a ridge classifier recovers the singer or the recording domain from a model's features.

Sources differ in score as well as in sound, so any good model separates them overall. The domain probe therefore works
within bands of human score, where only the acoustics, the microphone and the mix differ.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError, UsageError, shorten
from audioscore.evaluation.bootstrap import (
    Estimate,
    cluster_counts,
    interval,
    singer_clusters,
    undefined_resamples,
    with_wilson,
)
from audioscore.evaluation.metrics import Array
from audioscore.units import band_of

if TYPE_CHECKING:
    from audioscore.config import EvaluationSection

PENALTIES = 10.0 ** np.arange(-5, 3)  # share of the largest squared singular value
FOLDS = 5  # of the cross-validation of the domain probe, at most; fewer where a source has fewer singers in a band
MIN_CLIPS, MIN_SINGERS = 4, 2  # of a source in a band, for the domain probe
MIN_CLIPS_PER_SINGER = 2  # one for training, one for testing


def speaker_probe(features: ArrayLike, speakers: Sequence[str], *, folds: int = 5, seed: int = 0) -> float:
    """Compute the balanced accuracy of a linear singer classifier, by cross-validation.

    It measures how much the features reveal about the singer. Chance is 1 / number of singers.

    Shape: features [N, D], N names.
    Raises: as `correct_predictions`.
    """
    hits, names = correct_predictions(features, speakers, folds=folds, seed=seed), np.asarray(speakers, dtype=str)
    return float(np.mean([hits[names == name].mean() for name in np.unique(names)]))


def correct_predictions(
    features: ArrayLike, speakers: Sequence[str], *, folds: int = 5, seed: int = 0
) -> NDArray[np.bool_]:
    """Predict the singer of each clip by cross-validation; return which predictions are correct.

    Folds are stratified by singer, and all singers have equal weight in training.

    Shape: features [N, D], N names -> [N].
    Raises: DataError for features that are not finite or not one row for each name, fewer than two singers, or a singer
        with one clip; UsageError for fewer than two folds.
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
    """Assign cross-validation folds, each singer's clips spread evenly from a random fold on."""
    fold_of = np.zeros(len(label), dtype=np.intp)
    for singer in range(label.max() + 1):
        own = rng.permutation(np.flatnonzero(label == singer))
        fold_of[own] = (np.arange(len(own)) + rng.integers(folds)) % folds
    return fold_of


def ridge_classes(train: Array, label: NDArray[np.intp], test: Array, classes: int) -> NDArray[np.intp]:
    """Classify by weighted ridge regression in closed form: one output for each class, all classes of equal weight.

    Shape: train [N, D], label [N], test [M, D] -> [M].
    """
    weight = 1.0 / (classes * np.bincount(label, minlength=classes)[label])  # (N,), sums to 1
    centre = weight @ train
    spread = np.sqrt(weight @ (train - centre) ** 2)
    # Rounding gives a constant channel a spread of about 1e-16 of its values, which must not be scaled up.
    scale = np.where(spread > 1e-9 * (1.0 + np.abs(centre)), spread, np.inf)
    root = np.sqrt(weight)[:, None]
    wanted = root * (np.eye(classes)[label] - 1.0 / classes)
    left, size, right = np.linalg.svd(root * (train - centre) / scale, full_matrices=False)
    along = left.T @ wanted  # (R, classes)
    if size[0] == 0.0:  # constant features
        return np.zeros(len(test), dtype=np.intp)
    penalty = min(
        PENALTIES * size[0] ** 2, key=lambda one: _press(left, size**2 / (size**2 + one), along, wanted, root)
    )
    outputs = ((test - centre) / scale) @ right.T @ (along * (size / (size**2 + penalty))[:, None])
    return np.asarray(outputs.argmax(axis=1), dtype=np.intp)


def _press(left: Array, shrink: Array, along: Array, wanted: Array, root: Array) -> float:
    """Compute the leave-one-out squared error (PRESS) in closed form, with the mean as a fitted parameter.

    Source: Allen (1974).
    """
    leverage = (left**2) @ shrink + root[:, 0] ** 2
    residual = (wanted - left @ (shrink[:, None] * along)) / np.maximum(1.0 - leverage, 1e-9)[:, None]
    return float((residual**2).sum())


def _check(values: Array, names: NDArray[np.str_], folds: int) -> None:
    if folds < 2:
        raise UsageError(f"Singer probe: 2 folds or more are needed, got {folds}. Raise folds.")
    if values.ndim != 2 or values.shape[0] != len(names) or values.shape[1] == 0:
        raise DataError(f"Singer probe: needs values [N, D] of {len(names)} clips; got {list(values.shape)}. Pass it.")
    if bad := int((~np.isfinite(values).all(axis=1)).sum()):
        raise DataError(f"Singer probe: {bad} of {len(values)} clips have non-finite features. Remove these clips.")
    singers, counts = np.unique(names, return_counts=True)
    if len(singers) < 2:
        raise DataError(f"Singer probe: 2 singers or more are needed, got {len(singers)}. Add singers.")
    if len(few := singers[counts < MIN_CLIPS_PER_SINGER]):
        raise DataError(
            f"Singer probe: {len(few)} of {len(singers)} singers have a single clip ({shorten(few.tolist())}). Remove "
            "these clips."
        )


def domain_probe(
    features: ArrayLike,
    scores: Sequence[float],
    sources: Sequence[str | None],
    singers: Sequence[str | None],
    settings: "EvaluationSection",
) -> dict[str, Any]:
    """Compute the balanced accuracy of a linear source classifier within score bands, with its interval and chance.

    Folds are by singer. Each source of each band has equal weight; `bands` counts their clips. `balanced_accuracy` and
    `chance` are None, with a `reason`, where no band has enough clips of two sources.

    Shape: features [N, P], the others [N].
    Raises: DataError for features that are not finite or not one row for each clip.
    """
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(scores) or not np.isfinite(values).all():
        raise DataError(
            f"Domain probe: needs finite features [N, P] of {len(scores)} clips, got {list(values.shape)}. Pass them."
        )
    clusters = singer_clusters(singers)
    cells: list[tuple[NDArray[np.intp], NDArray[np.bool_], float]] = []  # indices, hits, chance
    bands: dict[str, dict[str, int]] = {}
    for band, by_source in _bands(scores, sources, clusters).items():
        hits = _correct_sources(values, by_source, clusters, settings.seed)
        if hits is not None:
            bands[band] = {source: len(indices) for source, indices in by_source.items()}
            cells += [(indices, hits[indices], 1 / len(by_source)) for indices in by_source.values()]
    if not cells:
        return {"balanced_accuracy": None, "chance": None, "clips": 0, "bands": {}, "reason": _reason(scores, sources)}
    return {
        "balanced_accuracy": _balanced(cells, clusters, settings).as_dict(),
        "chance": float(np.mean([chance for _, _, chance in cells])),
        "clips": sum(len(indices) for indices, _, _ in cells),
        "bands": bands,
        "reason": None,
    }


def _bands(
    scores: Sequence[float], sources: Sequence[str | None], clusters: NDArray[np.int64]
) -> dict[str, dict[str, NDArray[np.intp]]]:
    """Return band -> source -> indices of clips, for bands where two sources have enough clips and singers."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in np.argsort(scores, kind="stable"):
        source = sources[index]
        if source is not None:
            found[band_of(float(scores[index]))][source].append(int(index))
    enough = {
        band: {
            source: np.array(indices)
            for source, indices in sorted(by_source.items())
            if len(indices) >= MIN_CLIPS and len(np.unique(clusters[indices])) >= MIN_SINGERS
        }
        for band, by_source in found.items()
    }
    return {band: by_source for band, by_source in enough.items() if len(by_source) > 1}


def _correct_sources(
    values: Array, by_source: dict[str, NDArray[np.intp]], clusters: NDArray[np.int64], seed: int
) -> NDArray[np.bool_] | None:
    """Predict the source of the clips in one band by cross-validation; return which predictions are correct.

    None where singers with several sources leave the training part of a cross-validation fold without a source.

    Shape: values [N, P] -> [N], False outside the band.
    """
    indices = np.concatenate(list(by_source.values()))
    label = np.repeat(np.arange(len(by_source)), [len(own) for own in by_source.values()])
    fold_of = _fold_of_singer([clusters[own] for own in by_source.values()], np.random.default_rng(seed))
    folds = np.array([fold_of[cluster] for cluster in clusters[indices]])
    hits = np.zeros(len(values), dtype=np.bool_)
    for fold_of_test in np.unique(folds):
        held = folds == fold_of_test
        if len(np.unique(label[~held])) < len(by_source):
            return None
        guessed = ridge_classes(values[indices[~held]], label[~held], values[indices[held]], len(by_source))
        hits[indices[held]] = guessed == label[held]
    return hits


def _fold_of_singer(singers: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> dict[int, int]:
    """Assign each singer a cross-validation fold, the singers of each source spread evenly."""
    own = [np.unique(clusters) for clusters in singers]
    folds, fold_of = min(FOLDS, *(len(clusters) for clusters in own)), dict[int, int]()
    for clusters in own:
        new = [int(cluster) for cluster in rng.permutation(clusters) if int(cluster) not in fold_of]
        fold_of |= {cluster: position % folds for position, cluster in enumerate(new)}
    return fold_of


def _balanced(
    cells: Sequence[tuple[NDArray[np.intp], NDArray[np.bool_], float]],
    clusters: NDArray[np.int64],
    settings: "EvaluationSection",
) -> Estimate:
    """Average the accuracy over cells; a cell without clips in a resample is excluded from that resample."""
    indices = np.concatenate([cell for cell, _, _ in cells])
    drawn = cluster_counts(clusters[indices], settings.resamples, settings.seed).astype(np.float64)
    total, present, start = np.zeros(len(drawn)), np.zeros(len(drawn)), 0
    for cell, hits, _ in cells:
        weights = drawn[:, start : start + len(cell)]
        start += len(cell)
        size = weights.sum(axis=1)
        total += weights @ hits / np.maximum(size, 1.0)
        present += size > 0
    values = np.where(present > 0, total / np.maximum(present, 1.0), np.nan)
    value = float(np.mean([hits.mean() for _, hits, _ in cells]))
    found = Estimate(value, *interval(values, settings.confidence), undefined_resamples(values))
    if found.lo == found.hi and value in (0.0, 1.0):  # all resamples are equal
        return with_wilson(found, len(np.unique(clusters[indices])), settings.confidence)
    return found


def _reason(scores: Sequence[float], sources: Sequence[str | None]) -> str:
    """Explain why no band qualifies, with the score range of each source."""
    by_source: dict[str, list[float]] = defaultdict(list)
    for score, source in zip(scores, sources, strict=True):
        by_source[source or "unknown"].append(score)
    ranges = [f"{name} {min(own):g} to {max(own):g}" for name, own in sorted(by_source.items())]
    return (
        f"no score band has {MIN_CLIPS} clips of {MIN_SINGERS} singers from each of two sources "
        f"(scores: {', '.join(ranges) or 'no clips'})"
    )
