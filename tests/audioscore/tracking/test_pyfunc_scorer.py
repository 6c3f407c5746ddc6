from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pandas as pd
import pytest

from audioscore.scoring.results import ClipScore
from audioscore.tracking import pyfunc_scorer
from audioscore.tracking.pyfunc_scorer import COLUMNS, ScorerModel


class Scorer:
    """Stands in for a scorer: bytes of a length score their length."""

    def score_many(self, recordings: Sequence[bytes]) -> Iterator[ClipScore]:
        for audio in recordings:
            yield (
                ClipScore("a", 60.0 + len(audio), (55.0, 95.0), 0.5, 2.0, notes=("A.", "B.")[: len(audio) - 1])
                if audio
                else ClipScore("a", error="0 bytes")
            )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScorerModel:
    monkeypatch.setattr(pyfunc_scorer, "load_scorer", lambda folder, needs_voice: Scorer() if needs_voice else None)
    model = ScorerModel()
    model.load_context(SimpleNamespace(artifacts={"scorer": "folder"}))
    return model


def test_one_row_a_recording_in_order(model: ScorerModel) -> None:
    rows = model.predict(None, pd.DataFrame({"audio": [b"abc", b"", bytearray(b"a")]}))
    assert list(rows.columns) == COLUMNS == ["score", "lo", "hi", "raw", "seconds", "error", "notes"]
    first, empty, last = rows.to_dict("records")
    assert [first[name] for name in COLUMNS[:5]] == [63.0, 55.0, 95.0, 0.5, 2.0]
    assert last["score"] == 61.0
    assert pd.isna(first["error"])
    assert empty["error"] == "0 bytes"
    assert [row["notes"] for row in (first, empty, last)] == ["A. B.", "", ""]
    assert [empty[name] for name in COLUMNS[:5]] == [None] * 5
    rows = model.predict(None, pd.DataFrame({"audio": []}))
    assert (list(rows.columns), len(rows)) == (COLUMNS, 0)
