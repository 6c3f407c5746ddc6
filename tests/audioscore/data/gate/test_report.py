import base64
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioscore.data.audio import Recording, decode, encode
from audioscore.data.clips import Clip
from audioscore.data.gate.expectations import ExpectationResult
from audioscore.data.gate.rejections import Rejection
from audioscore.data.gate.report import EXCERPT_SECONDS, MAX_LISTED, MAX_PLAYERS, loudest, player, render_validation
from audioscore.data.gate.validation import ValidationResult

EVIL = "<script>alert('唱')</script>"


def expectation(meaning: str, *, success: bool = True, severity: str = "error", rows: int = 0) -> ExpectationResult:
    return {
        "expectation": "expect_x", "column": "score", "meaning": meaning, "success": success, "severity": severity,
        "observed": None if rows else 3, "unexpected_count": rows, "examples": [f"row 1 ({EVIL}): 104"] if rows else [],
    }  # fmt: skip


def rejection(row: int) -> Rejection:
    return {"audio_file": EVIL, "row": row, "reason": f"no such file {EVIL}", "severity": "error"}


def result(**changes: Any) -> ValidationResult:
    names = ["ktv" if n % 2 else "acapella" for n in range(20)]
    clips = [
        Clip(f"{n}.m4a", 60.0 + n, f"s{n // 2}", source=name, seconds=60.0 + n, level_db=-20.0 - n)
        for n, name in enumerate(names)
    ]
    good = ValidationResult("labels.csv", 20, clips, [], [expectation("m")], [])
    return replace(good, **changes)


def lead(page: str) -> tuple[bool, list[int]]:
    """Whether the verdict of the page is good, and its figures."""
    found = re.search(r'<p class="lead (good|bad)">(.*?)</p>', page)
    assert found is not None
    return found[1] == "good", [int(figure) for figure in re.findall(r"\d+", found[2])]


def test_a_valid_folder_has_a_good_verdict_and_its_totals(tmp_path: Path) -> None:
    page = render_validation(result(), tmp_path)
    assert lead(page) == (True, [20, 20, 0])
    assert page.index('class="lead') < page.index("<h2")
    assert "10 singers" in page
    assert page.count("<svg") == 3
    for cells in (["acapella", "10", "11.5 min", "60 to 78"], ["ktv", "10", "11.7 min", "61 to 79"], ["20"]):
        assert all(f">{cell}</td>" in page for cell in cells)
    assert re.search(r"\b3 clips\b.*\b2 groups\b", page) is None
    ordered = render_validation(result(ordered=[[Clip("a"), Clip("b")], [Clip("c")]]), tmp_path)
    assert re.search(r"\b3 clips\b.*\b2 groups\b", ordered)


def test_charts_need_measured_clips(tmp_path: Path) -> None:
    unmeasured = [replace(clip, seconds=None, level_db=None) for clip in result().accepted]
    assert render_validation(result(accepted=unmeasured), tmp_path).count("<svg") == 1
    equal = result(accepted=[Clip("a.m4a", 70.0, seconds=3.0, level_db=-20.0)] * 3)
    assert render_validation(equal, tmp_path).count("<svg") == 3
    empty = render_validation(ValidationResult("labels.csv", 0, [], [], [], ["empty"]), tmp_path)
    assert empty.count("<svg") == 0
    assert lead(empty) == (False, [1, 0, 0, 0])


def test_a_failed_gate_lists_its_reasons_first(tmp_path: Path) -> None:
    page = render_validation(result(reasons=[f"too few {EVIL}"]), tmp_path)
    assert lead(page) == (False, [1, 20, 20, 0])
    assert page.index("too few &lt;script&gt;") < page.index(">ktv</td>")


def test_everything_from_the_table_is_escaped(tmp_path: Path) -> None:
    unusual = result(
        table=f"{EVIL}.csv",
        accepted=[Clip("a.m4a", 70.0, source=EVIL, seconds=3.0, level_db=-20.0), Clip("b.m4a", 70.0, source="$x$ $")],
        rejected=[rejection(3)],
        expectations=[
            expectation(EVIL, success=False, rows=2),
            expectation("usual", success=False, severity="warning", rows=1),
        ],
    )
    page = render_validation(unusual, tmp_path / "<b>")
    assert "<script" not in page
    assert "<b>" not in page
    assert re.search(r"\b2 clips\b.*singers", page)
    assert lead(page) == (True, [2, 20, 1])
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part[: part.index("</svg>")] + "</svg>")
    assert "$x$ $" in page


def test_each_expectation_has_a_verdict(tmp_path: Path) -> None:
    failed = [expectation("m", success=False, rows=rows) for rows in (0, 2)]
    lines = [expectation("m"), *failed, expectation("m", success=False, severity="warning", rows=2)]
    pages = [render_validation(result(accepted=[], expectations=[line]), tmp_path) for line in lines]
    verdicts = [re.findall(r"<td>m</td><td>(.*?)</td>", page) for page in pages]
    assert verdicts == [["met"], ["not met"], ["rows rejected"], ["warning"]]


def test_a_long_list_is_cut_with_the_number_of_remaining_rows(tmp_path: Path) -> None:
    many = result(accepted=[], rejected=[rejection(row) for row in range(1, MAX_LISTED + 8)])
    page = render_validation(many, tmp_path)
    assert page.count("no such file") == MAX_LISTED
    assert re.search(r"\b7 more\b", page)


def warning(name: str, reason: str = "DC offset.") -> Rejection:
    return {"audio_file": name, "row": 1, "reason": reason, "severity": "warning"}


def record(folder: Path, name: str, seconds: float = 1.0) -> str:
    wave = 0.1 * np.random.default_rng(len(name)).standard_normal(round(seconds * 8_000))
    encode(wave.astype(np.float32), 8_000, folder / name, codec="pcm_s16le")
    return name


def test_warned_clips_and_near_duplicates_are_listed(tmp_path: Path) -> None:
    pairs = [("0.m4a", "1.m4a"), ("o.m4a", EVIL)]
    page = render_validation(result(warned=[warning("3.m4a", f"no voice {EVIL}")], near_duplicates=pairs), tmp_path)
    assert lead(page) == (True, [20, 20, 0])
    assert "no voice &lt;script" in page
    assert "<td>0.m4a</td><td>60</td><td>1.m4a</td><td>61</td>" in page
    assert "<td>o.m4a</td><td>-</td>" in page
    assert "<script" not in page


def test_players_are_sorted_worst_first_and_only_for_decodable_recordings(tmp_path: Path) -> None:
    for name in ("bad.wav", "copy.wav", "odd.wav"):
        record(tmp_path, name, seconds=11.0)
    (tmp_path / "text.wav").write_text("no audio at all" * 99)
    rejected: list[Rejection] = [
        {"audio_file": "copy.wav", "row": 1, "reason": "duplicate.", "severity": "warning"},
        {"audio_file": "text.wav", "row": 2, "reason": "cannot be decoded.", "severity": "error"},
        {"audio_file": "", "row": 3, "reason": "no file name", "severity": "error"},
        {"audio_file": "bad.wav", "row": 4, "reason": f"clipped. {EVIL}", "severity": "error"},
    ]
    found = result(rejected=rejected, warned=[warning("odd.wav"), warning("odd.wav", "no voice.")])
    page = render_validation(found, tmp_path)
    assert re.findall(r"<figure><code>(.*?)</code>", page) == ["bad.wav", "copy.wav", "odd.wav"]
    assert "used: DC offset. no voice." in page
    assert "<script" not in page
    assert page.count('preload="none"') == 3
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    coded = re.findall(r'src="data:audio/mp4;base64,([^"]+)"', page)
    excerpt = decode(base64.b64decode(coded[0], validate=True))
    assert excerpt.seconds == pytest.approx(8.0, abs=0.1)
    assert page == render_validation(found, tmp_path)
    names = [record(tmp_path, f"{'x' * number}.wav", seconds=9.0) for number in range(1, MAX_PLAYERS + 4)]
    page = render_validation(result(warned=[warning(name) for name in names]), tmp_path)
    assert page.count("<audio") == MAX_PLAYERS
    assert len(page) < 1_000_000


@pytest.mark.parametrize("rate", [5_000, 8_000, 44_100, 96_000])
def test_a_player_contains_the_loudest_part_at_every_rate(tmp_path: Path, rate: int) -> None:
    time = np.arange(12 * rate) / rate
    wave = np.where(time > 4, 0.5, 0.01) * np.sin(2 * np.pi * 300 * time)
    encode(wave.astype(np.float32), rate, tmp_path / "a.wav", codec="pcm_s16le")
    html = player(tmp_path, "a.wav", 'clip "a"')
    assert html is not None
    assert 'aria-label="clip &quot;a&quot;"' in html
    excerpt = decode(base64.b64decode(html.split("base64,")[1].split('"')[0]))
    assert excerpt.seconds == pytest.approx(EXCERPT_SECONDS, abs=0.1)
    assert np.sqrt(np.mean(np.square(excerpt.wave))) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_an_undecodable_recording_has_no_player(tmp_path: Path) -> None:
    (tmp_path / "text.m4a").write_text("no audio")
    for name in ("text.m4a", "gone.m4a", "../out.m4a", "https://host.test/a.m4a", ""):
        assert player(tmp_path, name, name) is None


def test_a_short_recording_is_its_own_excerpt() -> None:
    short = Recording(np.ones(10, dtype=np.float32), 10)
    assert loudest(short) is short
