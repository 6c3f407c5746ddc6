"""What can be measured of a recording before any model hears it, and when it must not be scored.

Training and scoring refuse the same recordings, because both ask here.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Recording, Wave, decode
from audioscore.errors import AudioError, DataError, shorten
from audioscore.files import sha256_of

FRAME_SECONDS = 0.02
FLOOR_DB = -120.0  # what digital silence reads, since JSON has no -inf; 24-bit audio reaches down to -144
SILENT_DB = -60.0  # a frame below this is silent in any recording
SILENT_BELOW_LOUD_DB = 40.0  # and so is one this far below the recording's loud frames
LOUD_QUANTILE = 0.99  # loud frames: the loudest hundredth, so that one click does not set the level
# -0.9 dBFS: lame scales by 0.95, and lossy codecs let flattened tops ripple by a few per cent. The price: a pure tone
# at full scale reads 0.29, which no voice comes near.
RAIL = 0.9
RAIL_RUN = 3  # samples; a clean peak seldom stays at the rail that long
BLOCK_SECONDS = 60  # long recordings are measured in pieces, for the memory

ALONE_BELOW = 24  # recordings; for fewer, starting processes takes longer than hearing them here
CHUNK = 8  # recordings handed to a process at once

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Probe:
    """Measurements of one recording.

    `level_db`: RMS about the mean, dB relative to full scale (a full-scale sine reads -3.01), at least FLOOR_DB.
    `peak`: the largest absolute sample. `silence_share`: share of 20 ms frames below SILENT_DB, or
    SILENT_BELOW_LOUD_DB under the loudest hundredth of frames. `clipping_share`: share of samples within runs of
    RAIL_RUN or more at RAIL or beyond. `dc_offset`: mean sample.
    """

    seconds: float
    rate: int
    level_db: float
    peak: float
    silence_share: float
    clipping_share: float
    dc_offset: float


@dataclass(frozen=True)
class ProbeLimits:
    """Where a recording stops being one that can be scored."""

    min_seconds: float = 1.0
    max_seconds: float = 3600.0
    min_level_db: float = -60.0
    max_silence_share: float = 0.95
    max_clipping_share: float = 0.2


@dataclass(frozen=True)
class Heard:
    """What one recording gave: its probe and its bytes' hash and number, or why it cannot be used."""

    probe: Probe | None = None
    sha256: str | None = None
    bytes: int | None = None
    fault: str | None = None


def probe(recording: Recording) -> Probe:
    """Measure a recording. The order of its samples' signs does not matter: -wave reads the same, but for dc_offset.

    >>> tone = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000).astype(np.float32) / 2
    >>> measured = probe(Recording(tone, 24_000))
    >>> round(measured.level_db, 2), measured.silence_share, measured.clipping_share
    (-9.03, 0.0, 0.0)
    """
    wave, rate = recording.wave, recording.rate
    mean = float(wave.mean(dtype=np.float64)) if len(wave) else 0.0
    powers = _frame_powers(wave, rate, mean)
    return Probe(
        seconds=recording.seconds,
        rate=rate,
        level_db=float(_decibels(np.array([_power(wave, rate, mean)]))[0]),
        peak=float(max(wave.max(), -wave.min())) if len(wave) else 0.0,
        silence_share=_silence_share(powers),
        clipping_share=_clipping_share(wave),
        dc_offset=mean,
    )


def refusal(probe: Probe, limits: ProbeLimits | None = None) -> str | None:
    """One sentence saying why a recording cannot be scored, or None where it can. It names no file."""
    limits = limits or ProbeLimits()
    if probe.seconds < limits.min_seconds:
        return f"too short: {probe.seconds:.2f} s, and at least {limits.min_seconds:g} s are needed; record more of it."
    if probe.seconds > limits.max_seconds:
        return f"too long: {probe.seconds:.0f} s, and at most {limits.max_seconds:g} s are taken; cut it."
    if probe.level_db < limits.min_level_db:
        return (
            f"silent: its level is {probe.level_db:.1f} dBFS, below {limits.min_level_db:g}; "
            f"check the microphone, or export it louder."
        )
    if probe.silence_share > limits.max_silence_share:
        return (
            f"nearly silent: {probe.silence_share:.1%} of it is silence, above {limits.max_silence_share:.0%}; "
            f"cut it to the part that is sung."
        )
    if probe.clipping_share > limits.max_clipping_share:
        return (
            f"clipped: {probe.clipping_share:.0%} of its samples are at the rails, above "
            f"{limits.max_clipping_share:.0%}; record it at a lower level."
        )
    return None


def audio_path(folder: Path, audio_file: str) -> Path:
    """Where a recording named by a table lies: absolute, or relative to the table's folder. AudioError for a URI."""
    if "://" in audio_file:
        raise AudioError(f"{audio_file}: is a link, not a file. Download the recording into the data folder first.")
    return folder / audio_file


def hear(audio_file: str, folder: Path, limits: ProbeLimits) -> Heard:
    """Hash, decode and probe one recording; whatever is wrong with it comes back as a sentence, without its path."""
    try:
        path = audio_path(folder, audio_file)
        measured = probe(decode(path, max_seconds=limits.max_seconds))
        return Heard(measured, sha256_of(path), path.stat().st_size, refusal(measured, limits))
    except AudioError as fault:
        message = str(fault)
        for name in (str(folder / audio_file), audio_file):
            message = message.removeprefix(f"{name}: ")
        return Heard(fault=message)
    except OSError as fault:
        return Heard(fault=f"cannot be read ({fault.strerror or fault}). Check its permissions.")


def hear_all(
    audio_files: Sequence[str],
    folder: Path,
    limits: ProbeLimits,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Heard]:
    """Hear recordings in parallel, in order. Processes, since decoding hands each short frame to Python: two threads
    took longer than one. They are spawned, because forking a process with threads (torch's, Arrow's) can hang.
    """
    hear_one = partial(hear, folder=folder, limits=limits)
    workers = min(workers or os.cpu_count() or 1, -(-len(audio_files) // CHUNK))
    heard: list[Heard] = []

    def keep(one: Heard) -> None:
        heard.append(one)
        if progress:
            progress(len(heard), len(audio_files))

    if workers <= 1 or len(audio_files) < ALONE_BELOW:
        for name in audio_files:
            keep(hear_one(name))
        return heard
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for one in pool.map(hear_one, audio_files, chunksize=CHUNK):
                keep(one)
    except BrokenProcessPool as fault:
        near = shorten(list(audio_files[len(heard) : len(heard) + workers * CHUNK]))
        raise DataError(
            f"A process that hears recordings died after {len(heard)} of {len(audio_files)}, on one of {near} or for "
            f"want of memory. Try one worker; a script that starts several needs `if __name__ == '__main__':`."
        ) from fault
    return heard


def _blocks(wave: Wave, rate: int) -> list[Wave]:
    """The wave in pieces of a whole number of frames each, but for the last."""
    size = round(FRAME_SECONDS * rate) * round(BLOCK_SECONDS / FRAME_SECONDS)
    return [wave[start : start + size] for start in range(0, len(wave), size)]


def _power(wave: Wave, rate: int, mean: float) -> float:
    total = sum(float(np.square(block - mean, dtype=np.float64).sum()) for block in _blocks(wave, rate))
    return total / max(1, len(wave))


def _frame_powers(wave: Wave, rate: int, mean: float) -> NDArray[np.float64]:
    """Mean square of each whole 20 ms frame.

    Shape: wave [T] -> [T // frame], or [1] where there is less than a frame.
    """
    size = round(FRAME_SECONDS * rate)
    if len(wave) < size:
        return np.array([_power(wave, rate, mean)])
    powers = [
        np.square(block[: len(block) // size * size].reshape(-1, size) - mean, dtype=np.float64).mean(axis=1)
        for block in _blocks(wave, rate)
    ]
    return np.concatenate(powers)


def _decibels(powers: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10 * np.log10(np.maximum(powers, 10 ** (FLOOR_DB / 10)))


def _silence_share(powers: NDArray[np.float64]) -> float:
    levels = _decibels(powers)
    loud = float(np.quantile(levels, LOUD_QUANTILE))
    return float((levels < max(SILENT_DB, loud - SILENT_BELOW_LOUD_DB)).mean())


def _clipping_share(wave: Wave) -> float:
    # At the rail: the positive and the negative one count as different runs, or a square wave would be one run.
    at_rail = np.where(wave >= RAIL, 1, 0).astype(np.int8) - (wave <= -RAIL).astype(np.int8)
    edges = np.flatnonzero(np.diff(at_rail)) + 1
    bounds = np.concatenate([[0], edges, [len(wave)]])
    lengths = np.diff(bounds)
    if not len(wave):
        return 0.0
    clipped = (at_rail[bounds[:-1]] != 0) & (lengths >= RAIL_RUN)
    return float(lengths[clipped].sum() / len(wave))
