import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audioscore.errors import DataError
from audioscore.evaluation.predictions import COLUMNS, Prediction, align_runs, read_predictions, write_predictions

ROW = Prediction("ab12", "audio/a.m4a", "test", "007", "晴天", "ktv", 71.5, "hybrid", 2, 0.1 + 0.2, 1 / 3, 60.0, 83.1)


def test_columns_are_the_contract() -> None:
    assert ",".join(COLUMNS) == ("sha256,audio_file,split,singer_id,song_id,source,score,plan,seed,raw,predicted,lo,hi")


def test_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    rows = [
        ROW, dataclasses.replace(ROW, singer_id=None, song_id=None, source=None, score=None, lo=None, hi=None),
        dataclasses.replace(ROW, audio_file='a,"b"\r\n<c>.wav', raw=5e-324, predicted=-0.0),
        dataclasses.replace(ROW, audio_file="录音\udcff.wav", seed=0)
    ]  # fmt: skip
    path = tmp_path / "out" / "predictions.csv"
    write_predictions(path, rows)
    assert read_predictions(path) == rows
    assert path.read_bytes().startswith(b"sha256,audio_file,")
    assert [entry.name for entry in path.parent.iterdir()] == ["predictions.csv"]


def test_numpy_floats_are_written_as_plain_floats(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, [dataclasses.replace(ROW, predicted=np.float64(0.1))])
    assert "np." not in path.read_text(encoding="utf-8")
    assert read_predictions(path)[0].predicted == 0.1


@pytest.mark.parametrize(("column", "cell", "message"), [
    ("predicted", "", "row 2.* predicted .*''"), ("raw", "nan", "row 2.* raw .*'nan'"),
    ("score", "high", "row 2.* score .*'high'"), ("seed", "1.5", "row 2.* seed .*'1.5'"),
    ("split", "dev", "row 2.* split .*'dev'.*train, val, test"),
])  # fmt: skip
def test_a_bad_cell_is_named(tmp_path: Path, column: str, cell: str, message: str) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, [ROW, ROW])
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = lines[2].split(",")
    cells[COLUMNS.index(column)] = cell
    path.write_text("\n".join([*lines[:2], ",".join(cells)]), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_predictions(path)


@pytest.mark.parametrize(("text", "match"), [
    (None, r"predictions\.csv: no such"), ("", "none"), ("audio_file,score\n", "audio_file, score"),
    (",".join(COLUMNS) + "\na,b\n", r"row 1\b.*\b2 cells.*\b13\b"),
])  # fmt: skip
def test_another_table_is_an_error(tmp_path: Path, text: str | None, match: str) -> None:
    path = tmp_path / "predictions.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=match):
        read_predictions(path)


def test_a_clip_without_a_score_has_no_human_score() -> None:
    assert ROW.human == 71.5
    with pytest.raises(DataError, match=r"audio/a\.m4a\b.* score"):
        _ = dataclasses.replace(ROW, score=None).human


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
        (lambda rows: [*rows, rows[0]], BOTH, r"audio/000\.m4a\b.*baseline, seed 0"),
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
