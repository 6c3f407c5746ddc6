import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from audioscore.errors import AudioError
from audioscore.scoring.input import DecodedClip, EncoderNeeds
from audioscore.scoring.results import ClipScore, TimelineSegment
from audioscore.serving.model import ModelReference, ServedModel


@dataclass
class FakeScorer:
    """Stub of a scorer: the score of a recording is `base` plus its length; it records its batches."""

    base: float = 60.0
    batches: list[tuple[list[str], bool]] = field(default_factory=list)
    error: Exception | None = None
    needs: EncoderNeeds = field(default_factory=lambda: EncoderNeeds(muq=True, voice=False, whole=False))
    limits: Any = field(default_factory=lambda: SimpleNamespace(max_seconds=3600.0))
    description: Any = field(default_factory=lambda: SimpleNamespace(plan="hybrid"))

    def score_batch(self, clips: Sequence[DecodedClip], *, timeline: bool = False) -> list[Any]:
        self.batches.append(([clip.file for clip in clips], timeline))
        if self.error is not None:
            raise self.error
        segments = (TimelineSegment(0.0, 1.0, 70.0),) if timeline else None
        return [
            ClipScore(
                one.file, self.base + one.seconds, (50.0, 99.0), 0.123456789, one.seconds, None, segments, one.notes
            )
            for one in clips
        ]


@dataclass
class Decoder:
    """Stub of the decoder: the content of a file is its length in seconds; other files are refused."""

    closed: bool = False

    def __call__(self, work: Any) -> DecodedClip:
        try:
            return clip(float(work.source.read_bytes()), work.file)
        except ValueError as error:
            raise AudioError(f"{work.source}: not a number.") from error

    def close(self) -> None:
        self.closed = True


def clip(seconds: float, name: str = "a") -> DecodedClip:
    return DecodedClip(name, seconds, np.zeros(8, dtype=np.float32), None, ("Noisy.",))


def model(version: int | None = 1, **more: Any) -> ServedModel:
    """A served model of stubs."""
    reference = ModelReference("singers", version, "models:/singers@champion", f"models:/singers/{version}")
    scorer: Any = FakeScorer(**more)
    decoder: Any = Decoder()
    return ServedModel(reference, scorer, decoder)


@pytest.fixture
def a_model() -> Any:
    """Create served models of stubs."""
    return model


@pytest.fixture
def a_clip() -> Any:
    """Create decoded recordings."""
    return clip


@pytest.fixture
def wait() -> Any:
    """Run a coroutine with a timeout of ten seconds."""

    async def bounded(work: Any) -> Any:
        return await asyncio.wait_for(work, 10)

    return lambda work: asyncio.run(bounded(work))
