import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audioscore.data.acoustics import FLOOR_DB
from audioscore.data.audio import Recording, Wave
from audioscore.data.audio_checks import (
    RULES,
    AudioLimits,
    AudioMeasurements,
    findings,
    measure_recording,
    rejection_reason,
    scoring_notes,
)

RATE = 24_000


def tone(seconds: float = 2.0, amplitude: float = 0.5) -> Wave:
    return (amplitude * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def silence(seconds: float) -> Wave:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def measure(wave: Wave, rate: int = RATE) -> AudioMeasurements:
    return measure_recording(Recording(wave, rate))


def refused(wave: Wave) -> tuple[str, str] | None:
    """The rule and the reason of the first error; `rejection_reason` returns the same reason."""
    found = [(one.rule, one.reason) for one in findings(measure(wave)) if RULES[one.rule] == "error"]
    assert rejection_reason(measure(wave)) == (found[0][1] if found else None)
    return found[0] if found else None


def test_a_sine_and_an_offset_match_their_closed_form() -> None:
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
def test_silence_share_is_a_share_of_time_below_the_loud_frames(gain_db: float) -> None:
    for share in (0.1, 0.5, 0.9):
        wave = np.concatenate([tone(10 * (1 - share)), silence(10 * share)])
        assert measure(wave).silence_share == pytest.approx(share, abs=0.005)
    hiss = np.random.default_rng(0).normal(0, 10 ** (-62 / 20), RATE * 2)
    wave = np.concatenate([tone(2), hiss]) * 10 ** (gain_db / 20)
    assert measure(wave.astype(np.float32)).silence_share == pytest.approx(0.5, abs=0.01)
    click = tone(10, amplitude=0.004)
    click[RATE] = 1.0
    assert measure(click).silence_share < 0.05


def test_clipped_samples_count_only_in_runs() -> None:
    wave = silence(1)
    wave[100:110] = 1.0
    wave[200:205] = -1.0
    wave[300:302] = 1.0  # too short a run
    wave[400:404] = [1, -1, 1, -1]  # four runs of one
    assert measure(wave).clipping_share == pytest.approx(15 / RATE)


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
def test_unusable_recordings_have_a_rejection_reason_with_figures(wave: Wave, rule: str, figures: list[str]) -> None:
    found = refused(wave)
    assert found is not None
    assert found[0] == rule
    assert [figure for figure in figures if figure not in found[1]] == []


def test_limits_are_inclusive_and_configurable() -> None:
    assert refused(tone(1.0)) is None
    measured = measure(tone(3.0))
    assert findings(measured, AudioLimits(min_seconds=3.5, max_seconds=9))[0].rule == "too_short"
    long = findings(measured, AudioLimits(max_seconds=2))[0]
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
def test_shares_are_between_0_and_1_and_independent_of_polarity(samples: int, scale: float, seed: int) -> None:
    wave = (scale * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)
    one, turned = measure(wave), measure(-wave)
    assert 0 <= one.silence_share <= 1
    assert 0 <= one.clipping_share <= 1
    assert one.level_db >= FLOOR_DB
    assert (one.peak, one.clipping_share) == (turned.peak, turned.clipping_share)
    assert one.level_db == pytest.approx(turned.level_db)


def test_every_broken_rule_is_a_finding_with_figures() -> None:
    hiss = np.random.default_rng(0).normal(0, 0.3, 8_000 // 2)
    measured = measure((np.clip(hiss, -0.9, 0.9) + 0.1).astype(np.float32), 8_000)
    found = {one.rule: one.reason for one in findings(measured, AudioLimits(max_clipping_share=-1, max_seconds=0.4))}
    assert list(found) == ["too_short", "too_long", "clipped", "dc_offset", "no_voice"]
    assert "0.50 s" in found["too_short"]
    assert f"{measured.dc_offset:+.3f}" in found["dc_offset"]
    assert "0.02" in found["dc_offset"]
    assert "0%" in found["no_voice"]
    assert set(found) <= set(RULES)


def voice(rate: int, seconds: float = 4.0, pauses: bool = True) -> Wave:
    """Harmonics up to 0.49 of the rate with vibrato, every second of which ends with a pause, and weak breath noise."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (200 * time + 0.5 * np.sin(2 * np.pi * 5.5 * time))
    tones = sum(np.sin(k * phase) / k for k in range(1, int(0.485 * rate / 200)))
    breath = np.random.default_rng(1).normal(0, 3e-4, len(time))
    return np.asarray(0.1 * tones * (np.where(time % 1 < 0.9, 1, 1e-3) if pauses else 1) + breath, dtype=np.float32)


def narrow(measured: AudioMeasurements, limits: AudioLimits | None = None) -> list[str]:
    reason = next((one.reason for one in findings(measured, limits) if one.rule == "narrow_band"), "")
    return re.findall(r"\d+ Hz", reason)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_a_full_band_is_not_narrow_whatever_the_rate_but_is_noted_below_7_khz(rate: int) -> None:
    measured = measure(voice(rate), rate)
    assert narrow(measured) == []
    notes = scoring_notes(measured)
    assert [re.findall(r"\d+ Hz", note)[1:] for note in notes] == ([[f"{rate} Hz", "7000 Hz"]] if rate < 14_000 else [])
    assert narrow(measured, AudioLimits(min_bandwidth_hz=30_000)) == []


@pytest.mark.parametrize(("source", "rate"), [(8_000, 16_000), (8_000, 48_000), (16_000, 24_000), (16_000, 44_100)])
def test_an_upsampled_recording_is_narrow_and_noted(source: int, rate: int) -> None:
    measured = measure(Recording(voice(source), source).at(rate), rate)
    expected = f"{min(8_100, 0.45 * rate):.0f} Hz"
    assert narrow(measured)[1:] == [f"{rate} Hz", expected]
    assert [expected in note for note in scoring_notes(measured)] == [True]


@pytest.mark.parametrize(("seconds", "noted"), [(1.0, []), (2.0, []), (4.0, ["50%", "40%"]), (13.0, ["76%", "40%"])])
@pytest.mark.parametrize("front", [False, True])
def test_much_silence_is_noted(seconds: float, noted: list[str], front: bool) -> None:
    parts = [voice(RATE, pauses=False), silence(seconds)]
    notes = scoring_notes(measure(np.concatenate(parts[::-1] if front else parts)))
    assert re.findall(r"\d+%", " ".join(notes)) == noted


@pytest.mark.parametrize("pauses", [False, True])
def test_noise_is_noted_with_its_ratio(pauses: bool) -> None:
    sung = voice(RATE, pauses=pauses)
    assert scoring_notes(measure(sung)) == ()
    hiss = np.random.default_rng(2).standard_normal(len(sung)) * sung.std()
    for snr in (20, 15, 8, 6):
        notes = scoring_notes(measure((sung + hiss * 10 ** (-snr / 20)).astype(np.float32)))
        assert len(notes) == (snr < 10)
        for note in notes:
            found, limit = map(int, re.findall(r"(\d+) dB", note))
            assert (abs(found - snr) <= 2, limit) == (True, 11)


def test_notes_of_the_decoder_are_a_finding_and_notes_and_survive_json() -> None:
    recording = Recording(voice(RATE), RATE, notes=("skipped packets: 3.", "unread data: 17 bytes."))
    measured = measure_recording(recording)
    (found,) = findings(measured)
    assert (found.rule, RULES[found.rule]) == ("incomplete_audio", "warning")
    assert re.findall(r"\d+", found.reason) == ["3", "17"]
    assert scoring_notes(measured) == ("skipped packets: 3.", "unread data: 17 bytes.")
    assert AudioMeasurements(**json.loads(json.dumps(asdict(measured)))) == measured
    assert rejection_reason(measured) is None


def test_other_warnings_of_the_gate_are_notes() -> None:
    rules = [one.split(":")[0] for one in scoring_notes(measure(voice(RATE) + np.float32(0.1)))]
    assert rules == ["DC offset"]


@pytest.mark.parametrize("rate", [1_000, 8_000, 96_000, 192_000])
def test_every_rate_and_length_can_be_measured(rate: int) -> None:
    for samples in (1, 2, 7, 50, 2_000):
        found = measure(np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32), rate)
        assert 0 <= found.voiced_share <= 1
        assert 0 <= found.bandwidth_hz <= rate / 2
