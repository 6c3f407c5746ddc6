import base64
from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import Recording, decode, encode
from audioscore.data.gate.report import EXCERPT_SECONDS, loudest, player


@pytest.mark.parametrize("rate", [5_000, 8_000, 44_100, 96_000])
def test_a_player_holds_the_loudest_part_whatever_the_rate(tmp_path: Path, rate: int) -> None:
    time = np.arange(12 * rate) / rate
    wave = np.where(time > 4, 0.5, 0.01) * np.sin(2 * np.pi * 300 * time)
    encode(wave.astype(np.float32), rate, tmp_path / "a.wav", codec="pcm_s16le")
    html = player(tmp_path, "a.wav", 'say "a"')
    assert html is not None
    assert 'aria-label="say &quot;a&quot;"' in html
    excerpt = decode(base64.b64decode(html.split("base64,")[1].split('"')[0]))
    assert excerpt.seconds == pytest.approx(EXCERPT_SECONDS, abs=0.1)
    assert np.sqrt(np.mean(np.square(excerpt.wave))) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_what_cannot_be_decoded_has_no_player(tmp_path: Path) -> None:
    (tmp_path / "text.m4a").write_text("no audio")
    for name in ("text.m4a", "gone.m4a", "../out.m4a", "https://host.test/a.m4a", ""):
        assert player(tmp_path, name, name) is None


def test_a_short_recording_is_its_own_excerpt() -> None:
    short = Recording(np.ones(10, dtype=np.float32), 10)
    assert loudest(short) is short
