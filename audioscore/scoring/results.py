"""What scoring answers."""

from dataclasses import dataclass


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
