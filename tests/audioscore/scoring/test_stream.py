import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audioscore.data.audio import decode
from audioscore.errors import AudioError
from audioscore.scoring import stream
from audioscore.scoring.input import DecodedClip, EncoderNeeds, InputLimits, InputRecording, prepare_recording
from audioscore.scoring.results import ClipScore
from audioscore.scoring.scorer import Scorer
from audioscore.scoring.stream import GuardedDecoder, score_stream


@pytest.fixture(scope="module")
def alone(scorer: Scorer, recordings: list[Path]) -> list[ClipScore]:
    return [scorer.score(path) for path in recordings]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    indices=st.lists(st.integers(-1, 3), max_size=9),
    kinds=st.lists(st.sampled_from(["path", "bytes", "samples", "recording", "fetched"]), min_size=9, max_size=9),
    batch_seconds=st.sampled_from([1.0, 4.0, 240.0])
)  # fmt: skip
def test_batch_mates_do_not_change_a_score(
    scorer: Scorer, recordings: list[Path], alone: Any, indices: list[int], kinds: list[str], batch_seconds: float
) -> None:
    def source(index: int, kind: str) -> Any:
        if index < 0:
            return b"not audio"
        path = recordings[index]
        decoded = decode(path)
        return {
            "path": path, "bytes": path.read_bytes(), "samples": (decoded.wave, decoded.rate),
            "recording": InputRecording("mine", str(path)), "fetched": InputRecording("mine", path.read_bytes),
        }[kind]  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BATCH_SECONDS", batch_seconds)
        rows = list(scorer.score_many(source(index, kind) for index, kind in zip(indices, kinds, strict=False)))
    assert len(rows) == len(indices)
    for number, (row, index, kind) in enumerate(zip(rows, indices, kinds, strict=False)):
        if index < 0:
            assert row.file == f"recording {number + 1}"
            assert row.error
            assert row.score is row.interval is row.raw is row.seconds is None
            continue
        expected = alone[index]
        assert (row.error, row.raw) == (None, pytest.approx(expected.raw, abs=1e-5))
        assert row.score == pytest.approx(expected.score, abs=1e-4)
        assert (row.interval, row.seconds) == (pytest.approx(expected.interval, abs=1e-4), expected.seconds)
        name = {"path": str(recordings[index]), "recording": "mine", "fetched": "mine"}
        assert row.file == name.get(kind, f"recording {number + 1}")


def clip(recording: InputRecording) -> DecodedClip:
    return DecodedClip(recording.file, 100.0, None, None)


def scores(clips: Sequence[DecodedClip]) -> list[ClipScore]:
    assert sum(one.seconds for one in clips) <= stream.BATCH_SECONDS
    return [ClipScore(one.file, 1.0, (0.0, 2.0), 0.0, one.seconds) for one in clips]


def test_decoding_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "AHEAD_SECONDS", 250.0)
    monkeypatch.setattr(stream, "cores", lambda: 1)
    read = 0

    def sources() -> Iterator[InputRecording]:
        nonlocal read
        for number in range(500):
            read += 1
            yield InputRecording(str(number), b"")

    rows = score_stream(clip, scores, sources())
    for number in range(100):
        assert next(rows).file == str(number)
        assert read <= number + stream.AHEAD_CLIPS + 3
    rows.close()
    assert read < 200


def test_an_error_of_one_clip_is_its_row_and_exceptions_are_raised() -> None:
    def some(clips: Sequence[DecodedClip]) -> list[ClipScore]:
        return [ClipScore("b", error="nan") if one.file == "b" else ClipScore(one.file, 1.0) for one in clips]

    rows = list(score_stream(clip, some, [InputRecording(name, b"") for name in "abc"]))
    assert ([row.error for row in rows], rows[1]) == ([None, "nan", None], ClipScore("b", error="nan"))

    def broken(recording: InputRecording) -> DecodedClip:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(score_stream(broken, some, [b""]))


def test_threads_may_share_a_scorer(scorer: Scorer, recordings: list[Path]) -> None:
    expected = [scorer.score(path).raw for path in recordings]
    found: dict[int, list[float | None]] = {}

    def run(number: int) -> None:
        found[number] = [row.raw for row in scorer.score_many(recordings)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for raw in found.values():
        np.testing.assert_allclose(np.array(raw, float), expected, rtol=0, atol=1e-5)
    assert len(found) == 3


def test_a_decoding_error_is_its_row() -> None:
    def refused(recording: InputRecording) -> DecodedClip:
        raise AudioError(f"{recording.file}: silent.")

    assert list(score_stream(refused, scores, ["a.wav"])) == [ClipScore("a.wav", error="a.wav: silent.")]


def test_a_missing_file_is_its_row() -> None:
    def gone(recording: InputRecording) -> DecodedClip:
        raise FileNotFoundError(2, "gone", recording.file)

    (row,) = score_stream(gone, scores, ["a.wav"])
    assert row.error.startswith("a.wav: gone")


NEEDS = EncoderNeeds(muq=True, voice=True, whole=False)


@dataclass(frozen=True)
class BadSource:
    """A source that ends the decoding process, or takes longer than allowed."""

    kills: bool

    def __call__(self) -> bytes:
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
        return b""


@pytest.mark.services
def test_a_decoder_survives_a_crash_and_a_timeout(recordings: list[Path]) -> None:
    with GuardedDecoder(NEEDS, InputLimits(), seconds=20.0) as decode:
        clip, expected = (
            decode(InputRecording("a", recordings[0])),
            prepare_recording(InputRecording("a", recordings[0]), NEEDS, InputLimits()),
        )
        np.testing.assert_array_equal(clip.muq, expected.muq)
        with pytest.raises(AudioError, match=r"^b: "):
            decode(InputRecording("b", BadSource(kills=True)))
        with pytest.raises(AudioError, match=r"^c: "):
            decode(InputRecording("c", b"not audio"))
        decode._seconds = 1.0
        with pytest.raises(AudioError, match=r"^d: .*\b1 s\b"):
            decode(InputRecording("d", BadSource(kills=False)))
        decode._seconds = 20.0
        assert decode(InputRecording("a", recordings[0])).seconds == clip.seconds


@dataclass(frozen=True)
class Interrupted:
    """A source during which Ctrl-C is pressed."""

    path: Path

    def __call__(self) -> bytes:
        os.kill(os.getpid(), signal.SIGINT)
        return self.path.read_bytes()


@pytest.mark.services
def test_decoding_processes_ignore_ctrl_c(recordings: list[Path]) -> None:
    with GuardedDecoder(NEEDS, InputLimits(), seconds=20.0) as decode:
        assert decode(InputRecording("a", Interrupted(recordings[0]))).muq is not None
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
