import csv
import io

from audioscore.cli.score import csv_lines, json_row
from audioscore.scoring.results import ClipScore, Moment

GOOD = ClipScore("a, b.wav", 81.234567, (76.1, 86.400049), -0.123456789, 12.34567, None, (Moment(0, 10, 80.00004),))
BAD = ClipScore("c.wav", error='c.wav: "silent".')


def test_csv_round_trips() -> None:
    header, *rows = csv.reader(io.StringIO("\n".join(csv_lines([GOOD, BAD]))))
    assert header == ["file", "score", "lo", "hi", "raw", "seconds", "error"]
    assert rows[0] == ["a, b.wav", "81.2346", "76.1", "86.4", "-0.123456789", "12.346", ""]
    assert rows[1] == ["c.wav", "", "", "", "", "", 'c.wav: "silent".']


def test_json_keys_and_optional_timeline() -> None:
    row = json_row(GOOD, timeline=True)
    assert list(row) == ["file", "score", "interval", "raw", "seconds", "error", "timeline"]
    assert row["timeline"] == [{"start": 0, "end": 10, "score": 80.0}]
    assert "timeline" not in json_row(GOOD, timeline=False)
    assert json_row(BAD, timeline=True)["timeline"] is None
