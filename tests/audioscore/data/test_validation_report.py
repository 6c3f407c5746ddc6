import base64
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audioscore.data.audio import decode, encode
from audioscore.data.clips import Clip
from audioscore.data.expectations import ExpectationResult
from audioscore.data.rejections import Rejection
from audioscore.data.validation_report import MAX_LISTED, MAX_PLAYERS, render_validation
from audioscore.data.validation_result import ValidationResult

EVIL = "<script>alert('唱')</script>"


def expectation(meaning: str, *, success: bool = True, severity: str = "error", rows: int = 0) -> ExpectationResult:
    return {
        "expectation": "expect_x",
        "column": "score",
        "meaning": meaning,
        "success": success,
        "severity": severity,
        "observed": None if rows else 3,
        "unexpected_count": rows,
        "examples": [f"row 1 ({EVIL}): 104"] if rows else [],
    }


def rejection(row: int) -> Rejection:
    return {"audio_file": EVIL, "row": row, "reason": f"no such file {EVIL}", "severity": "error"}


def result() -> ValidationResult:
    clips = [
        Clip(
            f"{n}.m4a",
            60.0 + n,
            f"s{n // 2}",
            source="ktv" if n % 2 else "acapella",
            seconds=60.0 + n,
            level_db=-20.0 - n,
        )
        for n in range(20)
    ]
    return ValidationResult("labels.csv", 20, clips, [], [expectation("scores are numbers")], [])


def test_a_clean_folder_is_said_to_be_so_first(tmp_path: Path) -> None:
    page = render_validation(result(), tmp_path)
    assert "These data can be trained on. 20 of 20 clips accepted, 0 rejected." in page
    assert page.index("can be trained on") < page.index("What was found")
    assert '<p class="lead good">' in page
    assert "<p>None.</p>" in page
    assert "10 singers." in page
    assert page.count("<svg") == 3


def test_totals_by_source(tmp_path: Path) -> None:
    page = render_validation(result(), tmp_path)
    for cells in (
        ["acapella", "10", "11.5 min", "60 to 78"],
        ["ktv", "10", "11.7 min", "61 to 79"],
        ["all accepted", "20"],
    ):
        assert all(f">{cell}</td>" in page for cell in cells)


def test_a_closed_gate_says_why_before_anything_else(tmp_path: Path) -> None:
    page = render_validation(replace(result(), reasons=[f"too few {EVIL}"]), tmp_path)
    assert "These data must not be trained on: 1 reason below." in page
    assert '<p class="lead bad">' in page
    assert page.index("Why the gate is closed") < page.index("What was found")
    assert "too few &lt;script&gt;" in page


def test_everything_from_the_table_is_escaped(tmp_path: Path) -> None:
    strange = replace(
        result(),
        table=f"{EVIL}.csv",
        accepted=[Clip("a.m4a", 70.0, source=EVIL, seconds=3.0, level_db=-20.0), Clip("b.m4a", 70.0, source="$x$ $")],
        rejected=[rejection(3)],
        expectations=[
            expectation(EVIL, success=False, rows=2),
            expectation("usual", success=False, severity="warning", rows=1),
        ],
    )
    page = render_validation(strange, tmp_path / "<b>")
    assert "<script" not in page
    assert "<b>" not in page
    assert "2 clips of unknown singers" in page
    assert "see the rejected rows and the warnings below" in page
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part[: part.index("</svg>")] + "</svg>")
    assert "$x$ $" in page


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (expectation("m"), "met"),
        (expectation("m", success=False), "not met"),
        (expectation("m", success=False, rows=2), "rows rejected"),
        (expectation("m", success=False, severity="warning", rows=2), "warning"),
    ],
)
def test_each_expectation_has_a_verdict(tmp_path: Path, line: ExpectationResult, said: str) -> None:
    assert f"<td>m</td><td>{said}</td>" in render_validation(
        replace(result(), accepted=[], expectations=[line]), tmp_path
    )


def test_a_long_list_says_how_many_more(tmp_path: Path) -> None:
    many = replace(result(), accepted=[], rejected=[rejection(row) for row in range(1, MAX_LISTED + 8)])
    page = render_validation(many, tmp_path)
    assert page.count("no such file") == MAX_LISTED
    assert "And 7 more; the JSON document lists them all." in page


def test_nothing_accepted_draws_nothing(tmp_path: Path) -> None:
    page = render_validation(ValidationResult("labels.csv", 0, [], [], [], ["empty"]), tmp_path)
    assert "<svg" not in page
    assert "0 of 0 clips accepted" in page


def test_clips_that_are_all_alike_are_drawn(tmp_path: Path) -> None:
    alike = replace(result(), accepted=[Clip("a.m4a", 70.0, seconds=3.0, level_db=-20.0)] * 3)
    page = render_validation(alike, tmp_path)
    assert page.count("<svg") == 3
    assert "(no source)" in page


def warning(name: str, reason: str = "DC offset.") -> Rejection:
    return {"audio_file": name, "row": 1, "reason": reason, "severity": "warning"}


def record(folder: Path, name: str, seconds: float = 1.0) -> str:
    rng = np.random.default_rng(len(name))
    encode(
        0.1 * rng.standard_normal(round(seconds * 8_000)).astype(np.float32), 8_000, folder / name, codec="pcm_s16le"
    )
    return name


def test_warned_clips_and_near_duplicates_are_listed(tmp_path: Path) -> None:
    found = replace(
        result(), warned=[warning("3.m4a", f"no voice {EVIL}")], near_duplicates=[("0.m4a", "1.m4a"), ("o.m4a", EVIL)]
    )
    page = render_validation(found, tmp_path)
    assert "can be trained on. 20 of 20 clips accepted, 0 rejected; see the warnings below." in page
    assert (
        page.index("Clips used in spite of a warning") < page.index("no voice &lt;script") < page.index("Expectations")
    )
    assert "<td>0.m4a</td><td>60</td><td>1.m4a</td><td>61</td>" in page
    assert "<td>o.m4a</td><td>-</td>" in page
    assert "<script" not in page


def test_players_come_worst_first_and_only_for_what_can_be_decoded(tmp_path: Path) -> None:
    for name in ("bad.wav", "copy.wav", "odd.wav"):
        record(tmp_path, name, seconds=11.0)
    (tmp_path / "text.wav").write_text("no audio at all" * 99)
    rejected: list[Rejection] = [
        {"audio_file": "copy.wav", "row": 1, "reason": "duplicate.", "severity": "warning"},
        {"audio_file": "text.wav", "row": 2, "reason": "cannot be decoded.", "severity": "error"},
        {"audio_file": "", "row": 3, "reason": "no file name", "severity": "error"},
        {"audio_file": "bad.wav", "row": 4, "reason": f"clipped. {EVIL}", "severity": "error"},
    ]
    found = replace(result(), rejected=rejected, warned=[warning("odd.wav"), warning("odd.wav", "no voice.")])
    page = render_validation(found, tmp_path)
    assert re.findall(r"<figure><code>(.*?)</code>", page) == ["bad.wav", "copy.wav", "odd.wav"]
    assert "used: DC offset. no voice." in page
    assert "<script" not in page
    assert page.count('preload="none"') == 3
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page), "nothing is loaded from elsewhere"
    coded = re.findall(r'src="data:audio/mp4;base64,([^"]+)"', page)
    heard = decode(base64.b64decode(coded[0], validate=True))
    assert heard.seconds == pytest.approx(8.0, abs=0.1)
    assert page == render_validation(found, tmp_path)


def test_there_are_at_most_a_dozen_players_and_the_page_stays_small(tmp_path: Path) -> None:
    names = [record(tmp_path, f"{'x' * number}.wav", seconds=9.0) for number in range(1, MAX_PLAYERS + 4)]
    page = render_validation(replace(result(), warned=[warning(name) for name in names]), tmp_path)
    assert page.count("<audio") == MAX_PLAYERS
    assert len(page) < 1_000_000


def test_clips_that_nobody_heard_are_drawn_as_far_as_they_are_known(tmp_path: Path) -> None:
    unheard = [replace(clip, seconds=None, level_db=None) for clip in result().accepted]
    page = render_validation(replace(result(), accepted=unheard), tmp_path)
    assert page.count("<svg") == 1


def test_clips_in_order_alone_are_counted(tmp_path: Path) -> None:
    page = render_validation(replace(result(), ordered=[[Clip("a"), Clip("b")], [Clip("c")]]), tmp_path)
    assert "Beside the table: 3 clips in 2 groups of known order and no score." in page
