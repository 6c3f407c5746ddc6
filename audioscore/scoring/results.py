"""What scoring answers."""

from dataclasses import dataclass
from typing import Any

from audioscore.errors import AudioscoreError


@dataclass(frozen=True)
class Moment:
    """One entry of a timeline: the score of what is heard from `start` to `end`, in seconds."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class ScoredClip:
    """One answer. `score` and `interval` are on the 0-100 scale; `raw` is what ranks."""

    score: float
    interval: tuple[float, float]
    raw: float
    seconds: float
    timeline: tuple[Moment, ...] | None = None


Answer = ScoredClip | AudioscoreError  # of one recording of a batch


@dataclass(frozen=True)
class ClipScore:
    """One row of many: a recording's answer, or, in `error`, one sentence saying why it has none.

    `score` and `interval` (90 % split-conformal) are on the 0-100 scale of the labels, `raw` is what ranks, `seconds`
    is the recording's length. `timeline` is there where it was asked for.
    """

    file: str
    score: float | None = None
    interval: tuple[float, float] | None = None
    raw: float | None = None
    seconds: float | None = None
    error: str | None = None
    timeline: tuple[Moment, ...] | None = None

    @staticmethod
    def of(file: str, scored: ScoredClip) -> "ClipScore":
        """A row with an answer."""
        return ClipScore(file, scored.score, scored.interval, scored.raw, scored.seconds, None, scored.timeline)

    def to_json(self) -> dict[str, Any]:
        """As every door tells it: score, interval and times rounded to what they mean, `raw` as it is."""
        return {
            "file": self.file,
            "score": None if self.score is None else round(self.score, 4),
            "interval": None if self.interval is None else [round(end, 4) for end in self.interval],
            "raw": self.raw,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "error": self.error,
            "timeline": None if self.timeline is None else [
                {"start": round(one.start, 3), "end": round(one.end, 3), "score": round(one.score, 4)}
                for one in self.timeline
            ],
        }  # fmt: skip
