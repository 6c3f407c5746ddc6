"""The finished recordings and the folder they are written into."""

import csv
import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import decode
from audioscore.data.synthesis import corpus
from audioscore.data.synthesis.corpus import render, write_corpus
from audioscore.data.synthesis.plan import SOURCES, plan_corpus
from audioscore.errors import DataError, UsageError

PLAN = [dataclasses.replace(clip, seconds=3.0 + 0.1 * place) for place, clip in enumerate(plan_corpus(4, 2, seed=3))]


def flutter(wave: np.ndarray) -> float:
    """How much of the sound is not periodic: one minus the mean normalised autocorrelation peak, pitch unknown."""
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(float), 1024)[::512] * np.hanning(1024)
    loud = frames[(frames**2).sum(axis=1) > 0.2 * (frames**2).sum(axis=1).mean()]
    correlation = np.fft.irfft(np.abs(np.fft.rfft(loud, 2048, axis=1)) ** 2, axis=1)[:, :400]
    return float(1 - (correlation[:, 30:].max(axis=1) / correlation[:, 0]).mean())


@pytest.mark.parametrize("source", SOURCES)
def test_a_recording_has_its_length_level_and_peak(source: str) -> None:
    planned = next(clip for clip in PLAN if clip.source == source)
    wave = render(planned)
    assert wave.dtype == np.float32
    assert len(wave) == round(planned.seconds * 24_000)
    assert 20 * np.log10(np.sqrt(np.mean(wave**2))) == pytest.approx(planned.level_db, abs=0.05)
    assert 20 * np.log10(np.abs(wave).max()) < planned.level_db + planned.crest_db + 1.5
    assert np.abs(wave).max() < 0.99
    assert np.array_equal(wave, render(planned))


def test_worse_performances_sound_worse() -> None:
    levels = []
    for quality in (0.0, 0.5, 1.0):
        takes = [dataclasses.replace(clip, q_performance=quality) for clip in PLAN[:4]]
        levels.append(np.mean([flutter(render(take)) for take in takes]))
    assert levels[0] > levels[1] > levels[2]


def test_silence_is_the_same_whatever_the_source_and_quality() -> None:
    shares = []
    for source in SOURCES:
        for quality in (0.0, 1.0):
            wave = render(dataclasses.replace(PLAN[0], source=source, q_performance=quality)).astype(float)
            frames = wave[: len(wave) // 480 * 480].reshape(-1, 480)
            level = 10 * np.log10((frames**2).mean(axis=1))
            shares.append((level < level.max() - 40).mean())
    assert max(shares) - min(shares) < 0.02
    assert shares[0] == pytest.approx((PLAN[0].lead + PLAN[0].trail) / PLAN[0].seconds, abs=0.02)


def test_a_corpus_on_disk_matches_its_plan_whatever_the_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = PLAN[:3]
    with caplog.at_level(logging.INFO, logger=corpus.__name__):
        write_corpus(tmp_path / "one", plan)
    assert caplog.messages == ["synthesised 3 of 3 clips"]
    write_corpus(tmp_path / "two", plan, workers=2)
    with (tmp_path / "one" / "labels.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == ["audio_file", "score", "singer_id", "song_id", "source"]
    assert [row[0] for row in rows[1:]] == [clip.audio_file for clip in plan]
    assert [float(row[1]) for row in rows[1:]] == [clip.score for clip in plan]
    for clip in plan:
        recording = decode(tmp_path / "one" / clip.audio_file)
        assert recording.rate == 24_000
        assert recording.seconds == pytest.approx(clip.seconds, abs=0.1)
        assert (tmp_path / "one" / clip.audio_file).read_bytes() == (tmp_path / "two" / clip.audio_file).read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["one", "two"]


def test_a_killed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "_write_clip", fail)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "corpus", PLAN[:2])
    assert list(tmp_path.iterdir()) == []


def test_only_a_corpus_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(DataError, match=r"1 items.*thesis\.doc"):
        write_corpus(tmp_path, PLAN[:1])
    with pytest.raises(DataError, match="is a file"):
        write_corpus(tmp_path / "thesis.doc", PLAN[:1])
    assert (tmp_path / "thesis.doc").read_text() == "years of work"


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 0 and 1"):
        write_corpus(tmp_path / "x", [])
    with pytest.raises(UsageError, match="got 8 and 0"):
        write_corpus(tmp_path / "x", PLAN, workers=0)
