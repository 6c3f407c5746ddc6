"""Every refusal that a recording can meet has its Chinese sentence on the page."""

import io
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from audioscore.errors import AudioError
from audioscore.scoring.input import Ears, Limits, Take, take_in

pytestmark = pytest.mark.services

RATE = 24_000
TIME = np.arange(4 * RATE) / RATE
TONE: NDArray[np.float32] = (0.1 * np.sin(2 * np.pi * 220 * TIME)).astype(np.float32)
NOISE = np.random.default_rng(3).normal(0, 0.1, len(TIME)).astype(np.float32)


def wav(samples: NDArray[np.float32], codec: str = "pcm_s16le", rate: int = RATE) -> bytes:
    """Samples, [T] or [2, T], as a wav file."""
    target = io.BytesIO()
    channels = np.atleast_2d(samples)
    with av.open(target, "w", format="wav") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono" if len(channels) == 1 else "stereo")
        whole = codec == "pcm_s16le"
        packed = channels.T.reshape(1, -1)
        data = (packed * 32767).clip(-32768, 32767).astype(np.int16) if whole else packed.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(data, format="s16" if whole else "flt", layout=stream.layout.name)
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return target.getvalue()


RECORDINGS: dict[str, Callable[[], bytes]] = {
    "too short": lambda: wav(TONE[: RATE // 2]),
    "longer than is taken": lambda: wav(np.tile(TONE, 3)),
    "silent": lambda: wav(0 * TONE),
    "nearly silent": lambda: wav(np.concatenate([TONE[: RATE // 10], 0 * TONE])),
    "clipped": lambda: wav(np.sign(TONE)),
    "phase-cancelled": lambda: wav(np.stack([TONE, -TONE])),
    "no voice": lambda: wav(NOISE),
    "empty": lambda: b"",
    "no audio": lambda: b"This is a letter, not a recording." * 20,
    "cut off": lambda: wav(TONE)[: 3 * RATE],
    "not numbers": lambda: wav(np.full_like(TONE, np.nan), "pcm_f32le"),
    "far beyond full scale": lambda: wav(1e20 * TONE, "pcm_f32le"),
}


def refused(data: bytes) -> str:
    with pytest.raises(AudioError) as fault:
        take_in(Take("recording", data), Ears(False, False, False), Limits(max_seconds=10.0, needs_voice=True))
    return str(fault.value)


def translated(page: Any, language: str, sentences: Iterable[str]) -> list[str]:
    """The page's version of the service's sentences."""
    asked = f"{json.dumps(list(sentences))}.map((one) => refusal(one, '{language}'))"
    said: list[str] = page.run(f"import('/page/refusals.js').then(({{refusal}}) => {asked})")
    return said


def test_every_refusal_has_a_chinese_sentence(page: Any, served: Any) -> None:
    page.open(f"http://127.0.0.1:{served.port}/")
    sentences = {name: refused(make()) for name, make in RECORDINGS.items()}
    sentences["slow"] = "recording: is not decoded after 30 s. Export it again."
    sentences["deadly"] = "recording: ends the process that decodes it. Export it again."
    chinese = dict(zip(sentences, translated(page, "zh", sentences.values()), strict=True))
    quoted = {name: sentences[name] for name, said in chinese.items() if "这段录音无法打分" in said or "$" in said}
    assert quoted == {}
    assert len(set(chinese.values())) >= len(chinese) - 2  # three ways to be cut off or broken share a sentence
    english = translated(page, "en", sentences.values())
    assert not [said for said in english if said[0].islower() or re.match("(the )?(uploaded )?recording: ", said, re.I)]
    assert translated(page, "zh", ["of a new kind"])[0].endswith("of a new kind")
