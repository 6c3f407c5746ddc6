"""Short excerpts of recordings as audio players that stand inside a page and need no file beside it."""

import base64
import html
import tempfile
from pathlib import Path

import numpy as np

from audioscore.data.audio import Recording, decode, encode
from audioscore.data.audio_checks import audio_path
from audioscore.errors import AudioError

EXCERPT_SECONDS = 8.0
EXCERPT_RATE = 24_000  # Hz
BIT_RATE = 32_000  # 8 s at 32 kbit/s are 32 kB, 43 kB as text: a dozen keep a page well under a megabyte
DECODED_SECONDS = 900.0  # a longer recording is not decoded for the sake of eight seconds


def player(folder: Path, audio_file: str, label: str) -> str | None:
    """An HTML audio player with the loudest EXCERPT_SECONDS of a recording; None where it cannot be decoded.

    `label` names the player for screen readers; it is escaped.
    """
    try:
        excerpt = loudest(decode(audio_path(folder, audio_file), max_seconds=DECODED_SECONDS))
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "excerpt.m4a"
            encode(excerpt.at(EXCERPT_RATE), EXCERPT_RATE, target, bit_rate=BIT_RATE)
            coded = base64.b64encode(target.read_bytes()).decode("ascii")
    except (AudioError, OSError):  # the page says why the clip is rejected; here it only has no player
        return None
    return (
        f'<audio controls preload="none" aria-label="{html.escape(label)}" src="data:audio/mp4;base64,{coded}"></audio>'
    )


def loudest(recording: Recording, seconds: float = EXCERPT_SECONDS) -> Recording:
    """The part of a recording with the most energy, at most so long; the earliest of equals.

    >>> loud = loudest(Recording(np.array([0, 0, 1, 1, 0], dtype=np.float32), 1), seconds=2)
    >>> loud.wave.tolist()
    [1.0, 1.0]
    """
    wave, length = recording.wave, round(seconds * recording.rate)
    if len(wave) <= length:
        return recording
    sums = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    start = int(np.argmax(sums[length:] - sums[:-length]))
    return Recording(wave[start : start + length], recording.rate)
