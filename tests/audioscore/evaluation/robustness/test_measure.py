import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from audioscore.config import EvaluationSection, Plan
from audioscore.data.audio import encode
from audioscore.data.clips import Clip
from audioscore.encoders.features import EncoderReference
from audioscore.errors import DataError
from audioscore.evaluation.robustness import measure as measure
from audioscore.evaluation.robustness.degradations import DEGRADATIONS, degrade
from audioscore.evaluation.robustness.measure import (
    CLEAN,
    DegradedScores,
    ScorerUnderTest,
    robustness_metrics,
    score_degraded,
    select_clips,
)
from audioscore.files import sha256_of
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.scorer import Description

EncodeWave = Callable[[Tensor], float]
RATE, SINGERS = 24_000, [f"s{number // 2}" for number in range(24)]
SETTINGS = EvaluationSection(resamples=200)
SLIGHT = DEGRADATIONS["reencoding"].expected
remembered = cache(lambda name, seed, rate, wave: degrade(np.frombuffer(wave, np.float32), rate, name, seed))
REFERENCE = EncoderReference("campplus", "team/encoder", "v1", "b" * 64)


class FakeEncoder:
    """An encoder that returns one value for a wave [T] at 16 kHz."""

    reference = REFERENCE

    def __init__(self, encode_: EncodeWave) -> None:
        self.encode_, self.calls = encode_, 0

    def embedding(self, wave: Tensor) -> Tensor:
        self.calls += 1
        return torch.tensor([self.encode_(wave)])


class Head(nn.Module):
    """Return the value of the encoder."""

    def represent(self, batch: Any) -> Tensor:
        found: Tensor = batch.embedding
        return found

    def predict(self, representation: Tensor) -> Tensor:
        return representation[:, 0]


def scorer(plan: Plan) -> ScorerUnderTest:
    """A scorer that maps raw outputs of 0 to 1 to 50 to 90 points."""
    description = Description(
        plan, 1, {"campplus": REFERENCE}, {}, Calibration((0.0, 1.0), (50.0, 90.0), 1.0), (), "0.dir", "unknown"
    )
    return ScorerUnderTest(plan, Path(), description, ScoreNetwork(Head()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Clip]]:
    """Five clips of a vowel with a little breath, five singers."""
    folder, clips = tmp_path_factory.mktemp("data"), []
    rng = np.random.default_rng(0)
    for number in range(5):
        time = np.arange(2 * RATE) / RATE
        voice = sum(np.sin(2 * np.pi * (180 + 30 * number) * k * time) / k for k in range(1, 15))
        wave = np.asarray(0.1 * (voice + 0.01 * rng.standard_normal(len(time))), dtype=np.float32)
        name = f"c{number}.wav"
        encode(wave, RATE, folder / name, codec="pcm_s16le")
        sha256 = sha256_of(folder / name)
        clips.append(Clip(name, 60.0 + number, f"s{number}", source="ktv", sha256=sha256))
    return folder, clips


def found(
    encode_: EncodeWave, data: tuple[Path, list[Clip]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    """Compute the robustness metrics of a model whose raw output is `encode_`."""
    monkeypatch.setattr(measure, "load_reference", lambda *_: FakeEncoder(encode_))
    monkeypatch.setattr(  # several models score the same versions, which are computed once
        measure, "degrade", lambda wave, rate, name, seed: remembered(name, seed, rate, wave.tobytes())
    )
    degraded = score_degraded([scorer("baseline")], data[1], data[0], "cpu")
    assert degraded.skipped == []
    scores, singers = degraded.scores["baseline"], [clip.singer_id for clip in data[1]]
    return {
        name: robustness_metrics(scores[CLEAN], scores[name], one.expected, singers, SETTINGS)
        for name, one in DEGRADATIONS.items()
    }


def flags(figures: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, one in figures.items() if one["flagged"]}


def hiss(wave: Tensor) -> float:
    """Share of the power above 6 kHz, in dB over 60."""
    power = torch.fft.rfft(wave.double()).abs() ** 2
    edge = int(len(power) * 6 / 8)
    return 1 + float(10 * torch.log10(power[edge:].sum() / power.sum() + 1e-6)) / 60


def test_a_model_that_rewards_noise_is_flagged(data: tuple[Path, list[Clip]], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = found(hiss, data, monkeypatch)
    assert {"noise_30db", "noise_20db", "noise_10db"} <= flags(figures)
    effects = [figures[f"noise_{snr}db"]["effect"]["value"] for snr in (30, 20, 10)]
    assert effects[0] < effects[1] < effects[2]
    # 10 dB more noise above 6 kHz is 10 / 60 of the scale of 40 points, apart from the original noise.
    assert effects[2] - effects[1] == pytest.approx(40 / 6, abs=1)
    every = figures["noise_10db"]["violations"]
    assert (every["value"], every["hi"]) == (1, 1)
    assert every["lo"] == pytest.approx(1 / (1 + 1.96**2 / 5), abs=1e-3)  # Wilson's, of five singers
    assert not flags(figures) & {"low_pass", "gain_up", "gain_down"}
    assert figures["low_pass"]["effect"]["value"] < -5


def test_a_model_that_penalises_noise_is_not(data: tuple[Path, list[Clip]], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = found(lambda wave: 1 - hiss(wave), data, monkeypatch)
    assert not flags(figures) & {"noise_30db", "noise_20db", "noise_10db"}
    assert "low_pass" in flags(figures)  # the low-pass removes the noise
    assert figures["noise_10db"]["violations"]["value"] == 0


FAULTS = {name for name, one in DEGRADATIONS.items() if one.expected == "lower"}


def test_a_constant_model_is_flagged_by_all_faults(data: tuple[Path, list[Clip]], monkeypatch: Any) -> None:
    figures = found(lambda wave: 0.5, data, monkeypatch)
    assert flags(figures) == FAULTS >= {"detune_25", "low_pass", "noise_10db", "clipping"}
    for one in figures.values():
        assert one["effect"] == one["wrong_way"] == {"value": 0.0, "lo": 0.0, "hi": 0.0}
        assert (one["clips"], one["in_order"]["value"], one["violations"]["value"]) == (5, 0.5, 0)
        assert one["violations"]["lo"] == pytest.approx(0, abs=1e-9)


def test_a_model_of_the_level_is_flagged_by_gain_and_silence(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 dB are 20 points: 6 dB are 12, and a second of silence after two lowers the level by 1.76 dB, 3.5 points."""
    figures = found(lambda wave: 1.5 + float(wave.square().mean().log10()) / 2, data, monkeypatch)
    assert flags(figures) - FAULTS == {"gain_up", "gain_down", "trailing_silence"}
    assert figures["gain_up"]["effect"]["value"] == pytest.approx(12, abs=0.1)
    assert figures["gain_down"]["effect"]["value"] == pytest.approx(-12, abs=0.1)
    assert figures["gain_down"]["wrong_way"]["value"] == pytest.approx(12, abs=0.1)
    assert figures["trailing_silence"]["effect"]["value"] == pytest.approx(20 * np.log10(2 / 3), abs=0.1)


def test_a_shared_encoder_runs_once(data: tuple[Path, list[Clip]], monkeypatch: pytest.MonkeyPatch) -> None:
    encoders: list[FakeEncoder] = []

    def load(*_: Any) -> FakeEncoder:
        encoders.append(FakeEncoder(lambda wave: 0.5))
        return encoders[-1]

    monkeypatch.setattr(measure, "load_reference", load)
    scorers = [scorer("campplus_only"), scorer("baseline"), scorer("hybrid")]
    degraded = score_degraded(scorers, data[1][:2], data[0], "cpu")
    assert [encoder.calls for encoder in encoders] == [2 * (1 + len(DEGRADATIONS))]
    assert set(degraded.scores) == {"campplus_only", "baseline", "hybrid"}  # the control is free here


def test_a_control_with_another_encoder_is_left_out(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "load_reference", lambda *_: FakeEncoder(lambda wave: 0.5))
    other = scorer("muq_frozen")
    other.description.encoders["campplus"] = EncoderReference("campplus", "team/other", "v1", "c" * 64)
    assert set(score_degraded([other, scorer("baseline")], data[1][:1], data[0], "cpu").scores) == {"baseline"}


def test_a_version_that_cannot_be_scored_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "load_reference", lambda *_: FakeEncoder(lambda wave: 0.5))
    noise = np.asarray(0.1 * np.random.default_rng(0).standard_normal(3 * RATE), dtype=np.float32)
    encode(noise[: RATE // 2], RATE, tmp_path / "short.wav", codec="pcm_s16le")
    encode(noise, RATE, tmp_path / "noise.wav", codec="pcm_s16le")
    clips = [Clip(name, 70.0, name, sha256=sha256_of(tmp_path / name)) for name in ("short.wav", "noise.wav")]
    degraded = score_degraded([scorer("baseline")], clips, tmp_path, "cpu")
    reasons = {(one.version, one.audio_file): one.reason for one in degraded.skipped}
    assert "0.50 s" in reasons[CLEAN, "short.wav"]
    assert "0.6 s" in reasons["detune_50", "noise.wav"]
    assert (CLEAN, "noise.wav") not in reasons
    scores = degraded.scores["baseline"]
    figures = robustness_metrics(scores[CLEAN], scores["detune_50"], "not higher", ["a", "b"], SETTINGS)
    assert (figures["clips"], figures["flagged"]) == (0, False)
    assert figures["violations"]["no_interval"]
    assert [figures["effect"][part] for part in ("value", "lo", "hi")] == [None, None, None]


def test_a_changed_recording_is_an_error(data: tuple[Path, list[Clip]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "load_reference", lambda *_: FakeEncoder(lambda wave: 0.5))
    other = Clip("c0.wav", 60.0, "s0", sha256="0" * 64)
    with pytest.raises(DataError, match=r"c0\.wav: "):
        score_degraded([scorer("baseline")], [other], data[0], "cpu")


def test_small_batches_give_the_same_scores(data: tuple[Path, list[Clip]], monkeypatch: pytest.MonkeyPatch) -> None:

    def scored(frames: int) -> DegradedScores:
        monkeypatch.setattr(measure, "load_reference", lambda *_: FakeEncoder(hiss))
        monkeypatch.setattr(measure, "MAX_FRAMES", frames)
        return score_degraded([scorer("baseline")], data[1][:2], data[0], "cpu")

    few, many = scored(1), scored(10_000)
    for version, scores in many.scores["baseline"].items():
        np.testing.assert_allclose(few.scores["baseline"][version], scores, rtol=1e-6)


def effect(values: NDArray[np.float64], expected: Any = "not higher", **settings: Any) -> dict[str, Any]:
    section = {"robustness": settings} if settings else {}
    evaluation = EvaluationSection.model_validate({"resamples": 400, **section})
    return robustness_metrics(np.full(len(values), 70.0), 70.0 + values, expected, SINGERS[: len(values)], evaluation)


def test_a_mean_is_a_mean_and_its_interval_resamples_singers() -> None:
    values = np.repeat(np.random.default_rng(0).normal(2.0, 1.0, 12), 2)  # both clips of a singer move alike
    figures = effect(values)
    spread = figures["effect"]["hi"] - figures["effect"]["lo"]
    assert figures["effect"]["value"] == pytest.approx(values.mean())
    assert spread == pytest.approx(2 * 1.96 * values.std() / np.sqrt(12), rel=0.15)
    assert figures["violations"]["value"] == (values > 1.0).mean()
    assert figures["in_order"]["value"] == (values < 0).mean()


def test_the_tolerance_and_the_interval_decide() -> None:
    values = np.random.default_rng(1).normal(2.0, 0.2, 24)
    assert effect(values)["flagged"]
    assert not effect(values, tolerance_points=3.0)["flagged"]
    assert not effect(np.random.default_rng(1).normal(1.0, 6.0, 24))["flagged"]  # not sure enough
    assert not effect(-values)["flagged"]
    assert effect(-values, "same")["flagged"]
    # A small decrease is allowed: a third of two points is within one point, a third of four points is not.
    assert not effect(-values, SLIGHT)["flagged"]
    assert effect(-2 * values, SLIGHT)["flagged"]
    assert effect(values, SLIGHT)["flagged"]


def test_what_must_not_matter_has_to_be_shown_by_the_upper_bound() -> None:
    unsure = np.random.default_rng(1).normal(0.0, 1.6, 24)
    figures = effect(unsure, "same")
    assert figures["wrong_way"]["value"] < 1.0 < figures["wrong_way"]["hi"]
    assert figures["flagged"]
    assert not effect(0.1 * unsure, "same")["flagged"]


@pytest.mark.parametrize(
    ("values", "share", "flagged"),
    [
        (np.full(24, -0.01), 1.0, False),  # the size of a fall does not matter
        (np.zeros(24), 0.5, True),
        (np.tile([-9.0, 1.0], 12), 0.5, True),  # a mean that falls, and an order that is chance
        (np.tile([-1.0, -1.0, -1.0, 1.0], 6), 0.75, False),
        (np.full(24, 1.0), 0.0, True),
    ],
)
def test_a_fault_needs_the_right_order_of_its_pairs(values: NDArray[np.float64], share: float, flagged: bool) -> None:
    figures = effect(values, "lower")
    assert (figures["in_order"]["value"], figures["flagged"]) == (share, flagged)


def test_moves_both_ways_are_no_invariance() -> None:
    values = np.tile([3.0, -3.0], 12)
    assert not effect(values)["flagged"]
    assert effect(values, "same")["wrong_way"]["value"] == 3
    assert effect(values, "same")["flagged"]
    assert effect(values, "same")["effect"]["value"] == 0


@pytest.mark.parametrize(("clips", "singers"), [(8, 4), (2, 1)])
def test_few_singers_give_no_interval_and_no_flag(clips: int, singers: int) -> None:
    few = effect(np.full(clips, 9.0))
    assert ([few["effect"][part] for part in ("value", "lo", "hi")], few["flagged"]) == ([9.0, None, None], False)
    for name in ("effect", "wrong_way"):
        assert re.search(rf"\b{singers}\b.*\b5\b", few[name]["no_interval"])


def test_clips_are_drawn_evenly_over_sources_and_scores() -> None:
    clips = [Clip(f"k{n}", 50.0 + n, source="ktv", sha256=f"{n}") for n in range(30)]
    clips += [Clip(f"a{n}", 85.0 + n, source="acapella", sha256=f"a{n}") for n in range(10)]
    drawn = select_clips(clips, 12)
    by_source = {name: sorted(float(c.score or 0) for c in drawn if c.source == name) for name in ("ktv", "acapella")}
    assert {name: len(own) for name, own in by_source.items()} == {"ktv": 6, "acapella": 6}
    assert (by_source["ktv"][0], by_source["ktv"][-1]) == (50, 79)
    assert np.ptp(np.diff(by_source["ktv"])) <= 1
    assert drawn == select_clips(clips[::-1], 12)
    assert len(select_clips(clips, 100)) == 40
    assert sum(clip.source == "acapella" for clip in select_clips(clips, 30)) == 10
    assert (select_clips(clips, 0), len({clip.audio_file for clip in select_clips(clips, 33)})) == ([], 33)
