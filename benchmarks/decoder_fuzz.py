"""Damaged recordings against the decoder: cut short, bits turned, parts swapped, sizes in headers lied about.

    python -m benchmarks.decoder_fuzz --cases 20000

Cases are taken in as the service does, by processes that may be ended; one that has to be is a finding, and its bytes
are kept with --keep.
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
from audioscore.scoring.input import Ears, Limits, Take
from audioscore.scoring.stream import GuardedDecoder

FORMATS = {
    "a.wav": "pcm_s16le", "b.wav": "pcm_f32le", "c.wav": "adpcm_ms", "d.m4a": "aac", "e.m4a": "alac", "f.mp3": "mp3",
    "g.flac": "flac", "h.ogg": "libopus", "i.ogg": "flac", "j.webm": "libopus", "k.aiff": "pcm_s16be",
}  # fmt: skip
SECONDS, RATE = 1.5, 24_000
PATIENCE = 20.0  # s: far more than such a recording takes, on a busy machine as well
ENDED = re.compile(r"is not decoded after|ends the process")


@dataclass
class Found:
    """What came of all cases; `ended` and `strange` name those that should not be."""

    taken: int = 0
    refused: int = 0
    ended: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    slowest: float = 0.0


def originals(folder: Path) -> dict[str, bytes]:
    """A sung second and a half in each container and codec."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    wave = sum(0.08 * np.sin(2 * np.pi * 220 * k * (time + 0.002 * np.sin(30 * time))) / k for k in range(1, 10))
    found = {}
    for name, codec in FORMATS.items():
        encode(np.asarray(wave, dtype=np.float32), RATE, folder / name, codec=codec)
        found[name] = (folder / name).read_bytes()
    return found


def damaged(data: bytes, dice: np.random.Generator) -> bytes:
    """One way of damage, or two."""
    for _ in range(int(dice.integers(1, 3))):
        data = DAMAGES[int(dice.integers(len(DAMAGES)))](data, dice) or b"\x00"
    return data


def _cut(data: bytes, dice: np.random.Generator) -> bytes:
    return data[: int(dice.integers(1, len(data) + 1))]


def _bits(data: bytes, dice: np.random.Generator) -> bytes:
    """Bits turned, in half of the cases in the first 200 bytes, where headers are."""
    found = bytearray(data)
    reach = min(200, len(found)) if dice.random() < 0.5 else len(found)
    for place in dice.integers(0, reach, int(dice.integers(1, 30))):
        found[place] ^= 1 << int(dice.integers(8))
    return bytes(found)


def _lie(data: bytes, dice: np.random.Generator) -> bytes:
    """Four bytes replaced by a number that sizes and counts are not made for."""
    place = int(dice.integers(0, max(1, min(len(data), 2000) - 4)))
    number = int(dice.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 1 << 24]))
    order = "little" if dice.random() < 0.5 else "big"
    return data[:place] + number.to_bytes(4, order) + data[place + 4 :]


def _swap(data: bytes, dice: np.random.Generator) -> bytes:
    """A part taken out, put elsewhere, or twice."""
    start, end, target = sorted(int(one) for one in dice.integers(0, len(data) + 1, 3))
    part = data[start:end]
    return [data[:start] + data[end:], data[:end] + part + data[end:], data[:start] + data[end:target] + part][
        int(dice.integers(3))
    ]


def _noise(data: bytes, dice: np.random.Generator) -> bytes:
    """Noise from some place on."""
    place = int(dice.integers(0, len(data) + 1))
    return data[:place] + dice.bytes(len(data) - place)


DAMAGES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (_cut, _bits, _bits, _lie, _swap, _noise)


def cases(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes, the same for the same seed."""
    with tempfile.TemporaryDirectory() as folder:
        whole = originals(Path(folder))
    names = sorted(whole)
    for number in range(count):
        dice = np.random.default_rng((seed, number))
        name = names[number % len(names)]
        yield f"{number}-{name}", damaged(whole[name], dice)


def fuzz(count: int, *, seed: int = 0, keep: Path | None = None) -> Found:
    """Take `count` damaged recordings in."""
    found = Found()
    ears = Ears(muq=True, voice=True, whole=False)
    processes = cores()
    with GuardedDecoder(ears, Limits(max_seconds=60.0), seconds=PATIENCE, processes=processes) as decode:

        def one(case: tuple[str, bytes]) -> tuple[str, float]:
            started = time.perf_counter()
            try:
                decode(Take(case[0], case[1]))
            except AudioError as fault:
                return str(fault), time.perf_counter() - started
            return "", time.perf_counter() - started

        source = cases(count, seed)
        with ThreadPoolExecutor(processes) as pool:
            while some := list(islice(source, 100)):  # a pool would otherwise hold them all
                for case, (said, took) in zip(some, pool.map(one, some), strict=True):
                    _note(found, case, said, took, keep)
    return found


def _note(found: Found, case: tuple[str, bytes], said: str, took: float, keep: Path | None) -> None:
    found.slowest = max(found.slowest, took)
    if not said:
        found.taken += 1
        return
    found.refused += 1
    if ENDED.search(said):
        found.ended.append(f"{case[0]}: {said}")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{case[0]}-{hashlib.sha256(case[1]).hexdigest()[:8]}").write_bytes(case[1])
    elif "\n" in said or not said.endswith("."):
        found.strange.append(f"{case[0]}: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for what crashes or hangs a process")
    options = parser.parse_args()
    started = time.perf_counter()
    found = fuzz(options.cases, seed=options.seed, keep=options.keep)
    took = time.perf_counter() - started
    print(f"{options.cases} cases in {took:.0f} s: {found.taken} taken, {found.refused} refused")
    print(f"{len(found.ended)} ended a process, {len(found.strange)} strange sentences, slowest {found.slowest:.2f} s")
    print("\n".join([*found.ended, *found.strange][:20]))


if __name__ == "__main__":
    main()
