"""predictions.csv: one row for each clip, plan and seed, from which all metrics of a report can be recomputed."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from audioscore.errors import DataError, shorten
from audioscore.files import atomic_path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Prediction:
    """The score that one trained model predicts for one clip, with the human score.

    `raw` is the output of the head, `predicted` the calibrated score in label points, and [`lo`, `hi`] its prediction
    interval (None without one). `score` is None only for a clip without a human score.
    """

    sha256: str
    audio_file: str
    split: str  # train, val or test
    singer_id: str | None
    song_id: str | None
    source: str | None
    score: float | None
    plan: str
    seed: int
    raw: float
    predicted: float
    lo: float | None
    hi: float | None

    @property
    def human(self) -> float:
        """The human score. Raises DataError for a clip without one, which no metric can use."""
        if self.score is None:
            raise DataError(f"{self.audio_file}: no human score. Remove it from the evaluation.")
        return self.score

    @property
    def clip(self) -> tuple[str, str]:
        """Identity of the clip: content and name, because one content may be listed under two names."""
        return self.sha256, self.audio_file


COLUMNS = tuple(field.name for field in fields(Prediction))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write the table atomically, in the given order; floats are restored exactly when read.

    A missing value or an empty id becomes an empty cell.
    """
    # surrogateescape keeps file names that are not valid UTF-8.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as handle,
    ):
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for prediction in predictions:
            writer.writerow([_cell(value) for value in astuple(prediction)])


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return repr(float(value))  # the repr of numpy floats contains the type name
    return "" if value is None else str(value)


def read_predictions(path: Path) -> list[Prediction]:
    """Read the table.

    Raises: DataError with the file, row and column of a cell that does not fit its column.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such predictions table. Run the evaluation first.")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        rows = list(csv.reader(handle))
    header = rows[0] if rows else []
    if tuple(header) != COLUMNS:
        raise DataError(f"{path}: columns {shorten(header, 20) or 'none'}, not {', '.join(COLUMNS)}. Correct them.")
    return [_prediction(path, number, cells) for number, cells in enumerate(rows[1:], start=1) if cells]


def _prediction(path: Path, number: int, cells: Sequence[str]) -> Prediction:
    """Parse one row; `number` counts from 1 below the header."""
    if len(cells) != len(COLUMNS):
        raise DataError(
            f"{path}: row {number} has {len(cells)} cells instead of {len(COLUMNS)}. Write the table again."
        )
    row = dict(zip(COLUMNS, cells, strict=True))

    def number_in(column: str) -> float:
        return _number(path, number, column, row[column])

    if row["split"] not in SPLITS:
        raise DataError(f"{path}: row {number}, split {row['split']!r} is unknown. Use one of {', '.join(SPLITS)}.")
    seed = number_in("seed")
    if not seed.is_integer():
        raise DataError(f"{path}: row {number}, seed is {row['seed']!r}, not a whole number. Correct it.")
    return Prediction(
        sha256=row["sha256"],
        audio_file=row["audio_file"],
        split=row["split"],
        singer_id=row["singer_id"] or None,
        song_id=row["song_id"] or None,
        source=row["source"] or None,
        score=number_in("score") if row["score"] else None,
        plan=row["plan"],
        seed=int(seed),
        raw=number_in("raw"),
        predicted=number_in("predicted"),
        lo=number_in("lo") if row["lo"] else None,
        hi=number_in("hi") if row["hi"] else None,
    )


def _number(path: Path, number: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: row {number}, {column} is {text!r}, not a finite number. Write the table again.")
    return value


ClipKey = tuple[str, str]  # sha256 and audio_file
Runs = dict[tuple[str, int], dict[str, dict[ClipKey, Prediction]]]  # (plan, seed) -> split -> clip -> row


def align_runs(predictions: Sequence[Prediction], representative: Mapping[str, int]) -> Runs:
    """Group predictions by run, split and clip, after checking that the runs are comparable.

    `representative` is the seed that represents each plan.

    Raises: DataError where a clip has no score or is listed twice, a plan has no representative seed, or the runs
        differ in test clips or scores.
    """
    unscored = sorted({row.audio_file for row in predictions if row.score is None})
    if unscored:
        raise DataError(
            f"evaluated clips: {len(unscored)} have no score ({shorten(unscored)}). Remove them from the evaluation."
        )
    runs: Runs = {}
    for row in predictions:
        splits = runs.setdefault((row.plan, row.seed), {name: {} for name in SPLITS})
        if row.split not in splits:
            raise DataError(f"{row.audio_file}: split {row.split!r} is unknown. Use one of {', '.join(SPLITS)}.")
        key = row.clip
        if any(key in clips for clips in splits.values()):
            raise DataError(f"{row.audio_file}: listed twice for plan {row.plan}, seed {row.seed}. Keep one row.")
        splits[row.split][key] = row
    if unnamed := sorted({plan for plan, _ in runs} - set(representative)):
        raise DataError(f"Representative seeds: missing for {len(unnamed)} plans ({shorten(unnamed)}). Add them.")
    missing = [f"{plan} seed {chosen}" for plan, chosen in representative.items() if (plan, chosen) not in runs]
    if missing or not representative:
        raise DataError(f"Representative runs: no predictions ({shorten(missing) or 'none named'}). Add them.")
    _check_same_test(runs)
    return runs


def _check_same_test(runs: Runs) -> None:
    """Check that all runs have the same test clips with the same scores, singers, songs and sources."""
    (reference, splits), *others = runs.items()
    expected = {key: _identity(row) for key, row in splits["test"].items()}
    if not expected:
        raise DataError(f"Plan {reference[0]}, seed {reference[1]}: no test clips. Predict the test split.")
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
