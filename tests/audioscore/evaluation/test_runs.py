from collections.abc import Callable
from dataclasses import replace

import pytest

from audioscore.errors import DataError
from audioscore.evaluation.predictions import Prediction
from audioscore.evaluation.runs import align_runs

Make = Callable[..., list[Prediction]]
BOTH = {"baseline": 0, "hybrid": 1}


def test_rows_come_back_by_run_split_and_clip(make_predictions: Make) -> None:
    rows = make_predictions()
    runs = align_runs(rows, BOTH)
    assert list(runs) == [("baseline", 0), ("baseline", 1), ("hybrid", 0), ("hybrid", 1)]
    assert [len(runs["hybrid", 1][split]) for split in ("train", "val", "test")] == [24, 24, 48]
    assert runs["baseline", 0]["test"][rows[0].clip] is rows[0]


def test_what_cannot_be_compared_is_refused(make_predictions: Make) -> None:
    rows = make_predictions()
    with pytest.raises(DataError, match=r"1 evaluated clips have no score \(audio/000.m4a\)"):
        align_runs([replace(rows[0], score=None), *rows[1:]], BOTH)
    with pytest.raises(DataError, match=r"audio/000.m4a is listed twice for plan baseline, seed 0"):
        align_runs([*rows, rows[0]], BOTH)
    with pytest.raises(DataError, match=r"baseline, seed 1 and plan baseline, seed 0 differ in 1 .*\(audio/000.m4a\)"):
        align_runs([replace(rows[0], score=1.0), *rows[1:]], BOTH)
    with pytest.raises(DataError, match=r"differ in 1 test clips"):
        align_runs(rows[1:], BOTH)
    with pytest.raises(DataError, match=r"representative runs \(hybrid seed 9\)"):
        align_runs(rows, {"baseline": 0, "hybrid": 9})
    with pytest.raises(DataError, match=r"named for 1 plans \(hybrid\)"):
        align_runs(rows, {"baseline": 0})
    with pytest.raises(DataError, match="has no test clips"):
        align_runs([r for r in rows if r.split != "test"], BOTH)
    with pytest.raises(DataError, match="split is 'dev'"):
        align_runs([replace(rows[0], split="dev")], BOTH)
    with pytest.raises(DataError, match="none named"):
        align_runs([], {})
