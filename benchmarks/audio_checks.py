"""Measure the speed of the audio checks: hashing, decoding, measuring and fingerprinting recordings.

`python benchmarks/audio_checks.py [COUNT]` makes COUNT (400) clips of 10 s, m4a at 24 kHz and 48 kbit/s. Ratios compare
times of one run.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from audioscore.data.audio import Wave, decode, encode
from audioscore.data.audio_checks import AudioLimits
from audioscore.data.file_checks import check_recording, check_recordings
from audioscore.data.fingerprint import WORD_HZ, near_duplicates

RATE, SECONDS = 24_000, 10
FINGERPRINTS, COPIES = 10_000, 100  # of 30 s each, random except for the copies


def voice(seed: int) -> Wave:
    """Synthesize notes with harmonics, vibrato and breath. Shape: -> [SECONDS * RATE]."""
    rng = np.random.default_rng(seed)
    t = np.arange(SECONDS * RATE) / RATE
    pitch = np.interp(t, np.linspace(0, SECONDS, 25), rng.uniform(150, 450, 25))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE + 0.5 * np.sin(2 * np.pi * 5.5 * t)
    tones = sum(np.sin(k * phase) / k for k in range(1, 20))
    return np.asarray(0.1 * (tones + rng.normal(0, 0.2, len(t))), dtype=np.float32)


def timed(call: Callable[[], object]) -> float:
    """Measure the seconds of a call."""
    started = time.monotonic()
    call()
    return time.monotonic() - started


def peak_mb() -> float:
    """Return the peak memory of this process and its children."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def checks(folder: Path, count: int) -> None:
    """Print the speed of one process and of all cores, the share of decoding, and the speed with a filled cache."""
    limits, names, cache = AudioLimits(), [f"{number}.m4a" for number in range(count)], folder / "cache.db"
    for number, name in enumerate(names):
        encode(voice(number % 50) * np.float32(0.5 + number / count / 2), RATE, folder / name)
    check_recording(names[0], folder, limits)  # the first call loads libraries
    part = names[: max(1, count // 4)]
    decoding = timed(lambda: [decode(folder / name) for name in part])
    whole = timed(lambda: [check_recording(name, folder, limits) for name in part])
    print(f"decoding: {decoding / whole:.0%} of a clip's {1000 * whole / len(part):.1f} ms")
    alone = timed(lambda: check_recordings(names, folder, limits, 1))
    cores = os.cpu_count() or 1
    cold = timed(lambda: check_recordings(names, folder, limits, cores, cache=cache))
    warm = timed(lambda: check_recordings(names, folder, limits, cores, cache=cache))
    for label, seconds in (("1 process", alone), (f"{cores} processes", cold), ("with cache", warm)):
        hours = count * SECONDS / 3600 / (seconds / 60)
        print(f"{label:18} {seconds:7.1f} s {count / seconds:8.0f} clips/s {hours:7.1f} h of audio per minute")
    print(f"{cores} processes against 1: {alone / cold:.2f} x; with cache against without: {cold / warm:.1f} x")
    print(f"database: {cache.stat().st_size / count:.0f} bytes per clip; peak memory of a process: {peak_mb():.0f} MB")


def duplicates() -> None:
    """Print time and memory of finding near-duplicates."""
    rng = np.random.default_rng(0)
    words = [rng.integers(1, 2**32, round(30 * WORD_HZ), dtype=np.uint32) for _ in range(FINGERPRINTS - COPIES)]
    for one in words[:COPIES]:  # an eighth of the bits flipped, as after AAC at 24 kbit/s, and one second cut off
        flips = np.packbits(rng.random((len(one), 32)) < 0.125, axis=1).view(np.uint32)[:, 0]
        words.append((one ^ flips)[round(WORD_HZ) :])
    fingerprints = [one.astype("<u4").tobytes() for one in words]
    found: list[tuple[int, int]] = []
    seconds = timed(lambda: found.extend(near_duplicates(fingerprints)))
    right = sum(second - first == FINGERPRINTS - COPIES for first, second in found)
    print(
        f"near-duplicates of {len(fingerprints)} x 30 s: {seconds:.1f} s, {right} of {COPIES} copies, "
        f"{len(found) - right} false pairs; peak memory {peak_mb():.0f} MB"
    )


def main(count: int) -> None:
    """Print all measurements."""
    with tempfile.TemporaryDirectory() as folder:
        checks(Path(folder), count)
    duplicates()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
