import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from audioscore.data.audio import decode, encode
from audioscore.data.clips import Clip
from audioscore.encoders.extract import extract_features
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import AudioError, UsageError
from audioscore.files import sha256_of
from audioscore.scoring.input import InputRecording
from audioscore.scoring.scorer import BRANCHES, CANDIDATES, Scorer, Tuning, plan_by_name


def test_a_path_its_bytes_and_its_samples_score_the_same(scorer: Scorer, recordings: list[Path]) -> None:
    for path in recordings:
        recording = decode(path)
        scored = scorer.score(path)
        assert (scorer.score(path), scorer.score(str(path))) == (scored, scored)
        unnamed = replace(scored, file="recording 1")
        assert scorer.score(path.read_bytes()) == scorer.score(recording.wave, recording.rate) == unnamed
        assert scored.seconds == recording.seconds
    assert not any(part.training for part in scorer.network.modules())


def stored(paths: list[Path], scorer: Scorer, store: FeatureStore) -> StoredFeatures:
    """Extract and store the features of recordings for this scorer."""
    clips = [Clip(path.name, sha256=sha256_of(path)) for path in paths]
    layer = scorer.description.prefix_layer
    extract_features(clips, paths[0].parent, scorer.encoders, store, prefix_layer=layer)
    kinds = tuple(scorer.description.encoders)
    return StoredFeatures(clips, scorer.description.encoders, kinds, store, prefix_layer=layer)


TUNINGS = [Tuning("lora", 0, 4, 6), Tuning("lora", 1, 4, 6), Tuning("full", 1), Tuning("frozen", 0, mix=True)]


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_files_score_as_stored_features(make_tuned: Any, recordings: Any, tmp_path: Path, tuning: Tuning) -> None:
    made = make_tuned(tuning, plan="hybrid", window=2.0)
    scorer = Scorer(made.network, made.description, made.encoders)
    features = stored(recordings, scorer, FeatureStore(tmp_path / "store"))
    assert [int(one["windows"]) for one in features] == [1, 1, 1, 2]
    alone = [scorer.score(path) for path in recordings]
    assert [scorer.score(path) for path in recordings] == alone
    np.testing.assert_allclose([one.raw for one in alone], scorer.raw(features), rtol=0, atol=1e-5)
    assert np.ptp([one.raw for one in alone]) > 1e-4


@pytest.mark.services
@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_long_files_score_as_their_stored_features(make_tuned: Any, tmp_path: Path, tuning: Tuning) -> None:
    made = make_tuned(tuning, plan="hybrid")
    scorer = Scorer(made.network, made.description, made.encoders)
    paths: list[Path] = []
    rng = np.random.default_rng(0)
    for seconds, rate in ((70.3, 44_100), (1.5, 24_000), (30.0, 24_000), (30.5, 16_000)):
        time = np.arange(round(seconds * rate)) / rate
        tone = 0.2 * np.sin(2 * np.pi * 220 * time + 3 * np.sin(2 * np.pi * 0.7 * time))
        paths.append(tmp_path / f"clip{len(paths)}.flac")
        sung = np.asarray(tone + 0.02 * rng.normal(size=len(time)), dtype=np.float32)
        encode(sung, rate, paths[-1], codec="flac")
    features = stored(paths, scorer, FeatureStore(tmp_path / "store"))
    assert [int(one["windows"]) for one in features] == [3, 1, 1, 2]
    alone = [scorer.score(path).raw for path in paths]
    np.testing.assert_allclose(alone, scorer.raw(features), rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone[::-1], scorer.raw(features[::-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_within_a_callers_autocast_scores_are_the_same(
    make_tuned: Callable[..., Any], recordings: list[Path], tuning: Tuning, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audioscore.muq_cpu.matmul.MIN_WIDTH", 1)  # as for layers of the published width
    made = make_tuned(tuning, plan="hybrid")
    scorer = Scorer(made.network, made.description, made.encoders, fast=fast)
    expected = [scorer.score(path).raw for path in recordings]
    with torch.autocast("cpu", torch.bfloat16):
        assert [scorer.score(path).raw for path in recordings] == expected


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_the_fast_mode_is_close_and_changes_no_weight(
    make_tuned: Callable[..., Any], recordings: list[Path], tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audioscore.muq_cpu.matmul.MIN_WIDTH", 1)  # as for layers of the published width
    monkeypatch.setattr("audioscore.encoders.inference.fast_dtype", lambda device: "int16")
    made = make_tuned(tuning, plan="hybrid")
    before = {name: weight.clone() for name, weight in made.network.state_dict().items()}
    exact, fast = (
        [row.raw for row in Scorer(made.network, made.description, made.encoders, fast=fast).score_many(recordings)]
        for fast in (False, True)
    )
    assert fast != exact
    np.testing.assert_allclose(fast, exact, rtol=0, atol=0.05)
    for faster in (False, True):
        assert Scorer(made.network, made.description, made.encoders, fast=faster).uses_fast_kernels is faster
    assert all(torch.equal(weight, before[name]) for name, weight in made.network.state_dict().items())


def test_the_score_is_the_calibrated_raw_output_with_its_interval(scorer: Scorer, recordings: list[Path]) -> None:
    scored = scorer.score(recordings[0])
    calibration = scorer.description.calibration
    assert scored.score == calibration.apply([scored.raw])[0]
    assert scored.interval == (scored.score - 4.0, min(scored.score + 4.0, 100.0))


def wave(kind: str) -> NDArray[np.float32]:
    time = np.arange(48_000) / 24_000
    tone = np.sin(2 * np.pi * 220 * time)
    waves = {
        "too short": tone[:12_000] * 0.2, "silent": tone * 1e-5,
        "nearly silent": np.where(time < 0.04, tone * 0.2, 0.0), "clipped": np.clip(tone * 20, -1, 1)
    }  # fmt: skip
    return np.asarray(waves[kind], dtype=np.float32)


@pytest.mark.parametrize("kind", ["too short", "silent", "nearly silent", "clipped"])
def test_unusable_recordings_are_named(scorer: Scorer, tmp_path: Path, kind: str) -> None:
    encode(wave(kind), 24_000, tmp_path / "clip.wav", codec="pcm_f32le")
    with pytest.raises(AudioError, match=rf"^{tmp_path / 'clip.wav'}: {kind}: .+\.$"):
        scorer.score(tmp_path / "clip.wav")
    with pytest.raises(AudioError, match=rf"^[^/]*: {kind}: "):
        scorer.score(wave(kind), 24_000)


@pytest.mark.parametrize(("samples", "rate", "match"), [
    *((np.zeros(24_000, np.float32), rate, rf"Hz.* {rate}\b")
    for rate in (None, 0, -8000)), (np.zeros((2, 24_000), np.float32), 24_000, r"\[T\].*\[2, 24000\]"),
    ((wave("silent") * 3e4).astype(np.int16), 24_000, r"\[-1, 1\].*int16"),
    (np.where(np.arange(24_000) == 5, np.nan, np.float32(0.1)), 24_000, "finite"), (b"not audio", None, "^recording 1"),
])  # fmt: skip
def test_unusable_samples_are_an_error(scorer: Scorer, samples: Any, rate: int | None, match: str) -> None:
    with pytest.raises(AudioError, match=match):
        scorer.score(samples, rate)


def test_files_that_are_not_recordings_are_named(scorer: Scorer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not audio")
    for name, match in (("notes.txt", r"notes\.txt: "), ("nowhere.wav", r"nowhere\.wav: no such file")):
        with pytest.raises(AudioError, match=match):
            scorer.score(tmp_path / name)


def test_double_precision_samples_score_the_same(scorer: Scorer, recordings: list[Path]) -> None:
    recording = decode(recordings[0])
    doubled = scorer.score(recording.wave.astype(np.float64), recording.rate)
    assert replace(doubled, file=str(recordings[0])) == scorer.score(recordings[0])


def test_an_unknown_plan_is_refused_with_the_existing_names() -> None:
    assert [plan_by_name(name) for name in BRANCHES] == ["baseline", "hybrid", "campplus_only", "muq_frozen"]
    assert CANDIDATES == ("baseline", "hybrid")
    with pytest.raises(UsageError, match=r"'best'.*baseline, hybrid, campplus_only, muq_frozen"):
        plan_by_name("best")


def test_the_licence_lists_the_licences_of_all_encoders(scorer: Scorer) -> None:
    large = EncoderReference("muq", "OpenMuQ/MuQ-large-msd-iter", None, "ab" * 32, 6)
    assert scorer.description.licence == "unknown"  # weights that are not published
    mixed = replace(scorer.description, encoders={**scorer.description.encoders, "muq": large})
    assert mixed.licence == "CC BY-NC 4.0 + unknown"


def test_nan_is_an_error_of_one_recording_only(scorer: Scorer, recordings: list[Path]) -> None:
    clips = [scorer.decode(InputRecording(path.name, path)) for path in recordings[:2]]
    expected = scorer.score_batch(clips)
    first, second = scorer.score_batch([replace(clips[0], voice=np.full_like(clips[0].voice, np.nan)), clips[1]])
    assert re.search(r"clip0\.flac: .*\bnan\b", first.error or "")
    assert (first.file, first.score) == ("clip0.flac", None)
    assert second == expected[1]


def test_no_recordings_give_no_scores(scorer: Scorer) -> None:
    assert (scorer.score_batch([]), list(scorer.score_many([]))) == ([], [])
