import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audioscore.data.audio import Recording, decode, encode
from audioscore.evaluation.report import clips
from audioscore.evaluation.report.clips import (
    FRAMES,
    HIGHEST,
    LOWEST,
    RANGE_DB,
    RATE,
    ROWS,
    clip_player,
    clip_players,
    log_spectrogram,
    spectrogram_html,
)


def tone(hertz: float, seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("hertz", [100.0, 440.0, 1000.0, 8000.0])
def test_a_tone_is_loudest_at_its_own_height(hertz: float) -> None:
    levels = log_spectrogram(tone(hertz))
    assert levels.shape == (ROWS, FRAMES)
    row = ROWS * np.log(hertz / LOWEST) / np.log(HIGHEST / LOWEST)
    loudest = np.median(levels.argmax(axis=0))
    # Within the width of an FFT bin or of a row.
    assert abs(LOWEST * (HIGHEST / LOWEST) ** ((loudest + 0.5) / ROWS) - hertz) <= max(RATE / 2048, hertz * 0.03), row
    assert (levels.max(), levels.min()) == (0, -RANGE_DB)


def test_time_runs_from_left_to_right() -> None:
    levels = log_spectrogram(np.concatenate([tone(300.0), np.zeros(2 * RATE, dtype=np.float32)]))
    assert levels[:, : FRAMES // 2 - 5].max(axis=0).min() > -10
    assert levels[:, FRAMES // 2 + 10 :].max() == -RANGE_DB


@pytest.mark.parametrize("wave", [np.zeros(RATE), np.zeros(10), np.full(1, 0.5)])
def test_silence_and_single_samples_have_a_spectrogram(wave: np.ndarray) -> None:
    levels = log_spectrogram(wave.astype(np.float32))
    assert levels.shape == (ROWS, FRAMES)
    assert np.isfinite(levels).all()


def test_the_picture_is_a_small_lazy_jpeg() -> None:
    found = spectrogram_html(Recording(tone(440.0), RATE), 'an "a"')
    assert 'loading="lazy"' in found
    assert 'alt="an &quot;a&quot;"' in found
    data = base64.b64decode(found.split("base64,")[1].split('"')[0])
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (FRAMES, ROWS))
        pixels = np.asarray(picture.convert("L"), dtype=float)
    assert len(data) < 16_000
    assert ROWS - 1 - pixels.mean(axis=1).argmax() == pytest.approx(39, abs=1)  # 440 Hz; pictures begin at the top
    assert found == spectrogram_html(Recording(tone(440.0), RATE), 'an "a"')


def test_an_excerpt_shows_its_length(tmp_path: Path) -> None:
    wave = np.concatenate([0.05 * tone(300.0, 6.0), tone(500.0, 9.0)])
    encode(wave, RATE, tmp_path / "long.m4a")
    encode(tone(300.0, 3.0), RATE, tmp_path / "short.m4a")
    long, short = (clip_player(tmp_path, name, "clip 1") for name in ("long.m4a", "short.m4a"))
    assert "8 of 15 s" in long
    assert "3 s" in short
    assert long.count("<audio ") == long.count("<img ") == 1
    assert 'preload="none"' in long
    excerpt = decode(base64.b64decode(re.findall(r"audio/mp4;base64,([^\"]+)", long)[0]))
    assert excerpt.seconds == pytest.approx(8.0, abs=0.1)
    assert len(long) < 80_000


def test_each_recording_is_decoded_once_within_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.m4a", "b.m4a"):
        encode(tone(300.0), RATE, tmp_path / name)
    calls = []
    monkeypatch.setattr(clips, "clip_player", lambda *args: calls.append(args[1:]) or clip_player(*args))
    players = clip_players(tmp_path, ["a.m4a", "b.m4a", "a.m4a", "gone.m4a"], max_characters=10**6)
    assert calls == [("a.m4a", "clip 1"), ("b.m4a", "clip 2"), ("gone.m4a", "clip 3")]
    assert "<audio" not in players["gone.m4a"]
    one = len(players["a.m4a"])
    tight = clip_players(tmp_path, ["a.m4a", "b.m4a", "gone.m4a"], max_characters=one + 200)
    assert tight["a.m4a"] == players["a.m4a"]
    assert "<audio" not in tight["b.m4a"]
    assert tight["b.m4a"] != tight["gone.m4a"]
    assert tight["gone.m4a"] == players["gone.m4a"]
