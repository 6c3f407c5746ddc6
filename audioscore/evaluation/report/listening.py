"""Recordings to hear and see inside a page: a short excerpt as a player, and its spectrogram."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Recording, Wave, decode
from audioscore.data.audio_checks import audio_path
from audioscore.data.gate.excerpts import DECODED_SECONDS, EXCERPT_SECONDS, loudest, player
from audioscore.errors import AudioError
from audioscore.html import Html

RATE = 24_000  # Hz
FFT, FRAMES = 2048, 320  # 85 ms keep the partials of a voice apart from 100 Hz on; a column a frame
LOWEST, HIGHEST = 80.0, 10_240.0  # Hz: seven octaves, from the lowest sung notes to the air above the voice
ROWS = 112  # 16 an octave
RANGE_DB = 65.0  # below the loudest point is black
COLOURS, QUALITY = "magma", 70  # one look for all; a JPEG of 320 x 112 has about 8 kB

LOOK = (
    f"A spectrogram spans {LOWEST:.0f} Hz at the bottom to {HIGHEST / 1000:.0f} kHz at the top, octaves evenly spaced, "
    f"and {RANGE_DB:.0f} dB from bright to black. A player holds the loudest {EXCERPT_SECONDS:.0f} seconds, re-encoded."
)
GONE = "No player: the recording is missing, or cannot be decoded."
NO_ROOM = "No player: left out to keep the page small."


def listen(folder: Path, audio_file: str, label: str) -> Html:
    """A spectrogram and a player of a recording's loudest seconds; a sentence where there can be none.

    `label` names both for screen readers. It says so where the excerpt is less than the recording.
    """
    try:
        recording = decode(audio_path(folder, audio_file), max_seconds=DECODED_SECONDS)
    except (AudioError, OSError):
        return Html(f'<p class="soft">{GONE}</p>')
    audio = player(folder, audio_file, f"player: {label}")
    if audio is None:
        return Html(f'<p class="soft">{GONE}</p>')
    excerpt = loudest(recording)
    cut = recording.seconds > excerpt.seconds
    said = f"{excerpt.seconds:.0f} of {recording.seconds:.0f} s" if cut else f"all of its {recording.seconds:.0f} s"
    return Html(f'{spectrogram_html(excerpt, f"spectrogram: {label}")}{audio}<p class="soft">{said}</p>')


def listen_to_all(folder: Path, audio_files: Iterable[str], room: int) -> dict[str, Html]:
    """What `listen` gives for each recording, once each, as long as all of it together has at most `room` characters.

    What is too much for the room that is left is replaced by a sentence that says so; smaller ones may follow.
    """
    heard: dict[str, Html] = {}
    for count, name in enumerate(dict.fromkeys(audio_files), start=1):
        found = listen(folder, name, f"clip {count}")
        if len(found) > room:
            found = Html(f'<p class="soft">{NO_ROOM}</p>')
        else:
            room -= len(found)
        heard[name] = found
    return heard


def spectrogram_html(excerpt: Recording, label: str) -> Html:
    """The picture, small and inside the page, drawn only when it comes into view."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    levels = log_spectrogram(excerpt.at(RATE))
    imsave(
        buffer, levels, format="jpeg", cmap=COLOURS, origin="lower", vmin=-RANGE_DB, vmax=0.0,
        pil_kwargs={"quality": QUALITY},
    )  # fmt: skip
    coded = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{levels.shape[1]}" height="{levels.shape[0]}"'
    return Html(f'<img loading="lazy" {size} alt="{html.escape(label)}" src="data:image/jpeg;base64,{coded}">')


def log_spectrogram(wave: Wave) -> NDArray[np.float64]:
    """Level by frequency and time, in dB below the loudest point, the lowest frequency first; silence is all floor.

    A row is the largest level between its edges, so that a partial is never lost between two rows; below 270 Hz, where
    rows are closer than bins, neighbours show the same one.

    Shape: wave [T] at RATE -> [ROWS, FRAMES], within -RANGE_DB and 0.
    """
    padded = np.pad(wave.astype(np.float64), FFT // 2)
    starts = np.linspace(0, len(padded) - FFT, FRAMES).round().astype(np.intp)
    power = np.empty((FFT // 2 + 1, FRAMES))
    window = np.hanning(FFT)
    for column, start in enumerate(starts):
        power[:, column] = np.abs(np.fft.rfft(window * padded[start : start + FFT])) ** 2
    edges = np.geomspace(LOWEST, HIGHEST, ROWS + 1) * FFT / RATE  # in bins
    low = edges[:-1].round().astype(np.intp)
    high = np.maximum(edges[1:].round().astype(np.intp), low + 1)
    rows = np.stack([power[first:last].max(axis=0) for first, last in zip(low, high, strict=True)])
    peak = float(rows.max())
    if peak <= 0:
        return np.full(rows.shape, -RANGE_DB)
    levels: NDArray[np.float64] = np.maximum(10 * np.log10(np.maximum(rows / peak, 1e-12)), -RANGE_DB)
    return levels
