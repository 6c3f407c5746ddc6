"""The page has a Chinese text for each message with which the library refuses a recording."""

import io
import json
import os
import re
import signal
import time
import wave
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from audioscore.errors import AudioError
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.input import (
    DecodedClip,
    EncoderNeeds,
    InputLimits,
    InputRecording,
    Source,
    prepare_recording,
)
from audioscore.scoring.network import Batch, ScoreNetwork
from audioscore.scoring.scorer import predict_scores
from audioscore.scoring.stream import GuardedDecoder

PAGE = Path(__file__).parents[3] / "audioscore" / "serving" / "page"
RATE = 24_000
TIME = np.arange(4 * RATE) / RATE
TONE: NDArray[np.float32] = (0.1 * np.sin(2 * np.pi * 220 * TIME)).astype(np.float32)
NOISE = np.random.default_rng(3).normal(0, 0.1, len(TIME)).astype(np.float32)
SUNG: NDArray[np.float32] = np.asarray(
    sum(np.sin(2 * np.pi * 220 * k * TIME) / k for k in range(1, 50)) * (TIME % 1 > 0.1) / 10, dtype=np.float32
)
NEEDS = EncoderNeeds(muq=False, voice=False, whole=False)
LIMITS = InputLimits(max_bytes=2**20, max_seconds=10.0, needs_voice=True)


def encoded(samples: NDArray[np.float32], codec: str = "pcm_s16le", container: str = "wav", **options: str) -> bytes:
    """Encode samples, [T] or [2, T]."""
    target = io.BytesIO()
    channels = np.atleast_2d(samples)
    with av.open(target, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=RATE, layout="mono" if len(channels) == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(channels.T.reshape(1, -1), format="flt", layout=stream.layout.name)
        frame.rate = RATE
        resampler = av.AudioResampler(stream.format, stream.layout, stream.rate, stream.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return target.getvalue()


def plain_wav(*, channels: int = 1, rate: int = RATE, samples: int = RATE) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * channels * samples))
    return target.getvalue()


def with_longer_header(flac: bytes) -> bytes:
    """Double the number of samples in the STREAMINFO block: the last 36 of the 8 bytes from offset 18."""
    value = int.from_bytes(flac[18:26], "big")
    samples = value & (2**36 - 1)
    return flac[:18] + (value + samples).to_bytes(8, "big") + flac[26:]


def with_data_size(wav: bytes, change: int) -> bytes:
    """Change the size in the header of the data chunk, in bytes."""
    at = wav.index(b"data") + 4
    return wav[:at] + (int.from_bytes(wav[at : at + 4], "little") + change).to_bytes(4, "little") + wav[at + 4 :]


def two_streams() -> bytes:
    """SUNG twice, in a Matroska file."""
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as file:
        for stream in [file.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]:
            frame = av.AudioFrame.from_ndarray((32767 * SUNG).astype(np.int16)[None], format="s16", layout="mono")
            frame.rate = RATE
            file.mux(stream.encode(frame))
    return target.getvalue()


def with_gap() -> bytes:
    """SUNG with 0.3 s of its timestamps left out, in a Matroska file without length."""
    target = io.BytesIO()
    with av.open(target, "w", format="matroska", options={"live": "1"}) as file:
        stream = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for second, start in enumerate(range(0, len(SUNG), RATE)):
            samples = (32767 * SUNG[start : start + RATE]).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), start + 3 * RATE // 10 * (second > 1)
            file.mux(stream.encode(frame))
    return target.getvalue()


def damaged(file: bytes) -> bytes:
    """Replace bytes in the middle."""
    middle = len(file) // 2
    return file[:middle] + bytes(3_000) + file[middle + 3_000 :]


def silent_film() -> bytes:
    """A video without an audio stream."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32)
        stream.pix_fmt = "yuv420p"
        container.mux(
            [*stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8))), *stream.encode()]
        )
    return target.getvalue()


RECORDINGS: dict[str, Source] = {
    "too short": encoded(TONE[: RATE // 2]),
    "too long, declared": encoded(np.tile(TONE, 3), "flac", "flac"),
    "too long, undeclared": encoded(np.tile(TONE, 3), "libopus", "webm", live="1"),
    "too long, samples": (np.tile(TONE, 3), RATE),
    "too large": bytes(2**20 + 1),
    "silent": encoded(0 * TONE),
    "nearly silent": encoded(np.concatenate([TONE[: RATE // 10], 0 * TONE])),
    "clipped": encoded(np.sign(TONE)),
    "phase-cancelled": encoded(np.stack([TONE, -TONE])),
    "no voice": encoded(NOISE),
    "no audio stream": silent_film(),
    "no samples": plain_wav(samples=0),
    "nine channels": plain_wav(channels=9),
    "10 Hz": plain_wav(rate=10, samples=20),
    "not audio": b"This is a letter, not a recording." * 20,
    "cut off": encoded(TONE)[: 3 * RATE],
    "shorter than declared": with_longer_header(encoded(TONE, "flac", "flac")),
    "damaged": damaged(encoded(NOISE, "aac", "adts")),
    "gap": damaged(encoded(NOISE, "flac", "flac")),
    "not numbers": encoded(np.full_like(TONE, np.nan), "pcm_f32le"),
    "far beyond full scale": encoded(1e20 * TONE, "pcm_f32le"),
}


@dataclass(frozen=True)
class BadSource:
    """A source that ends the decoding process, or takes longer than the test."""

    kills: bool

    def __call__(self) -> bytes:
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
        return b""


class NanHead(nn.Module):
    """A head whose output is not finite."""

    def represent(self, batch: Batch) -> Tensor:
        assert batch.embedding is not None
        return batch.embedding

    def predict(self, representation: Tensor) -> Tensor:
        return torch.full((len(representation),), torch.nan)


@pytest.fixture(scope="module")
def notes() -> dict[str, str]:
    """The library's notes about recordings that are scored."""
    whole, opus = encoded(SUNG), encoded(SUNG, "libopus", "ogg")
    sources: dict[str, Source] = {
        "silence": (np.pad(SUNG, (0, 6 * RATE)), RATE),
        "narrow": (TONE, RATE),
        "noise": ((SUNG + NOISE * 0.5 * SUNG.std() / NOISE.std()).astype(np.float32), RATE),
        "offset": (SUNG + np.float32(0.1), RATE),
        "packets": encoded(SUNG, "libmp3lame", "mp3") + b"LYRICSBEGIN" + b"la la la " * 40,
        "gap": with_gap(),
        "end": whole[:-4_800],
        "size": with_data_size(whole, -9_600),
        "unread": whole + b"LIST\4\0\0\0INFO" + b"0123456789" * 30,
        "joined": 2 * whole,
        "padding": encoded(SUNG, "flac", "flac") + bytes(4_000),
        "open end": opus[: opus.rindex(b"OggS")],
        "streams": two_streams(),
    }
    found = {}
    for name, source in sources.items():
        found[name] = prepare_recording(InputRecording("recording", source), NEEDS, LIMITS).notes[0]
    return found


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The library's messages."""
    found = {}
    empty = tmp_path_factory.mktemp("uploads") / "1"
    empty.touch()
    for name, source in {**RECORDINGS, "empty": empty}.items():
        with pytest.raises(AudioError) as refused:
            prepare_recording(InputRecording("recording", source), NEEDS, LIMITS)
        found[name] = str(refused.value)
    for name, kills, seconds in (("slow", False, 0.5), ("crash", True, 60.0)):
        with GuardedDecoder(NEEDS, LIMITS, seconds=seconds) as decoder, pytest.raises(AudioError) as refused:
            decoder(InputRecording("recording", BadSource(kills)))
        found[name] = str(refused.value)
    clip, calibration = DecodedClip("recording", 1.0, None, None), Calibration((0.0, 1.0), (60.0, 90.0), 5.0)
    features = {"campplus": torch.zeros(4)}
    (result,) = predict_scores(ScoreNetwork(NanHead()), calibration, [clip], [features], device="cpu")
    return {**found, "not finite": result.error or ""}


def test_each_pattern_of_the_page_matches_a_message_and_each_message_a_pattern(
    messages: dict[str, str], notes: dict[str, str]
) -> None:
    lists = (PAGE / "refusals.js").read_text(encoding="utf-8").split("const CHINESE_NOTES")
    for source, found in zip(lists, (messages, notes), strict=True):
        patterns = re.findall(r"^  \[/(.+)/, \"", source, re.MULTILINE)
        assert len(patterns) > 3
        matched = {
            name: next((pattern for pattern in patterns if re.search(pattern, message)), None)
            for name, message in found.items()
        }
        assert [found[name] for name, pattern in matched.items() if pattern is None] == []
        assert sorted(set(patterns) - set(matched.values())) == []


def translated(page: Any, language: str, messages: Iterable[str], function: str = "refusal") -> list[str]:
    """The page's version of the messages."""
    calls = f"{json.dumps(list(messages))}.map((one) => {function}(one, '{language}'))"
    found: list[str] = page.run(f"import('/page/refusals.js').then(({{{function}}}) => {calls})")
    return found


@pytest.mark.services
def test_messages_in_both_languages(page: Any, served: Any, messages: dict[str, str], notes: dict[str, str]) -> None:
    page.open(f"http://127.0.0.1:{served.port}/")
    chinese = dict(zip(messages, translated(page, "zh", messages.values()), strict=True))
    assert {name: text for name, text in chinese.items() if re.search(r"\$|[a-z] [a-z]", text)} == {}
    assert not [text for text in translated(page, "zh", notes.values(), "note") if re.search(r"\$|[a-z] [a-z]", text)]
    english = translated(page, "en", [*messages.values(), *notes.values()])
    assert not [text for text in english if text[0].islower() or re.match("(the )?(uploaded )?recording: ", text, re.I)]
    for function in ("refusal", "note"):
        assert translated(page, "zh", ["of a new kind"], function)[0].endswith("of a new kind")
