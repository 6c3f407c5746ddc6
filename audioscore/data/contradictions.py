"""Describe what in a labels table contradicts itself or teaches nothing, in one sentence each."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from audioscore.data.clips import Clip
from audioscore.errors import shorten

MIN_CONSTANT = 3  # equal scores that are more than a coincidence
ROUNDING = 1.0  # points by which a table may round a mean
SPLIT_WORDS = {"tr": "train", "训": "train", "va": "val", "de": "val", "验": "val", "te": "test", "测": "test"}


def score_notes(clips: Sequence[Clip]) -> list[str]:
    """Describe scores outside the range of their raters, and equal scores: of all clips, of a source, or of a rater."""
    scores: dict[str, list[float]] = defaultdict(list)
    raters: dict[str, list[float]] = defaultdict(list)
    for clip in clips:
        if clip.score is not None:
            scores[clip.source or "no source"].append(clip.score)
        for number, score in enumerate(clip.raters, 1):
            if score is not None:
                raters[f"rater_{number}"].append(score)
    notes = [*_outside_ratings(clips)]
    everything = [score for part in scores.values() for score in part]
    if len(everything) >= MIN_CONSTANT and len(set(everything)) == 1:
        notes.append(f"score: all {len(everything)} clips have {everything[0]:g}; equal scores have no order to learn.")
        return notes
    for what, groups in (("source", scores), ("rater", raters)):
        equal = {name: found for name, found in groups.items() if len(found) >= MIN_CONSTANT and len(set(found)) == 1}
        if equal:
            listed = shorten([f"{name}: {len(found)} times {found[0]:g}" for name, found in equal.items()])
            notes.append(f"score: equal in all clips of a {what} ({listed}); equal scores have no order to learn.")
    return notes


def _outside_ratings(clips: Sequence[Clip]) -> Iterator[str]:
    """A sentence about the scores that are lower or higher than those of all their raters."""
    rated = [
        (clip, clip.score, given)
        for clip in clips
        if clip.score is not None and (given := [score for score in clip.raters if score is not None])
    ]
    outside = [
        f"{clip.audio_file}: {score:g}, raters {min(given):g} to {max(given):g}"
        for clip, score, given in rated
        if not min(given) - ROUNDING <= score <= max(given) + ROUNDING
    ]
    if outside:
        yield f"score: {len(outside)} of {len(rated)} are outside the range of their raters ({shorten(outside, 3)})."


def split_notes(stated: Mapping[str, str], of: Mapping[str, str]) -> list[str]:
    """Describe the clips whose split in the table differs from the assigned one; both map audio_file to a split."""
    named = {
        name: next((split for word, split in SPLIT_WORDS.items() if text.lower().startswith(word)), None)
        for name, text in stated.items()
    }
    compared = {name: split for name, split in named.items() if split and name in of}
    other = [f"{name}: {split}, here {of[name]}" for name, split in compared.items() if of[name] != split]
    count = f"{len(other)} of {len(compared)} clips are in another split than the table states"
    return [f"{count} ({shorten(other, 3)}): splits are assigned by singer."] if other else []
