import csv
import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import decode
from audioscore.demo import corpus
from audioscore.demo.corpus import main, render, write_corpus
from audioscore.demo.plan import SOURCES, plan_corpus
from audioscore.errors import DataError, UsageError

PLAN = [dataclasses.replace(clip, seconds=3.0 + 0.1 * number) for number, clip in enumerate(plan_corpus(4, 2, seed=3))]


def flutter(wave: np.ndarray) -> float:
    """Aperiodicity: one minus the mean normalised autocorrelation peak."""
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


def test_worse_performances_are_less_periodic() -> None:
    def mean_flutter(quality: float) -> float:
        return float(np.mean([flutter(render(dataclasses.replace(clip, q_performance=quality))) for clip in PLAN[:4]]))

    assert mean_flutter(0.0) > mean_flutter(0.5) > mean_flutter(1.0)


def test_silence_depends_on_neither_source_nor_quality() -> None:
    shares = []
    for source, quality in itertools.product(SOURCES, (0.0, 1.0)):
        wave = render(dataclasses.replace(PLAN[0], source=source, q_performance=quality)).astype(float)
        level = 10 * np.log10((wave[: len(wave) // 480 * 480].reshape(-1, 480) ** 2).mean(axis=1))
        shares.append((level < level.max() - 40).mean())
    assert max(shares) - min(shares) < 0.02
    assert shares[0] == pytest.approx((PLAN[0].lead + PLAN[0].trail) / PLAN[0].seconds, abs=0.02)


def test_a_corpus_on_disk_matches_its_plan_for_any_workers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = PLAN[:3]
    with caplog.at_level(logging.INFO, logger=corpus.__name__):
        write_corpus(tmp_path / "one", plan)
    assert [record.args for record in caplog.records] == [(3, 3)]
    write_corpus(tmp_path / "two", plan, workers=2)
    with (tmp_path / "one" / "labels.csv").open(encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["audio_file", "score", "singer_id", "song_id", "source"]
    assert [(row[0], float(row[1]), *row[2:]) for row in rows] == [
        (clip.audio_file, clip.score, clip.singer.singer_id, clip.song.song_id, clip.source) for clip in plan
    ]
    for clip in plan:
        recording = decode(tmp_path / "one" / clip.audio_file)
        assert recording.rate == 24_000
        assert recording.seconds == pytest.approx(clip.seconds, abs=0.1)
        assert (tmp_path / "one" / clip.audio_file).read_bytes() == (tmp_path / "two" / clip.audio_file).read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["one", "two"]


def test_a_killed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "encode", fail)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "corpus", PLAN[:2])
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_and_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    for out, names in (
        (tmp_path, rf"^{tmp_path}: .*\b1 items.*thesis\.doc"),
        (tmp_path / "thesis.doc", r"\.doc: "),
    ):
        with pytest.raises(DataError, match=names):
            write_corpus(out, PLAN[:1])
    assert (tmp_path / "thesis.doc").read_text() == "x"


@pytest.mark.parametrize(("count", "workers"), [(0, 1), (8, 0)])
def test_impossible_counts_are_refused(tmp_path: Path, count: int, workers: int) -> None:
    with pytest.raises(UsageError, match=rf"\b{count}\b.*\b{workers}\b"):
        write_corpus(tmp_path / "x", PLAN[:count], workers=workers)


def test_it_writes_a_corpus(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    given = ["--out", str(out), "--singers", "2", "--clips-per-singer", "1", "--seed", "1", "--workers", "1"]
    assert main(given) == 0
    assert len((out / "labels.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert len(list((out / "audio").iterdir())) == 2


def test_a_wrong_share_exits_with_2(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--out", str(tmp_path / "x"), "--timbre-share", "2"]) == 2
    assert "2.0" in caplog.text
    assert not (tmp_path / "x").exists()
