import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from audioscore.errors import AudioError
from audioscore.scoring.input import DecodedClip, Ears
from audioscore.scoring.results import Moment, ScoredClip
from audioscore.serving.model import ServedModel, Which


@dataclass
class FakeScorer:
    """Stands for a scorer: a recording's score is `base` and its length; it records what it was given by batch."""

    base: float = 60.0
    batches: list[tuple[list[str], bool]] = field(default_factory=list)
    fault: Exception | None = None
    ears: Ears = field(default_factory=lambda: Ears(muq=True, voice=False, whole=False))
    limits: Any = field(default_factory=lambda: SimpleNamespace(max_seconds=3600.0))
    description: Any = field(default_factory=lambda: SimpleNamespace(plan="hybrid"))

    def score_batch(self, clips: Sequence[DecodedClip], *, timeline: bool = False) -> list[Any]:
        self.batches.append(([clip.file for clip in clips], timeline))
        if self.fault is not None:
            raise self.fault
        moments = (Moment(0.0, 1.0, 70.0),) if timeline else None
        scored = ((self.base + clip.seconds, (50.0, 99.0), 0.123456789, clip.seconds, moments) for clip in clips)
        return [ScoredClip(*one) for one in scored]


@dataclass
class Decoder:
    """Stands for the processes: a file's bytes are its length in seconds; anything else is refused."""

    closed: bool = False

    def __call__(self, work: Any) -> DecodedClip:
        try:
            return clip(float(work.source.read_bytes()), work.file)
        except ValueError as fault:
            raise AudioError(f"{work.source}: no number.") from fault

    def close(self) -> None:
        self.closed = True


def clip(seconds: float, name: str = "a") -> DecodedClip:
    return DecodedClip(name, seconds, np.zeros(8, dtype=np.float32), None)


def model(version: int | None = 1, **more: Any) -> ServedModel:
    """A model of stand-ins."""
    which = Which("singers", version, "models:/singers@champion", f"models:/singers/{version}")
    scorer: Any = FakeScorer(**more)
    decoder: Any = Decoder()
    return ServedModel(which, scorer, decoder)


@pytest.fixture
def a_model() -> Any:
    """Makes models of stand-ins."""
    return model


@pytest.fixture
def a_clip() -> Any:
    """Makes decoded recordings."""
    return clip


@pytest.fixture
def wait() -> Any:
    """Runs a coroutine, for ten seconds at most."""

    async def bounded(work: Any) -> Any:
        return await asyncio.wait_for(work, 10)

    return lambda work: asyncio.run(bounded(work))
