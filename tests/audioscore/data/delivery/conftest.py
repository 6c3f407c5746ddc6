from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import encode


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    """A folder `delivery` with six different recordings of 1.2 s, t0.wav to t5.wav."""
    time = np.arange(19_200) / 16_000
    for number in range(6):
        rng = np.random.default_rng(number)
        pitch = np.interp(time, np.linspace(0, 1.2, 5), rng.uniform(110, 440, 5))
        phase = 2 * np.pi * np.cumsum(pitch) / 16_000
        wave = sum(np.sin(k * phase) / k for k in range(1, 15)) + rng.normal(0, 0.1, len(time))
        path = tmp_path / "delivery" / f"t{number}.wav"
        encode((0.1 * wave).astype(np.float32), 16_000, path, codec="pcm_s16le")
    return tmp_path / "delivery"
