from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import decode
from audioscore.errors import AudioError
from audioscore.scoring.input import Ears, Limits, Take, named, take_in

BOTH = Ears(muq=True, voice=True, whole=False)


def test_each_encoder_gets_its_rate_and_a_missing_one_nothing(recordings: list[Path]) -> None:
    recording = decode(recordings[2])  # 44.1 kHz
    clip = take_in(Take("a", recordings[2]), BOTH, Limits())
    np.testing.assert_array_equal(clip.muq, recording.at(24_000))
    np.testing.assert_array_equal(clip.voice, recording.at(16_000))
    assert clip.seconds == recording.seconds
    alone = take_in(Take("a", recordings[2]), Ears(muq=True, voice=False, whole=True), Limits())
    assert alone.voice is None
    np.testing.assert_array_equal(alone.muq, recording.rounded_up(24_000))


def test_limits_name_what_was_found(recordings: list[Path]) -> None:
    size = recordings[0].stat().st_size
    with pytest.raises(AudioError, match=rf"clip0\.flac: .*\b{size} .*\b100\b"):
        take_in(Take("a", recordings[0]), BOTH, Limits(max_bytes=100))
    with pytest.raises(AudioError, match=rf"^(?!.*flac).*\b{size} bytes.*\b100\b"):
        take_in(Take("a", recordings[0].read_bytes), BOTH, Limits(max_bytes=100))
    with pytest.raises(AudioError, match=r"\b1 s\b"):
        take_in(Take("a", recordings[0]), BOTH, Limits(max_seconds=1.0))


def test_a_recording_without_voice_is_an_error() -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=72_000).astype(np.float32)
    with pytest.raises(AudioError, match=r"no voice\b.*\b\d+%"):
        take_in(Take("a", (noise, 24_000)), BOTH, Limits(needs_voice=True))
    assert take_in(Take("a", (noise, 24_000)), BOTH, Limits()).seconds == 3.0


def test_names() -> None:
    assert [named(one, 0).file for one in ("a", Path("b/c"), b"", Take("d", b""))] == ["a", "b/c", "recording 1", "d"]
