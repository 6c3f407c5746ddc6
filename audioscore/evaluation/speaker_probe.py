"""How much of who sings can be read from features: an independent judge of what an adversary was to remove.

A ridge classifier in closed form, trained on some clips of every singer and asked about the others: it shares neither
weights nor training with the adversary. What it recognises may be the room a singer was recorded in as well as the
voice.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audioscore.errors import DataError, UsageError, shorten

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
