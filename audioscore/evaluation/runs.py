"""The predictions of every run, aligned: each plan and seed must have predicted the same test clips."""

from collections.abc import Mapping, Sequence

from audioscore.errors import DataError, shorten
from audioscore.evaluation.predictions import SPLITS, Prediction

ClipKey = tuple[str, str]  # sha256 and audio_file: one recording may be listed under two names
Runs = dict[tuple[str, int], dict[str, dict[ClipKey, Prediction]]]  # (plan, seed) -> split -> clip -> its row


def align_runs(predictions: Sequence[Prediction], representative: Mapping[str, int]) -> Runs:
    """Predictions by run, split and clip, after checking that they can be compared.

    `representative` names the seed that stands for each plan. Raises DataError where a clip has no score or is listed
    twice, a plan has no representative, or the runs do not share the same test clips and scores.
    """
    unscored = sorted({row.audio_file for row in predictions if row.score is None})
    if unscored:
        raise DataError(
            f"{len(unscored)} evaluated clips have no score ({shorten(unscored)}). Leave them out of the evaluation."
        )
    runs: Runs = {}
    for row in predictions:
        splits = runs.setdefault((row.plan, row.seed), {name: {} for name in SPLITS})
        if row.split not in splits:
            raise DataError(f"{row.audio_file}: split is {row.split!r}; expected one of {', '.join(SPLITS)}.")
        key = row.clip
        if any(key in clips for clips in splits.values()):
            raise DataError(f"{row.audio_file} is listed twice for plan {row.plan}, seed {row.seed}. Keep one row.")
        splits[row.split][key] = row
    strangers = sorted({plan for plan, _ in runs} - set(representative))
    if strangers:
        raise DataError(f"No representative seed is named for {len(strangers)} plans ({shorten(strangers)}). Name one.")
    missing = [f"{plan} seed {chosen}" for plan, chosen in representative.items() if (plan, chosen) not in runs]
    if missing or not representative:
        raise DataError(f"No predictions of the representative runs ({shorten(missing) or 'none named'}). Add them.")
    _check_same_test(runs)
    return runs


def _check_same_test(runs: Runs) -> None:
    """Every plan and seed must have predicted the same test clips, and know the same of them."""
    (reference, splits), *others = runs.items()
    expected = {key: _identity(row) for key, row in splits["test"].items()}
    if not expected:
        raise DataError(f"Plan {reference[0]}, seed {reference[1]} has no test clips. Predict the test split.")
    for (plan, seed), other in others:
        got = {key: _identity(row) for key, row in other["test"].items()}
        differing = sorted(key[1] for key in expected.keys() | got.keys() if expected.get(key) != got.get(key))
        if differing:
            raise DataError(
                f"Plan {plan}, seed {seed} and plan {reference[0]}, seed {reference[1]} differ in {len(differing)} "
                f"test clips or their scores ({shorten(differing)}). Predict the same test split with both."
            )


def _identity(row: Prediction) -> tuple[float | str | None, ...]:
    return row.score, row.singer_id, row.song_id, row.source
