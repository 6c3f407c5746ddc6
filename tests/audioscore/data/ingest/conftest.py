from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import encode

Record = Callable[..., Path]


@pytest.fixture(scope="session")
def record() -> Record:
    """A function that writes a short take: the same `take` has the same bytes, another sounds different."""

    def write(path: Path, take: int = 0, seconds: float = 1.2) -> Path:
        rng = np.random.default_rng(take)
        time = np.arange(round(seconds * 16_000)) / 16_000
        pitch = np.interp(time, np.linspace(0, seconds, 5), rng.uniform(110, 440, 5))
        phase = 2 * np.pi * np.cumsum(pitch) / 16_000
        wave = sum(np.sin(k * phase) / k for k in range(1, 15)) + rng.normal(0, 0.1, len(time))
        encode((0.1 * wave).astype(np.float32), 16_000, path, codec="pcm_s16le")
        return path

    return write


@pytest.fixture
def takes(tmp_path: Path, record: Record) -> Path:
    """A folder `delivery` with six takes, t0.wav to t5.wav."""
    folder = tmp_path / "delivery"
    for take in range(6):
        record(folder / f"t{take}.wav", take)
    return folder
