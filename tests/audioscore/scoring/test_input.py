from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import decode
from audioscore.errors import AudioError
from audioscore.scoring.input import EncoderNeeds, InputLimits, InputRecording, Source, as_recording, prepare_recording

BOTH = EncoderNeeds(muq=True, voice=True, whole=False)


def test_each_encoder_gets_its_sample_rate_and_a_missing_one_none(recordings: list[Path]) -> None:
    recording = decode(recordings[2])  # 44.1 kHz
    clip = prepare_recording(InputRecording("a", recordings[2]), BOTH, InputLimits())
    np.testing.assert_array_equal(clip.muq, recording.at(24_000))
    np.testing.assert_array_equal(clip.voice, recording.at(16_000))
    assert clip.seconds == recording.seconds
    alone = prepare_recording(
        InputRecording("a", recordings[2]), EncoderNeeds(muq=True, voice=False, whole=True), InputLimits()
    )
    assert alone.voice is None
    np.testing.assert_array_equal(alone.muq, recording.resample_rounded_up(24_000))


def test_limit_errors_contain_the_measured_value(recordings: list[Path]) -> None:
    size = recordings[0].stat().st_size
    with pytest.raises(AudioError, match=rf"clip0\.flac: .*\b{size} .*\b100\b"):
        prepare_recording(InputRecording("a", recordings[0]), BOTH, InputLimits(max_bytes=100))
    with pytest.raises(AudioError, match=rf"^(?!.*flac).*\b{size} bytes.*\b100\b"):
        prepare_recording(InputRecording("a", recordings[0].read_bytes), BOTH, InputLimits(max_bytes=100))
    with pytest.raises(AudioError, match=r"\b1 s\b"):
        prepare_recording(InputRecording("a", recordings[0]), BOTH, InputLimits(max_seconds=1.0))


def test_a_recording_without_a_path_is_named_in_errors() -> None:
    short = np.zeros(100, dtype=np.float32)
    sources: tuple[Source, ...] = (b"", b"not audio", lambda: b"", lambda: b"not audio", (short, 24_000))
    for source in sources:
        with pytest.raises(AudioError, match=r"^s3://songs/a\.wav: "):
            prepare_recording(InputRecording("s3://songs/a.wav", source), BOTH, InputLimits())


def test_a_recording_without_voice_is_an_error() -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=72_000).astype(np.float32)
    with pytest.raises(AudioError, match=r"no voice\b.*\b\d+%"):
        prepare_recording(InputRecording("a", (noise, 24_000)), BOTH, InputLimits(needs_voice=True))
    assert prepare_recording(InputRecording("a", (noise, 24_000)), BOTH, InputLimits()).seconds == 3.0


def test_what_the_gate_warns_about_is_a_note(recordings: list[Path]) -> None:
    assert prepare_recording(InputRecording("a", recordings[2]), BOTH, InputLimits()).notes == ()
    wave = np.pad(decode(recordings[2]).at(8_000), (0, 40_000))
    notes = prepare_recording(InputRecording("a", (wave, 8_000)), BOTH, InputLimits()).notes
    assert [[part for part in ("8000 Hz", "%") if part in note] for note in notes] == [["8000 Hz"], ["%"]]


def test_names() -> None:
    assert [as_recording(one, 0).file for one in ("a", Path("b/c"), b"", InputRecording("d", b""))] == [
        "a",
        "b/c",
        "recording 1",
        "d",
    ]
