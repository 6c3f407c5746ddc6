"""Fuzz the decoder with damaged recordings: truncated, with flipped bits, swapped parts, and wrong sizes in headers.

    python -m benchmarks.decoder_fuzz --cases 20000

Recordings are prepared as in the service, in separate processes. A recording that crashes or hangs a process is a
finding, and is written to the folder of --keep.
"""

import argparse
import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from audioscore.data.audio import encode
from audioscore.encoders.compute import cores
from audioscore.errors import AudioError
from audioscore.scoring.input import EncoderNeeds, InputLimits, InputRecording
from audioscore.scoring.stream import GuardedDecoder

FORMATS = {
    "a.wav": "pcm_s16le", "b.wav": "pcm_f32le", "c.wav": "adpcm_ms", "d.m4a": "aac", "e.m4a": "alac", "f.mp3": "mp3",
    "g.flac": "flac", "h.ogg": "libopus", "i.ogg": "flac", "j.webm": "libopus", "k.aiff": "pcm_s16be",
}  # fmt: skip
SECONDS, RATE = 1.5, 24_000
TIMEOUT = 20.0  # s: much longer than such a recording needs, also on a busy machine
ENDED = re.compile(r"takes longer than|process ended")


@dataclass
class FuzzResult:
    """Counts of all cases; `ended` and `malformed` list cases that must not occur."""

    accepted: int = 0
    refused: int = 0
    ended: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    slowest: float = 0.0


def originals(folder: Path) -> dict[str, bytes]:
    """A synthetic voice of 1.5 s in each container and codec."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    wave = sum(0.08 * np.sin(2 * np.pi * 220 * k * (time + 0.002 * np.sin(30 * time))) / k for k in range(1, 10))
    found = {}
    for name, codec in FORMATS.items():
        encode(np.asarray(wave, dtype=np.float32), RATE, folder / name, codec=codec)
        found[name] = (folder / name).read_bytes()
    return found


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Apply one or two kinds of damage."""
    for _ in range(int(rng.integers(1, 3))):
        data = DAMAGES[int(rng.integers(len(DAMAGES)))](data, rng) or b"\x00"
    return data


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, len(data) + 1))]


def _bits(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, in half of the cases in the first 200 bytes, which contain headers."""
    found = bytearray(data)
    reach = min(200, len(found)) if rng.random() < 0.5 else len(found)
    for position in rng.integers(0, reach, int(rng.integers(1, 30))):
        found[position] ^= 1 << int(rng.integers(8))
    return bytes(found)


def _wrong_size(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace four bytes by an extreme value for a size or a count."""
    position = int(rng.integers(0, max(1, min(len(data), 2000) - 4)))
    number = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 1 << 24]))
    order = "little" if rng.random() < 0.5 else "big"
    return data[:position] + number.to_bytes(4, order) + data[position + 4 :]


def _swap(data: bytes, rng: np.random.Generator) -> bytes:
    """Remove a part, or copy it to another position."""
    start, end, target = sorted(int(one) for one in rng.integers(0, len(data) + 1, 3))
    part = data[start:end]
    return [data[:start] + data[end:], data[:end] + part + data[end:], data[:start] + data[end:target] + part][
        int(rng.integers(3))
    ]


def _noise(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace the end by noise."""
    position = int(rng.integers(0, len(data) + 1))
    return data[:position] + rng.bytes(len(data) - position)


DAMAGES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (_cut, _bits, _bits, _wrong_size, _swap, _noise)


def cases(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of damaged recordings, reproducible by seed."""
    with tempfile.TemporaryDirectory() as folder:
        whole = originals(Path(folder))
    names = sorted(whole)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        name = names[number % len(names)]
        yield f"{number}-{name}", damaged(whole[name], rng)


def fuzz(count: int, *, seed: int = 0, keep: Path | None = None) -> FuzzResult:
    """Prepare `count` damaged recordings and count the results."""
    found = FuzzResult()
    needs = EncoderNeeds(muq=True, voice=True, whole=False)
    processes = cores()
    with GuardedDecoder(needs, InputLimits(max_seconds=60.0), seconds=TIMEOUT, processes=processes) as decode:

        def one(case: tuple[str, bytes]) -> tuple[str, float]:
            started = time.perf_counter()
            try:
                decode(InputRecording(case[0], case[1]))
            except AudioError as error:
                return str(error), time.perf_counter() - started
            return "", time.perf_counter() - started

        source = cases(count, seed)
        with ThreadPoolExecutor(processes) as pool:
            while some := list(islice(source, 100)):  # Executor.map would otherwise hold all cases
                for case, (message, took) in zip(some, pool.map(one, some), strict=True):
                    _record(found, case, message, took, keep)
    return found


def _record(found: FuzzResult, case: tuple[str, bytes], message: str, took: float, keep: Path | None) -> None:
    found.slowest = max(found.slowest, took)
    if not message:
        found.accepted += 1
        return
    found.refused += 1
    if ENDED.search(message):
        found.ended.append(f"{case[0]}: {message}")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{case[0]}-{hashlib.sha256(case[1]).hexdigest()[:8]}").write_bytes(case[1])
    elif "\n" in message or not message.endswith("."):
        found.malformed.append(f"{case[0]}: {message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for what crashes or hangs a process")
    options = parser.parse_args()
    started = time.perf_counter()
    found = fuzz(options.cases, seed=options.seed, keep=options.keep)
    took = time.perf_counter() - started
    print(f"{options.cases} cases in {took:.0f} s: {found.accepted} accepted, {found.refused} refused")
    print(
        f"{len(found.ended)} ended a process, {len(found.malformed)} malformed messages, slowest {found.slowest:.2f} s"
    )
    print("\n".join([*found.ended, *found.malformed][:20]))


if __name__ == "__main__":
    main()
