"""Results of scoring."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TimelineSegment:
    """One segment of a timeline: the score of the recording from `start` to `end`, in seconds."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class ClipScore:
    """The result of one recording: a score, or the message in `error` why there is no score; the rest is then None.

    `score` and `interval` (90 % split-conformal) are on the 0-100 scale of the labels. `raw` is the model output that
    decides the ranking, `seconds` the length of the recording. `timeline` is present if it was requested. `notes`:
    why the score is less reliable than its interval, one sentence each; empty for most recordings.
    """

    file: str
    score: float | None = None
    interval: tuple[float, float] | None = None
    raw: float | None = None
    seconds: float | None = None
    error: str | None = None
    timeline: tuple[TimelineSegment, ...] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON: score, interval and times are rounded, `raw` is not."""
        return {
            "file": self.file,
            "score": None if self.score is None else round(self.score, 4),
            "interval": None if self.interval is None else [round(end, 4) for end in self.interval],
            "raw": self.raw,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "notes": list(self.notes),
            "error": self.error,
            "timeline": None if self.timeline is None else [
                {"start": round(one.start, 3), "end": round(one.end, 3), "score": round(one.score, 4)}
                for one in self.timeline
            ],
        }  # fmt: skip
