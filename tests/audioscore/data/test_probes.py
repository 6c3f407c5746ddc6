import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from audioscore.data import probes
from audioscore.data.audio import Recording, Wave, encode
from audioscore.data.levels import FLOOR_DB
from audioscore.data.probe_memory import ProbeMemory
from audioscore.data.probes import Heard, ProbeLimits, audio_path, findings, hear, hear_all, probe, refusal
from audioscore.data.rules import RULES
from audioscore.errors import AudioError
from audioscore.files import sha256_of

RATE = 24_000


def tone(seconds: float = 2.0, amplitude: float = 0.5) -> Wave:
    return (amplitude * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def silence(seconds: float) -> Wave:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def why(wave: Wave) -> str | None:
    return refusal(probe(Recording(wave, RATE)))


def voice(seconds: float = 3.0, rate: int = RATE, pitch: float = 220.0) -> Wave:
    """A vibrating voice with harmonics up to the top of the band, over a little breath."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (pitch * t + 0.6 * np.sin(2 * np.pi * 5.5 * t))
    tones = sum(np.sin(k * phase) / k for k in range(1, int(0.45 * rate / pitch)))
    breath = np.random.default_rng(3).normal(0, 0.02, len(t))
    return np.asarray(0.2 * tones + 0.2 * breath, dtype=np.float32)


def broken(heard: Heard) -> list[str]:
    assert heard.fault is None
    return [one.rule for one in heard.findings]


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
    assert "clipped" in broken(hear(path.name, tmp_path, ProbeLimits()))
    encode(tone(3, amplitude=0.8), RATE, path, codec=codec, bit_rate=128_000)
    assert "clipped" not in broken(hear(path.name, tmp_path, ProbeLimits()))


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
    assert missing == "no such file. Check the path."
    linked = hear("s3://bucket/a.wav", tmp_path, ProbeLimits()).fault
    assert linked is not None
    assert linked.startswith("is a link, not a file")


def test_a_sound_voice_breaks_no_rule(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, voice())
    heard = hear("a.wav", tmp_path, ProbeLimits())
    assert broken(heard) == []
    assert heard.fingerprint


def test_every_rule_that_is_broken_is_told_with_its_figures() -> None:
    hiss = np.random.default_rng(0).normal(0, 0.3, 8_000 // 2)
    measured = probe(Recording((np.clip(hiss, -0.9, 0.9) + 0.1).astype(np.float32), 8_000))
    told = {one.rule: one.reason for one in findings(measured, ProbeLimits(max_clipping_share=-1, max_seconds=0.4))}
    assert list(told) == ["too_short", "too_long", "clipped", "dc_offset", "narrow_band", "no_voice"]
    assert "too short: 0.50 s" in told["too_short"]
    assert f"its samples average {measured.dc_offset:+.3f} of full scale, beyond 0.02" in told["dc_offset"]
    assert "nothing sounds above 4000 Hz in a file of 8000 Hz, and 8100 Hz" in told["narrow_band"]
    assert "no voice: 0% of what is loud" in told["no_voice"]
    assert set(told) <= set(RULES)


def test_a_warning_is_no_refusal_and_the_first_error_is() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    assert [one.rule for one in findings(probe(Recording(noise, RATE)))] == ["no_voice"]
    assert why(noise) is None
    short = findings(probe(Recording(noise[: RATE // 2], RATE)))
    assert why(noise[: RATE // 2]) == short[0].reason


def test_inverted_channels_are_refused_and_named_before_the_silence_they_leave(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, np.stack([voice(), -voice()], axis=1))
    heard = hear("a.wav", tmp_path, ProbeLimits())
    assert broken(heard) == ["phase_cancelled", "silent", "nearly_silent"]
    assert heard.findings[0].reason.startswith("phase-cancelled: its channels averaged are -120.0 dB")
    wavfile.write(tmp_path / "b.wav", RATE, np.stack([voice(), voice(pitch=300)], axis=1))
    assert broken(hear("b.wav", tmp_path, ProbeLimits())) == []


def test_silence_says_nothing_of_band_or_voice(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, silence(2))
    heard = hear("a.wav", tmp_path, ProbeLimits())
    assert broken(heard) == ["silent", "nearly_silent"]
    assert heard.fingerprint == b""


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "below"
    (folder / "audio").mkdir(parents=True)
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    (folder / "linked.wav").symlink_to(tmp_path / "a.wav")
    (folder / "up").symlink_to(tmp_path)
    for name in ("../a.wav", "audio/../../a.wav", "../none.wav", "linked.wav", "up/a.wav", "../below-too/a.wav"):
        assert (hear(name, folder, ProbeLimits()).fault or "").startswith("leads out of the data folder.")
        with pytest.raises(AudioError, match=r"^" + name.replace(".", r"\.")):
            audio_path(folder, name)
    wavfile.write(folder / "inside.wav", RATE, tone())
    (folder / "audio" / "alias.wav").symlink_to("../inside.wav")
    (tmp_path / "data").symlink_to(folder)
    for name in ("inside.wav", "audio/../inside.wav", "audio/alias.wav", str(tmp_path / "a.wav")):
        assert hear(name, folder, ProbeLimits()).fault is None
        assert hear(name, tmp_path / "data", ProbeLimits()).fault is None


def test_what_is_no_regular_file_gets_its_own_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "a.wav").symlink_to("b.wav")
    (tmp_path / "b.wav").symlink_to("a.wav")
    said = {
        "pipe.wav": "is a named pipe, not a file. Put the recording there.",
        "/dev/zero": "is a device, not a file. Put the recording there.",
        "a.wav": "is a link that leads back to itself. Put the recording there.",
        "": "is a folder, not a recording. Name the recordings in it.",
        "x\0.wav": "no such file. Check the path.",
    }
    assert {name: hear(name, tmp_path, ProbeLimits()).fault for name in said} == said


def test_a_file_that_changes_while_it_is_read_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, tone())
    real = probes.decode

    def growing(path: Path) -> Recording:
        recording = real(path)
        path.write_bytes(path.read_bytes() + b"more")
        return recording

    monkeypatch.setattr(probes, "decode", growing)
    assert (hear("a.wav", tmp_path, ProbeLimits()).fault or "").startswith("changed while it was read")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("written")
    codecs = {".wav": "pcm_s16le", ".mp3": "libmp3lame", ".m4a": "aac", ".flac": "flac"}
    for suffix, codec in codecs.items():
        encode(voice(1.2), RATE, folder / f"a{suffix}", codec=codec)
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in codecs}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([".wav", ".mp3", ".m4a", ".flac"]),
    st.binary(min_size=1, max_size=400),
    st.booleans(),
    st.floats(0, 1),
)
def test_no_content_makes_hearing_raise(
    written: dict[str, bytes], suffix: str, junk: bytes, within: bool, place: float
) -> None:
    """Random bytes alone, and random bytes over a part of a sound file, its header included."""
    at = int(place**4 * len(written[suffix]))  # most often near the header
    content = written[suffix][:at] + junk + written[suffix][at + len(junk) :] if within else junk
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"a{suffix}").write_bytes(content)
        heard = hear(f"a{suffix}", Path(folder), ProbeLimits())
        assert (heard.fault is None) == (heard.probe is not None)
        assert folder not in (heard.fault or "")
        assert (heard.fault or "x.").endswith((".", ")"))


@pytest.mark.parametrize("rate", [1_000, 8_000, 96_000, 192_000])
@pytest.mark.parametrize("samples", [1, 2, 7, 50, 2_000])
def test_any_rate_and_any_length_is_measured(rate: int, samples: int) -> None:
    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    measured = probe(Recording(wave, rate))
    assert 0 <= measured.voiced_share <= 1
    assert 0 <= measured.bandwidth_hz <= rate / 2


def test_nothing_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, memory = tmp_path / "data", tmp_path / "home" / "probes.db"
    folder.mkdir()
    wavfile.write(folder / "a.wav", RATE, voice())
    (folder / "b.wav").write_bytes(b"text" * 30)
    names = ["a.wav", "b.wav", "missing.wav"]
    first = hear_all(names, folder, ProbeLimits(), 1, memory=memory)
    (folder / "a.wav").rename(folder / "c.wav")

    def fail(path: Path) -> Recording:
        raise AudioError(f"{path}: was decoded.")

    monkeypatch.setattr(probes, "decode", fail)
    assert hear_all(["c.wav", "b.wav", "missing.wav"], folder, ProbeLimits(), 1, memory=memory) == first
    # Limits are applied to what is remembered, and are no part of it.
    short, _, _ = hear_all(["c.wav", *names[1:]], folder, ProbeLimits(max_seconds=2), 1, memory=memory)
    assert broken(short) == ["too_long"]
    monkeypatch.setattr(probes, "PROBE_VERSION", "another")
    assert hear("c.wav", folder, ProbeLimits()).fault == "was decoded."
    again = hear_all(["c.wav"], folder, ProbeLimits(), 1, memory=memory)
    assert again[0].fault == "was decoded."


def test_other_bytes_under_the_same_name_are_heard_anew(tmp_path: Path) -> None:
    memory = tmp_path / "probes.db"
    for seconds in (1.5, 2.5):
        wavfile.write(tmp_path / "a.wav", RATE, voice(seconds))
        (heard,) = hear_all(["a.wav"], tmp_path, ProbeLimits(), 1, memory=memory)
        assert heard.probe is not None
        assert heard.probe.seconds == pytest.approx(seconds)


def test_a_failing_disk_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "probes.db"
    wavfile.write(tmp_path / "a.wav", RATE, voice())

    def fail(path: Path) -> Recording:
        raise AudioError(f"{path}: cannot be decoded (Input/output error).") from OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(probes, "decode", fail)
        (heard,) = hear_all(["a.wav"], tmp_path, ProbeLimits(), 1, memory=memory)
        assert heard.fault == "cannot be decoded (Input/output error)."
    (heard,) = hear_all(["a.wav"], tmp_path, ProbeLimits(), 1, memory=memory)
    assert broken(heard) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_many_are_heard_in_order_with_progress_to_the_end(tmp_path: Path, workers: int) -> None:
    names = [f"{number}.wav" for number in range(30)]
    for number, name in enumerate(names):
        if number != 7:
            wavfile.write(tmp_path / name, RATE, tone(1 + number / 100))
    told: list[tuple[int, int]] = []
    memory = tmp_path / "probes.db"
    heard = hear_all(names, tmp_path, ProbeLimits(), workers, lambda done, all_: told.append((done, all_)), memory)
    assert told == [(done, 30) for done in range(1, 31)]
    assert [number for number, one in enumerate(heard) if one.fault] == [7]
    assert [one.probe.seconds if one.probe else None for one in heard] == [
        None if number == 7 else pytest.approx(1 + number / 100, abs=1e-4) for number in range(30)
    ]
    with ProbeMemory(memory, probes.PROBE_VERSION, reads_only=True) as known:
        assert [number for number, one in enumerate(heard) if not known.get(f"{one.sha256}.wav")] == [7]


def test_none_to_hear_is_no_fault(tmp_path: Path) -> None:
    assert hear_all([], tmp_path, ProbeLimits(), 2) == []
