"""Recordings as people send them: every rate, length and name, and what is refused of them."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile

from audioscore.data import audio_checks as probes
from audioscore.data.audio import encode
from audioscore.data.audio_checks import Heard, Probe, ProbeLimits, hear
from audioscore.data.rules import RULES

RATE = 24_000
MINUTES = 20


def voice(seconds: float = 2.0, rate: int = RATE, pitch: float = 220.0) -> NDArray[np.float32]:
    """A voice with vibrato and harmonics below 3.6 kHz, which every rate from 8 kHz up can hold. Shape: -> [T]."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (pitch * time + 0.6 * np.sin(2 * np.pi * 5.5 * time))
    return np.asarray(0.1 * sum(np.sin(k * phase) / k for k in range(1, 16)), dtype=np.float32)


def measured(path: Path) -> Heard:
    return hear(path.name, path.parent, ProbeLimits())


def accepted(path: Path) -> Probe:
    """The measurements of a recording without errors."""
    found = measured(path)
    assert found.fault is None
    assert [one.rule for one in found.findings if RULES[one.rule] == "error"] == []
    assert found.probe is not None
    return found.probe


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000])
@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("flac", "flac")])
def test_every_rate_holds_the_same_recording(tmp_path: Path, rate: int, suffix: str, codec: str) -> None:
    encode(voice(rate=rate), rate, tmp_path / f"a.{suffix}", codec=codec)
    found = accepted(tmp_path / f"a.{suffix}")
    assert found.rate == rate
    assert found.seconds == pytest.approx(2.0, abs=1e-3)
    # Parseval: harmonics of 0.1 / k.
    level = 10 * np.log10(sum((0.1 / k) ** 2 / 2 for k in range(1, 16)))
    assert found.level_db == pytest.approx(level, abs=0.05)


MEASURE_LONG = """
import resource, sys
from pathlib import Path
from audioscore.data.audio_checks import ProbeLimits, hear
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = hear(sys.argv[1], Path(sys.argv[2]), ProbeLimits())
assert found.probe is not None, found.fault
print(found.probe.seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_twenty_minutes_are_measured_in_bounded_memory(tmp_path: Path) -> None:
    samples = (32_767 * voice(seconds=60.0, rate=16_000)).astype(np.int16)
    wavfile.write(tmp_path / "long.wav", 16_000, np.tile(samples, MINUTES))
    command = [sys.executable, "-c", MEASURE_LONG, "long.wav", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, megabytes = map(float, printed)
    assert seconds == MINUTES * 60
    assert megabytes < 5 * MINUTES * 60 * 16_000 * 4 / 2**20  # five times the wave


def test_more_than_an_hour_is_refused_undecoded(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    wavfile.write(path, 8_000, np.zeros(0, dtype=np.int16))
    content, size = bytearray(path.read_bytes()), 3_601 * 16_000
    content[4:8], content[-4:] = (len(content) - 8 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    path.write_bytes(content)
    os.truncate(path, len(content) + size)  # sparse: it uses no disk space
    fault = measured(path).fault or ""
    assert [figure in fault for figure in ("3601 s", "3600 s")] == [True, True]


@pytest.mark.parametrize("name", ["with space.wav", "quo\"te's.wav", "line\nend.wav", "录音.wav", "\N{MICROPHONE}.wav"])
def test_any_name_is_decoded(tmp_path: Path, name: str) -> None:
    encode(voice(), RATE, tmp_path / name, codec="pcm_s16le")
    accepted(tmp_path / name)


def test_a_file_without_read_permission_is_refused() -> None:
    # Root can read everything, so it becomes another user, for whom the folder must be open.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "locked.wav"
        encode(voice(), RATE, path, codec="pcm_s16le")
        accepted(path)  # imports what it needs while it may
        Path(folder).chmod(0o755)
        path.chmod(0)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65_534)
            fault = measured(path).fault
        finally:
            if root:
                os.seteuid(0)
    assert os.strerror(errno.EACCES) in (fault or "")


def test_a_failing_disk_is_no_fault_of_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(voice(), RATE, tmp_path / "a.wav", codec="pcm_s16le")

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(probes, "sha256_of", fail)
    found = measured(tmp_path / "a.wav")
    assert "Input/output error" in (found.fault or "")
    assert found.sha256 is None
