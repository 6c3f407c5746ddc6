"""Recordings as people send them: every sample format, channel count, rate and length, and what is refused of them."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile

from audioscore.data import probes
from audioscore.data.audio import decode, encode
from audioscore.data.probes import Heard, Probe, ProbeLimits, hear
from audioscore.data.rules import RULES

RATE = 24_000
MINUTES = 20
CODECS = {"m4a": "aac", "mp3": "libmp3lame", "flac": "flac", "wav": "pcm_s16le"}
# FFmpeg's names of the formats that a wav may hold, and the largest step between two neighbouring samples.
FORMATS = {
    "pcm_u8": ("u8", 2**-7),
    "pcm_s16le": ("s16", 2**-15),
    "pcm_s24le": ("s32", 2**-23),
    "pcm_s32le": ("s32", 2**-31),
    "pcm_f32le": ("flt", 0.0),
    "pcm_f64le": ("dbl", 0.0),
}


def voice(seconds: float = 2.0, rate: int = RATE, pitch: float = 220.0) -> NDArray[np.float64]:
    """A vibrating voice below 3.6 kHz, so that every rate from 8 kHz up holds all of it. Shape: -> [T]."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (pitch * time + 0.6 * np.sin(2 * np.pi * 5.5 * time))
    return np.asarray(0.1 * sum(np.sin(k * phase) / k for k in range(1, 16)), dtype=np.float64)


def write_as(codec: str, wave: NDArray[np.float64], path: Path) -> None:
    """A wav in one of FORMATS, written by FFmpeg."""
    kind, _ = FORMATS[codec]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None, :], format="dblp", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(format=kind, layout="mono", rate=RATE)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def heard(path: Path) -> Heard:
    return hear(path.name, path.parent, ProbeLimits())


def accepted(path: Path) -> Probe:
    """The measurements of a recording that nothing stands against."""
    found = heard(path)
    assert found.fault is None
    assert [one.rule for one in found.findings if RULES[one.rule] == "error"] == []
    assert found.probe is not None
    return found.probe


def alike(one: Probe, other: Probe, step: float) -> None:
    assert one.seconds == pytest.approx(other.seconds, abs=1e-3)
    assert one.level_db == pytest.approx(other.level_db, abs=0.02 + 50 * step)
    assert one.peak == pytest.approx(other.peak, abs=1e-6 + step)
    assert one.silence_share == pytest.approx(other.silence_share, abs=1e-6)
    assert one.dc_offset == pytest.approx(other.dc_offset, abs=1e-6 + step)


@pytest.mark.parametrize("codec", FORMATS)
def test_every_sample_format_holds_the_same_recording(tmp_path: Path, codec: str) -> None:
    wave, step = voice(), FORMATS[codec][1]
    write_as(codec, wave, tmp_path / "a.wav")
    wavfile.write(tmp_path / "exact.wav", RATE, wave)
    np.testing.assert_allclose(decode(tmp_path / "a.wav").wave, wave, atol=1e-7 + step)
    alike(accepted(tmp_path / "a.wav"), accepted(tmp_path / "exact.wav"), step)


@pytest.mark.parametrize("channels", range(1, 7))
def test_any_number_of_channels_is_averaged(tmp_path: Path, channels: int) -> None:
    gains = np.linspace(1.0, 0.5, channels)
    wavfile.write(tmp_path / "a.wav", RATE, (voice()[:, None] * gains).astype(np.float32))
    wavfile.write(tmp_path / "mono.wav", RATE, (voice() * gains.mean()).astype(np.float32))
    alike(accepted(tmp_path / "a.wav"), accepted(tmp_path / "mono.wav"), 0.0)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_channels_that_cancel_each_other_are_refused(tmp_path: Path, channels: int) -> None:
    signs = np.resize([1.0, -1.0], channels)
    wavfile.write(tmp_path / "a.wav", RATE, (voice()[:, None] * signs).astype(np.float32))
    found = heard(tmp_path / "a.wav")
    assert found.probe is not None
    assert found.findings[0].rule == "phase_cancelled"
    assert found.findings[0].reason.startswith("phase-cancelled: its channels averaged are -120.0 dB of what")


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000])
@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("flac", "flac")])
def test_every_rate_holds_the_same_recording(tmp_path: Path, rate: int, suffix: str, codec: str) -> None:
    encode(voice(rate=rate).astype(np.float32), rate, tmp_path / f"a.{suffix}", codec=codec)
    measured = accepted(tmp_path / f"a.{suffix}")
    assert measured.rate == rate
    assert measured.seconds == pytest.approx(2.0, abs=1e-3)
    # Parseval: harmonics of 0.1 / k.
    level = 10 * np.log10(sum((0.1 / k) ** 2 / 2 for k in range(1, 16)))
    assert measured.level_db == pytest.approx(level, abs=0.05)


HEAR_LONG = """
import resource, sys
from pathlib import Path
from audioscore.data.probes import ProbeLimits, hear
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = hear(sys.argv[1], Path(sys.argv[2]), ProbeLimits())
assert found.probe is not None, found.fault
print(found.probe.seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_twenty_minutes_are_heard_in_bounded_memory(tmp_path: Path) -> None:
    samples = (32_767 * voice(seconds=60.0, rate=16_000)).astype(np.int16)
    wavfile.write(tmp_path / "long.wav", 16_000, np.tile(samples, MINUTES))
    command = [sys.executable, "-c", HEAR_LONG, "long.wav", str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, megabytes = map(float, said)
    assert seconds == MINUTES * 60
    wave = MINUTES * 60 * 16_000 * 4 / 2**20
    assert megabytes < 5 * wave, f"{megabytes:.0f} MB for a wave of {wave:.0f} MB"


def test_more_than_an_hour_is_refused_undecoded(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    wavfile.write(path, 8_000, np.zeros(0, dtype=np.int16))
    content, size = bytearray(path.read_bytes()), 3_601 * 16_000
    content[4:8], content[-4:] = (len(content) - 8 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    path.write_bytes(content)
    os.truncate(path, len(content) + size)  # a hole: it takes no place
    assert heard(path).fault == "is 3601 s long; at most 3600 s are taken. Cut it."


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.05, "too short: 0.05 s"), (0.99, "too short: 0.99 s"), (1 / RATE, "too short: 0.00 s")]
)
def test_what_is_too_short_is_refused(tmp_path: Path, seconds: float, said: str) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, voice(seconds).astype(np.float32))
    assert heard(tmp_path / "a.wav").findings[0].reason.startswith(f"{said}, and at least 1 s are needed")


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.6, 0.95])
def test_a_transfer_that_was_cut_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(voice(20.0).astype(np.float32), RATE, path, codec=CODECS[suffix])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    found = heard(path)
    assert found.probe is None
    assert found.fault is not None
    assert str(tmp_path) not in found.fault
    assert found.fault.endswith(".")
    said = ("the file is empty (0 bytes)", "cannot be decoded (", "ends ", "holds no audio samples")
    assert found.fault.startswith(said)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 24_000, -1])
def test_one_sample_that_is_no_number_is_enough(tmp_path: Path, bits: int, bad: float, place: int) -> None:
    wave = voice().astype(f"float{bits}")
    wave[place] = bad
    wavfile.write(tmp_path / "a.wav", RATE, wave)
    assert heard(tmp_path / "a.wav").fault == "holds samples that are not numbers (NaN or infinite). Export it again."


@pytest.mark.parametrize("name", ["with space.wav", "quo\"te's.wav", "line\nend.wav", "录音.wav", "\N{MICROPHONE}.wav"])
def test_names_do_not_matter_to_the_ear(tmp_path: Path, name: str) -> None:
    encode(voice().astype(np.float32), RATE, tmp_path / name, codec="pcm_s16le")
    accepted(tmp_path / name)


def test_a_file_that_the_system_will_not_open_says_so() -> None:
    # A folder that others may enter, for root is one of those only by lowering itself.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "locked.wav"
        encode(voice().astype(np.float32), RATE, path, codec="pcm_s16le")
        accepted(path)  # imports what it needs while it may
        Path(folder).chmod(0o755)
        path.chmod(0)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65_534)
            fault = heard(path).fault
        finally:
            if root:
                os.seteuid(0)
    assert fault == f"cannot be read ({os.strerror(errno.EACCES)}). Check its permissions."


def test_a_disk_that_fails_while_it_is_read_is_no_fault_of_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(voice().astype(np.float32), RATE, tmp_path / "a.wav", codec="pcm_s16le")

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(probes, "sha256_of", fail)
    found = heard(tmp_path / "a.wav")
    assert (found.fault, found.sha256) == ("cannot be read (Input/output error). Check its permissions.", None)
