import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audioscore.data.audio import decode
from audioscore.errors import AudioError, ModelError
from audioscore.scoring import stream
from audioscore.scoring.input import DecodedClip, Take
from audioscore.scoring.results import ClipScore, ScoredClip
from audioscore.scoring.scorer import Scorer
from audioscore.scoring.stream import score_stream


@pytest.fixture(scope="module")
def alone(scorer: Scorer, recordings: list[Path]) -> list[ScoredClip]:
    return [scorer.score(path) for path in recordings]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.integers(-1, 3), max_size=9),
    kinds=st.lists(st.sampled_from(["path", "bytes", "samples", "take", "fetched"]), min_size=9, max_size=9),
    batch_seconds=st.sampled_from([1.0, 4.0, 240.0])
)  # fmt: skip
def test_batch_mates_do_not_change_a_score(
    scorer: Scorer, recordings: list[Path], alone: Any, places: list[int], kinds: list[str], batch_seconds: float
) -> None:
    def source(place: int, kind: str) -> Any:
        if place < 0:
            return b"not audio"
        path = recordings[place]
        decoded = decode(path)
        return {
            "path": path, "bytes": path.read_bytes(), "samples": (decoded.wave, decoded.rate),
            "take": Take("mine", str(path)), "fetched": Take("mine", path.read_bytes),
        }[kind]  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BATCH_SECONDS", batch_seconds)
        rows = list(scorer.score_many(source(place, kind) for place, kind in zip(places, kinds, strict=False)))
    assert len(rows) == len(places)
    for number, (row, place, kind) in enumerate(zip(rows, places, kinds, strict=False)):
        if place < 0:
            assert row.file == f"recording {number + 1}"
            assert row.error
            assert row.score is row.interval is row.raw is row.seconds is None
            continue
        expected = alone[place]
        assert (row.error, row.raw) == (None, pytest.approx(expected.raw, abs=1e-5))
        assert row.score == pytest.approx(expected.score, abs=1e-4)
        assert (row.interval, row.seconds) == (pytest.approx(expected.interval, abs=1e-4), expected.seconds)
        name = {"path": str(recordings[place]), "take": "mine", "fetched": "mine"}
        assert row.file == name.get(kind, f"recording {number + 1}")


def clip(take: Take) -> DecodedClip:
    return DecodedClip(take.file, 100.0, None, None)


def scores(clips: Sequence[DecodedClip]) -> list[ScoredClip | ModelError]:
    assert sum(one.seconds for one in clips) <= stream.BATCH_SECONDS
    return [ScoredClip(1.0, (0.0, 2.0), 0.0, one.seconds) for one in clips]


def test_decoding_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "AHEAD_SECONDS", 250.0)
    monkeypatch.setattr(stream, "cores", lambda: 1)
    read = 0

    def sources() -> Iterator[Take]:
        nonlocal read
        for number in range(500):
            read += 1
            yield Take(str(number), b"")

    rows = score_stream(clip, scores, sources())
    for number in range(100):
        assert next(rows).file == str(number)
        assert read <= number + stream.AHEAD_CLIPS + 3
    rows.close()
    assert read < 200


def test_a_model_error_is_its_row_and_others_are_raised() -> None:
    def some(clips: Sequence[DecodedClip]) -> list[ScoredClip | ModelError]:
        return [ModelError("no number") if one.file == "b" else ScoredClip(1, (0, 2), 0, 1) for one in clips]

    rows = list(score_stream(clip, some, [Take(name, b"") for name in "abc"]))
    assert ([row.error for row in rows], rows[1]) == ([None, "no number", None], ClipScore("b", error="no number"))

    def broken(take: Take) -> DecodedClip:
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
    def refused(take: Take) -> DecodedClip:
        raise AudioError(f"{take.file}: silent.")

    assert list(score_stream(refused, scores, ["a.wav"])) == [ClipScore("a.wav", error="a.wav: silent.")]


def test_a_missing_file_is_its_row() -> None:
    def gone(take: Take) -> DecodedClip:
        raise FileNotFoundError(2, "gone", take.file)

    (row,) = score_stream(gone, scores, ["a.wav"])
    assert row.error.startswith("a.wav: gone")
