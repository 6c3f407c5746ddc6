from collections.abc import Callable
from dataclasses import replace

import pytest

from audioscore.errors import DataError
from audioscore.evaluation.predictions import Prediction, align_runs

Make = Callable[..., list[Prediction]]
BOTH = {"baseline": 0, "hybrid": 1}


def test_rows_come_back_by_run_split_and_clip(make_predictions: Make) -> None:
    rows = make_predictions()
    runs = align_runs(rows, BOTH)
    assert list(runs) == [("baseline", 0), ("baseline", 1), ("hybrid", 0), ("hybrid", 1)]
    assert [len(runs["hybrid", 1][split]) for split in ("train", "val", "test")] == [24, 24, 48]
    assert runs["baseline", 0]["test"][rows[0].clip] is rows[0]


@pytest.mark.parametrize(
    ("change", "chosen", "match"),
    [
        (lambda rows: [replace(rows[0], score=None), *rows[1:]], BOTH, r"\b1 .*score .*audio/000\.m4a"),
        (lambda rows: [*rows, rows[0]], BOTH, r"audio/000\.m4a .*baseline, seed 0"),
        (lambda rows: [replace(rows[0], score=1.0), *rows[1:]], BOTH, r"seed 1 .*seed 0 .*\b1 .*audio/000\.m4a"),
        (lambda rows: rows[1:], BOTH, r"\b1 test clips"),
        (lambda rows: rows, {"baseline": 0, "hybrid": 9}, "hybrid seed 9"),
        (lambda rows: rows, {"baseline": 0}, r"\b1 plans \(hybrid\)"),
        (lambda rows: [r for r in rows if r.split != "test"], BOTH, "no test clips"),
        (lambda rows: [replace(rows[0], split="dev")], BOTH, "'dev'"),
        (lambda rows: [], {}, "none"),
    ],
)
def test_rows_that_cannot_be_compared_are_an_error(
    make_predictions: Make, change: Callable[..., list[Prediction]], chosen: dict[str, int], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        align_runs(change(make_predictions()), chosen)
