from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from audioscore.data.audio import Recording, Wave, encode
from audioscore.data.probes import FLOOR_DB, ProbeLimits, hear, hear_all, probe, refusal
from audioscore.files import sha256_of

RATE = 24_000


def tone(seconds: float = 2.0, amplitude: float = 0.5) -> Wave:
    return (amplitude * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def silence(seconds: float) -> Wave:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def why(wave: Wave) -> str | None:
    return refusal(probe(Recording(wave, RATE)))


def test_a_sine_reads_its_closed_form() -> None:
    measured = probe(Recording(tone(amplitude=0.5), RATE))
    assert measured.seconds == 2.0
    assert measured.rate == RATE
    assert measured.level_db == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=1e-3)
    assert measured.peak == pytest.approx(0.5, abs=1e-3)
    assert measured.dc_offset == pytest.approx(0, abs=1e-6)
    assert measured.silence_share == 0
    assert measured.clipping_share == 0


def test_an_offset_is_measured_and_is_no_level() -> None:
    measured = probe(Recording(tone() + np.float32(0.25), RATE))
    assert measured.dc_offset == pytest.approx(0.25, abs=1e-5)
    assert measured.level_db == pytest.approx(-9.03, abs=0.01)
    constant = probe(Recording(np.full(RATE * 2, 0.3, dtype=np.float32), RATE))
    assert constant.level_db == FLOOR_DB


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_silence_is_counted_in_time(share: float) -> None:
    wave = np.concatenate([tone(10 * (1 - share)), silence(10 * share)])
    assert probe(Recording(wave, RATE)).silence_share == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("gain_db", [-20, 0, 6])
def test_silence_is_relative_to_the_singing_so_gain_does_not_matter(gain_db: float) -> None:
    hiss = np.random.default_rng(0).normal(0, 10 ** (-62 / 20), RATE * 2)
    wave = np.concatenate([tone(2), hiss]) * 10 ** (gain_db / 20)
    assert probe(Recording(wave.astype(np.float32), RATE)).silence_share == pytest.approx(0.5, abs=0.01)


def test_one_click_does_not_make_quiet_singing_silent() -> None:
    wave = tone(10, amplitude=0.004)
    wave[RATE] = 1.0
    assert probe(Recording(wave, RATE)).silence_share < 0.05


def test_samples_at_the_rails_are_counted_in_runs_only() -> None:
    wave = silence(1)
    wave[100:110] = 1.0
    wave[200:205] = -1.0
    wave[300:302] = 1.0  # too short a run
    wave[400:404] = [1, -1, 1, -1]  # four runs of one
    assert probe(Recording(wave, RATE)).clipping_share == pytest.approx(15 / RATE)


@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("m4a", "aac"), ("mp3", "libmp3lame")])
def test_clipping_is_heard_through_lossy_codecs(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(tone(3, amplitude=20), RATE, path, codec=codec, bit_rate=128_000)
    assert "clipped" in (hear(path.name, tmp_path, ProbeLimits()).fault or "")
    encode(tone(3, amplitude=0.8), RATE, path, codec=codec, bit_rate=128_000)
    assert hear(path.name, tmp_path, ProbeLimits()).fault is None


@pytest.mark.parametrize("samples", [0, 1, 100, 479, 480, 481])
def test_next_to_nothing_is_measured_without_fault_and_refused(samples: int) -> None:
    said = why(tone()[:samples])
    assert said is not None
    assert said.startswith("too short: 0.0")


@pytest.mark.parametrize(
    ("wave", "said"),
    [
        (tone(0.99), "too short: 0.99 s, and at least 1 s"),
        (silence(3), "silent: its level is -120.0 dBFS, below -60"),
        (tone(3, amplitude=0.001), "silent: its level is -63.0 dBFS"),
        (np.concatenate([tone(0.4), silence(9.6)]), "nearly silent: 96.0% of it is silence, above 95%"),
        (np.clip(tone(3, amplitude=20), -1, 1), "clipped: 98% of its samples are at the rails, above 20%"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_numbers(wave: Wave, said: str) -> None:
    assert (why(wave) or "").startswith(said)


def test_a_swelling_voice_at_full_scale_is_not_clipped() -> None:
    t = np.arange(3 * RATE) / RATE
    voice = sum(np.sin(2 * np.pi * 200 * k * t) / k for k in range(1, 8)) * np.sin(np.pi * t / 3)
    assert why((voice / np.abs(voice).max()).astype(np.float32)) is None


def test_limits_are_inclusive_and_can_be_set() -> None:
    assert why(tone(1.0)) is None
    measured = probe(Recording(tone(3.0), RATE))
    assert refusal(measured, ProbeLimits(min_seconds=3.5, max_seconds=9)) is not None
    said = refusal(measured, ProbeLimits(max_seconds=2))
    assert said == "too long: 3 s, and at most 2 s are taken; cut it."


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3_000), st.floats(0.001, 1.0), st.integers(0, 1_000))
def test_shares_are_shares_and_polarity_does_not_matter(samples: int, scale: float, seed: int) -> None:
    wave = (scale * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)
    one, turned = probe(Recording(wave, RATE)), probe(Recording(-wave, RATE))
    assert 0 <= one.silence_share <= 1
    assert 0 <= one.clipping_share <= 1
    assert one.level_db >= FLOOR_DB
    assert (one.peak, one.clipping_share) == (turned.peak, turned.clipping_share)
    assert one.level_db == pytest.approx(turned.level_db)


def test_pieces_give_what_the_whole_gives() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 150 * 2_000 + 7).astype(np.float32)  # at 2 kHz: 2.5 pieces
    measured = probe(Recording(wave, 2_000))
    assert measured.level_db == pytest.approx(10 * np.log10(np.var(wave.astype(np.float64))), abs=1e-6)


def test_hearing_gives_hash_and_size_and_names_no_path(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    heard = hear("a.wav", tmp_path, ProbeLimits())
    assert heard.sha256 == sha256_of(tmp_path / "a.wav")
    assert heard.bytes == (tmp_path / "a.wav").stat().st_size
    assert heard.probe == probe(Recording(tone(), RATE))
    assert hear(str(tmp_path / "a.wav"), tmp_path / "elsewhere", ProbeLimits()) == heard
    missing = hear("b.wav", tmp_path, ProbeLimits()).fault
    assert missing == "no such file. Check the path, or the table's audio_file column."
    linked = hear("s3://bucket/a.wav", tmp_path, ProbeLimits()).fault
    assert linked is not None
    assert linked.startswith("is a link, not a file")


def test_a_folder_above_is_allowed_where_the_file_exists(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    assert hear("../a.wav", tmp_path / "below", ProbeLimits()).fault is None
    assert "no such file" in (hear("../b.wav", tmp_path / "below", ProbeLimits()).fault or "")


@pytest.mark.parametrize("workers", [1, 2])
def test_many_are_heard_in_order_with_progress_to_the_end(tmp_path: Path, workers: int) -> None:
    names = [f"{number}.wav" for number in range(30)]
    for number, name in enumerate(names):
        if number != 7:
            wavfile.write(tmp_path / name, RATE, tone(1 + number / 100))
    told: list[tuple[int, int]] = []
    heard = hear_all(names, tmp_path, ProbeLimits(), workers, lambda done, all_: told.append((done, all_)))
    assert told == [(done, 30) for done in range(1, 31)]
    assert [number for number, one in enumerate(heard) if one.fault] == [7]
    assert [one.probe.seconds if one.probe else None for one in heard] == [
        None if number == 7 else pytest.approx(1 + number / 100, abs=1e-4) for number in range(30)
    ]


def test_none_to_hear_is_no_fault(tmp_path: Path) -> None:
    assert hear_all([], tmp_path, ProbeLimits(), 2) == []
