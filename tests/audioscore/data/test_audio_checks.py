import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from audioscore.data import audio_checks as probes
from audioscore.data.acoustics import FLOOR_DB
from audioscore.data.audio import Recording, Wave, encode
from audioscore.data.audio_checks import Heard, Probe, ProbeLimits, audio_path, findings, hear, hear_all, probe, refusal
from audioscore.data.measurement_cache import ProbeMemory
from audioscore.data.rules import RULES
from audioscore.errors import AudioError
from audioscore.files import sha256_of

RATE = 24_000


def tone(seconds: float = 2.0, amplitude: float = 0.5) -> Wave:
    return (amplitude * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def silence(seconds: float) -> Wave:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def measure(wave: Wave, rate: int = RATE) -> Probe:
    return probe(Recording(wave, rate))


def refused(wave: Wave) -> tuple[str, str] | None:
    """The rule and the reason of the first error; `refusal` returns the same reason."""
    found = [(one.rule, one.reason) for one in findings(measure(wave)) if RULES[one.rule] == "error"]
    assert refusal(measure(wave)) == (found[0][1] if found else None)
    return found[0] if found else None


def rules(found: Heard) -> list[str]:
    assert found.fault is None
    return [one.rule for one in found.findings]


def voice(seconds: float = 3.0, rate: int = RATE, pitch: float = 220.0) -> Wave:
    """A vibrating voice with harmonics up to the top of the band, over a little breath."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (pitch * t + 0.6 * np.sin(2 * np.pi * 5.5 * t))
    tones = sum(np.sin(k * phase) / k for k in range(1, int(0.45 * rate / pitch)))
    breath = np.random.default_rng(3).normal(0, 0.02, len(t))
    return np.asarray(0.2 * tones + 0.2 * breath, dtype=np.float32)


def test_a_sine_and_an_offset_have_their_closed_form() -> None:
    measured = measure(tone(amplitude=0.5))
    assert (measured.seconds, measured.rate, measured.silence_share, measured.clipping_share) == (2.0, RATE, 0, 0)
    assert measured.level_db == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=1e-3)
    assert measured.peak == pytest.approx(0.5, abs=1e-3)
    assert measured.dc_offset == pytest.approx(0, abs=1e-6)
    shifted = measure(tone() + np.float32(0.25))
    assert shifted.dc_offset == pytest.approx(0.25, abs=1e-5)
    assert shifted.level_db == pytest.approx(-9.03, abs=0.01)
    assert measure(np.full(RATE * 2, 0.3, dtype=np.float32)).level_db == FLOOR_DB
    noise = np.random.default_rng(0).normal(0, 0.1, 150 * 2_000 + 7).astype(np.float32)  # more than one block
    assert measure(noise, 2_000).level_db == pytest.approx(10 * np.log10(np.var(noise.astype(float))), abs=1e-6)


@pytest.mark.parametrize("gain_db", [-20, 0, 6])
def test_silence_is_counted_in_time_relative_to_the_singing(gain_db: float) -> None:
    for share in (0.1, 0.5, 0.9):
        wave = np.concatenate([tone(10 * (1 - share)), silence(10 * share)])
        assert measure(wave).silence_share == pytest.approx(share, abs=0.005)
    hiss = np.random.default_rng(0).normal(0, 10 ** (-62 / 20), RATE * 2)
    wave = np.concatenate([tone(2), hiss]) * 10 ** (gain_db / 20)
    assert measure(wave.astype(np.float32)).silence_share == pytest.approx(0.5, abs=0.01)
    click = tone(10, amplitude=0.004)
    click[RATE] = 1.0
    assert measure(click).silence_share < 0.05


def test_samples_at_the_rails_are_counted_in_runs_only() -> None:
    wave = silence(1)
    wave[100:110] = 1.0
    wave[200:205] = -1.0
    wave[300:302] = 1.0  # too short a run
    wave[400:404] = [1, -1, 1, -1]  # four runs of one
    assert measure(wave).clipping_share == pytest.approx(15 / RATE)


@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("m4a", "aac"), ("mp3", "libmp3lame")])
def test_clipping_is_found_through_lossy_codecs(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(tone(3, amplitude=20), RATE, path, codec=codec, bit_rate=128_000)
    assert "clipped" in rules(hear(path.name, tmp_path, ProbeLimits()))
    encode(tone(3, amplitude=0.8), RATE, path, codec=codec, bit_rate=128_000)
    assert "clipped" not in rules(hear(path.name, tmp_path, ProbeLimits()))


@pytest.mark.parametrize(
    ("wave", "rule", "figures"),
    [
        *((tone()[:samples], "too_short", [f"{samples / RATE:.2f} s"]) for samples in (0, 1, 100, 479, 480, 481)),
        (tone(0.99), "too_short", ["0.99 s", "1 s"]),
        (silence(3), "silent", ["-120.0 dBFS", "-60"]),
        (tone(3, amplitude=0.001), "silent", ["-63.0 dBFS"]),
        (np.concatenate([tone(0.4), silence(9.6)]), "nearly_silent", ["96.0%", "95%"]),
        (np.clip(tone(3, amplitude=20), -1, 1), "clipped", ["98%", "20%"]),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_figures(wave: Wave, rule: str, figures: list[str]) -> None:
    found = refused(wave)
    assert found is not None
    assert found[0] == rule
    assert [figure for figure in figures if figure not in found[1]] == []


def test_limits_are_inclusive_and_can_be_set() -> None:
    assert refused(tone(1.0)) is None
    measured = measure(tone(3.0))
    assert findings(measured, ProbeLimits(min_seconds=3.5, max_seconds=9))[0].rule == "too_short"
    long = findings(measured, ProbeLimits(max_seconds=2))[0]
    assert long.rule == "too_long"
    assert re.findall(r"\d+ s", long.reason) == ["3 s", "2 s"]
    # A swelling voice at full scale is not clipped, and a warning alone is no refusal.
    t = np.arange(3 * RATE) / RATE
    swell = sum(np.sin(2 * np.pi * 200 * k * t) / k for k in range(1, 8)) * np.sin(np.pi * t / 3)
    assert refused((swell / np.abs(swell).max()).astype(np.float32)) is None
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    assert [one.rule for one in findings(measure(noise))] == ["no_voice"]
    assert refused(noise) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3_000), st.floats(0.001, 1.0), st.integers(0, 1_000))
def test_shares_are_shares_and_polarity_does_not_matter(samples: int, scale: float, seed: int) -> None:
    wave = (scale * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)
    one, turned = measure(wave), measure(-wave)
    assert 0 <= one.silence_share <= 1
    assert 0 <= one.clipping_share <= 1
    assert one.level_db >= FLOOR_DB
    assert (one.peak, one.clipping_share) == (turned.peak, turned.clipping_share)
    assert one.level_db == pytest.approx(turned.level_db)


def test_a_result_has_hash_and_size_and_names_no_path(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    found = hear("a.wav", tmp_path, ProbeLimits())
    assert found.sha256 == sha256_of(tmp_path / "a.wav")
    assert found.bytes == (tmp_path / "a.wav").stat().st_size
    assert found.probe == measure(tone())
    assert hear(str(tmp_path / "a.wav"), tmp_path / "elsewhere", ProbeLimits()) == found
    for name in ("b.wav", "s3://bucket/a.wav"):
        missing = hear(name, tmp_path, ProbeLimits())
        assert (missing.probe, missing.sha256) == (None, None)
        assert str(tmp_path) not in (missing.fault or str(tmp_path))
    assert hear_all([], tmp_path, ProbeLimits(), 2) == []


def test_a_clean_voice_breaks_no_rule_and_silence_only_those_of_level(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, voice())
    wavfile.write(tmp_path / "silent.wav", RATE, silence(2))
    clean, silent = (hear(name, tmp_path, ProbeLimits()) for name in ("a.wav", "silent.wav"))
    assert (rules(clean), rules(silent), silent.fingerprint) == ([], ["silent", "nearly_silent"], b"")
    assert clean.fingerprint


def test_every_broken_rule_is_listed_with_its_figures() -> None:
    hiss = np.random.default_rng(0).normal(0, 0.3, 8_000 // 2)
    measured = measure((np.clip(hiss, -0.9, 0.9) + 0.1).astype(np.float32), 8_000)
    found = {one.rule: one.reason for one in findings(measured, ProbeLimits(max_clipping_share=-1, max_seconds=0.4))}
    assert list(found) == ["too_short", "too_long", "clipped", "dc_offset", "narrow_band", "no_voice"]
    assert "0.50 s" in found["too_short"]
    assert f"{measured.dc_offset:+.3f}" in found["dc_offset"]
    assert "0.02" in found["dc_offset"]
    assert re.findall(r"\d+ Hz", found["narrow_band"]) == ["4000 Hz", "8000 Hz", "8100 Hz"]
    assert "0%" in found["no_voice"]
    assert set(found) <= set(RULES)


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_inverted_channels_are_refused_before_the_silence_that_they_leave(tmp_path: Path, pairs: int) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, np.stack([voice(), -voice()] * pairs, axis=1))
    found = hear("a.wav", tmp_path, ProbeLimits())
    assert rules(found) == ["phase_cancelled", "silent", "nearly_silent"]
    assert "-120.0 dB" in found.findings[0].reason
    wavfile.write(tmp_path / "b.wav", RATE, np.stack([voice(), voice(pitch=300)], axis=1))
    assert rules(hear("b.wav", tmp_path, ProbeLimits())) == []


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "below"
    (folder / "audio").mkdir(parents=True)
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    (folder / "linked.wav").symlink_to(tmp_path / "a.wav")
    (folder / "up").symlink_to(tmp_path)
    for name in ("../a.wav", "audio/../../a.wav", "../none.wav", "linked.wav", "up/a.wav", "../below-too/a.wav"):
        assert hear(name, folder, ProbeLimits()).fault is not None
        with pytest.raises(AudioError, match=r"^" + name.replace(".", r"\.")):
            audio_path(folder, name)
    wavfile.write(folder / "inside.wav", RATE, tone())
    (folder / "audio" / "alias.wav").symlink_to("../inside.wav")
    (tmp_path / "data").symlink_to(folder)
    for name in ("inside.wav", "audio/../inside.wav", "audio/alias.wav", str(tmp_path / "a.wav")):
        assert hear(name, folder, ProbeLimits()).fault is None
        assert hear(name, tmp_path / "data", ProbeLimits()).fault is None


def test_what_is_no_regular_file_has_its_own_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "a.wav").symlink_to("b.wav")
    (tmp_path / "b.wav").symlink_to("a.wav")
    words = {"pipe.wav": "pipe", "/dev/zero": "device", "a.wav": "link", "": "folder", "x\0.wav": "no such"}
    found = {name: hear(name, tmp_path, ProbeLimits()).fault or "" for name in words}
    assert [name for name, word in words.items() if word not in found[name]] == []


def test_a_file_that_changes_while_it_is_read_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    real = probes.decode

    def growing(path: Path) -> Recording:
        recording = real(path)
        path.write_bytes(path.read_bytes() + b"more")
        return recording

    monkeypatch.setattr(probes, "decode", growing)
    changed = hear("a.wav", tmp_path, ProbeLimits())
    assert changed.fault is not None
    assert (changed.probe, changed.sha256) == (None, None)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, codecs = tmp_path_factory.mktemp("written"), [".wav", ".mp3", ".m4a", ".flac"]
    for suffix, codec in zip(codecs, ("pcm_s16le", "libmp3lame", "aac", "flac"), strict=True):
        encode(voice(1.2), RATE, folder / f"a{suffix}", codec=codec)
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in codecs}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([".wav", ".mp3", ".m4a", ".flac"]),
    st.binary(min_size=1, max_size=400),
    st.booleans(),
    st.floats(0, 1),
)
def test_no_content_makes_it_raise(
    written: dict[str, bytes], suffix: str, junk: bytes, within: bool, place: float
) -> None:
    """Random bytes alone, and random bytes over a part of a sound file, its header included."""
    at = int(place**4 * len(written[suffix]))  # most often near the header
    content = written[suffix][:at] + junk + written[suffix][at + len(junk) :] if within else junk
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"a{suffix}").write_bytes(content)
        found = hear(f"a{suffix}", Path(folder), ProbeLimits())
        assert (found.fault is None) == (found.probe is not None)
        assert folder not in (found.fault or "")


@pytest.mark.parametrize("rate", [1_000, 8_000, 96_000, 192_000])
def test_any_rate_and_any_length_is_measured(rate: int) -> None:
    for samples in (1, 2, 7, 50, 2_000):
        found = measure(np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32), rate)
        assert 0 <= found.voiced_share <= 1
        assert 0 <= found.bandwidth_hz <= rate / 2


def test_nothing_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, memory = tmp_path / "data", tmp_path / "home" / "probes.db"
    folder.mkdir()
    wavfile.write(folder / "a.wav", RATE, voice())
    (folder / "b.wav").write_bytes(b"text" * 30)
    names = ["a.wav", "b.wav", "missing.wav"]
    first = hear_all(names, folder, ProbeLimits(), 1, memory=memory)
    (folder / "a.wav").rename(folder / "c.wav")

    def fail(path: Path) -> Recording:
        raise AudioError(f"{path}: DECODED") from OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(probes, "decode", fail)
        assert hear_all(["c.wav", "b.wav", "missing.wav"], folder, ProbeLimits(), 1, memory=memory) == first
        # Limits are applied to stored measurements, and are not stored with them.
        short, _, _ = hear_all(["c.wav", *names[1:]], folder, ProbeLimits(max_seconds=2), 1, memory=memory)
        assert rules(short) == ["too_long"]
        patched.setattr(probes, "PROBE_VERSION", "another")
        assert hear("c.wav", folder, ProbeLimits()).fault == "DECODED"
        assert hear_all(["c.wav"], folder, ProbeLimits(), 1, memory=memory)[0].fault == "DECODED"
        # Other bytes under the same name are decoded; a failing disk is not stored.
        patched.undo()
        patched.setattr(probes, "decode", fail)
        wavfile.write(folder / "c.wav", RATE, voice(1.5))
        assert hear_all(["c.wav"], folder, ProbeLimits(), 1, memory=memory)[0].fault == "DECODED"
    (again,) = hear_all(["c.wav"], folder, ProbeLimits(), 1, memory=memory)
    assert rules(again) == []
    assert again.probe is not None
    assert again.probe.seconds == pytest.approx(1.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_many_are_measured_in_order_with_progress_to_the_end(tmp_path: Path, workers: int) -> None:
    names = [f"{number}.wav" for number in range(30)]
    for number, name in enumerate(names):
        if number != 7:
            wavfile.write(tmp_path / name, RATE, tone(1 + number / 100))
    progress: list[tuple[int, int]] = []
    memory = tmp_path / "probes.db"
    found = hear_all(names, tmp_path, ProbeLimits(), workers, lambda done, all_: progress.append((done, all_)), memory)
    assert progress == [(done, 30) for done in range(1, 31)]
    assert [number for number, one in enumerate(found) if one.fault] == [7]
    assert [one.probe.seconds if one.probe else None for one in found] == [
        None if number == 7 else pytest.approx(1 + number / 100, abs=1e-4) for number in range(30)
    ]
    with ProbeMemory(memory, probes.PROBE_VERSION, reads_only=True) as known:
        assert [number for number, one in enumerate(found) if not known.get(f"{one.sha256}.wav")] == [7]
