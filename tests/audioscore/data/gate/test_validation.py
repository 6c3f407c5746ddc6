import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile

from audioscore.data.audio import encode
from audioscore.data.audio_checks import AudioLimits
from audioscore.data.clips import Clip
from audioscore.data.gate import validation
from audioscore.data.gate.expectations import TableCheck
from audioscore.data.gate.rejections import ValidationSettings, without_copies
from audioscore.data.gate.validation import validate_folder
from audioscore.data.index import write_index
from audioscore.errors import DataError
from audioscore.files import sha256_of

RATE = 8_000
LOOSE = ValidationSettings(min_clips=1, max_rejected_share=1.0)
HEADER = "audio_file,score,singer_id,song_id,source"


def record(path: Path, seed: int = 0, seconds: float = 1.2, level: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    wavfile.write(path, RATE, noise.astype(np.float32))


def corpus(folder: Path, clips: int = 12, extra: Sequence[str] = (), header: str = HEADER) -> Path:
    """`clips` valid clips, half of each source, and additional rows."""
    rows = [header]
    for number in range(clips):
        record(folder / "audio" / f"c{number:02d}.wav", seed=number)
        source, score = ("ktv", 60 + number) if number % 2 else ("acapella", 86 + number % 13)
        rows.append(f"audio/c{number:02d}.wav,{score},s{number // 2},song{number % 3},{source}")
    (folder / "labels.csv").write_text("\n".join([*rows, *extra]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def without_expectations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the expectations: they are slow, and other modules test them."""
    monkeypatch.setattr(validation, "check_table", lambda *_, **__: TableCheck([], {}))


def rejections(folder: Path, settings: ValidationSettings = LOOSE) -> dict[int | None, tuple[str, str]]:
    return {one["row"]: (one["reason"], one["severity"]) for one in validate_folder(folder, settings=settings).rejected}


def test_a_valid_folder_passes_and_its_clips_are_measured(tmp_path: Path) -> None:
    result = validate_folder(corpus(tmp_path))
    assert (result.valid, result.reasons, result.rejected, result.warnings) == (True, [], [], [])
    assert (result.clips, len(result.accepted)) == (12, 12)
    assert [clip.row for clip in result.accepted] == list(range(1, 13))
    first = result.accepted[0]
    path = tmp_path / first.audio_file
    labels = Clip("audio/c00.wav", 86, "s0", "song0", "acapella", row=1)
    measured = {"seconds": 1.2, "level_db": first.level_db, "snr_db": first.snr_db, "bytes": path.stat().st_size}
    assert first == replace(labels, sha256=sha256_of(path), **measured)
    assert first.level_db == pytest.approx(-20, abs=0.3)
    assert result.seconds == pytest.approx(12 * 1.2)
    seconds = pytest.approx(7.2)
    assert result.sources["ktv"] == {"clips": 6, "seconds": seconds, "score_min": 61, "score_max": 71}


def test_the_json_document_has_the_agreed_keys_and_no_nan(tmp_path: Path) -> None:
    result = validate_folder(corpus(tmp_path, extra=["audio/gone.wav,70,s9,x,ktv"]))
    document = json.loads(json.dumps(result.to_json("report.html"), allow_nan=False))
    assert list(document) == ["valid", "clips", "accepted", "rejected", "warnings", "expectations", "notes", "report"]
    figures = [document[name] for name in ("valid", "clips", "accepted", "report")]
    assert figures == [True, 13, 12, "report.html"]
    [one] = document["rejected"]
    assert one == {"audio_file": "audio/gone.wav", "row": 13, "reason": one["reason"], "severity": "error"}
    share = document["expectations"][-1]
    assert (share["expectation"], share["success"]) == ("expect_rejected_share_to_be_at_most", True)
    assert share["observed"] == pytest.approx(1 / 13)


@pytest.mark.usefixtures("without_expectations")
def test_each_bad_recording_is_rejected_with_its_reason(tmp_path: Path) -> None:
    record(tmp_path / "audio" / "short.wav", seconds=0.5)
    record(tmp_path / "audio" / "quiet.wav", level=1e-4)
    (tmp_path / "audio" / "empty.wav").touch()
    (tmp_path / "audio" / "text.m4a").write_text("not audio at all" * 20)
    record(tmp_path / "outside.wav", seed=51)
    record(tmp_path / "elsewhere" / "a.wav", seed=50)
    names = [*(f"audio/{name}" for name in ("short.wav", "quiet.wav", "empty.wav", "text.m4a", "gone.wav"))]
    names += ["../outside.wav", f"{tmp_path}/elsewhere/a.wav"]
    folder = corpus(tmp_path / "data", extra=[f"{name},70,s9,x,ktv" for name in names])
    for path in (tmp_path / "audio").iterdir():
        path.rename(folder / "audio" / path.name)
    (folder / "audio" / "c03.wav").write_bytes((folder / "audio" / "c03.wav").read_bytes()[:5_000])
    found = rejections(folder)
    words = {4: "1.20 s", 13: "0.50 s", 14: "-80.", 15: "0 bytes", 16: "decoded", 17: "no such", 18: ""}
    assert list(found) == list(words)
    assert [row for row, word in words.items() if word not in found[row][0]] == []
    assert {severity for _, severity in found.values()} == {"error"}
    assert not any(str(tmp_path) in reason for reason, _ in found.values())
    assert validate_folder(folder, settings=LOOSE).accepted[-1].audio_file == f"{tmp_path}/elsewhere/a.wav"


@pytest.mark.usefixtures("without_expectations")
def test_invalid_rows_of_the_table_are_rejected(tmp_path: Path) -> None:
    bad = [
        "audio/c00.wav,86,s0,song0,acapella",
        "x.wav,,s,x,ktv",
        ",70,s,x,ktv",
        "y.wav,104,s,x,ktv",
        "z.wav,good,s,x,ktv",
    ]
    found = rejections(corpus(tmp_path, extra=bad))
    assert list(found) == [13, 14, 15, 16, 17]
    assert [severity for _, severity in found.values()] == ["warning", "error", "error", "error", "error"]
    assert "104" in found[16][0]


@pytest.mark.usefixtures("without_expectations")
def test_duplicates_are_kept_once_and_with_two_scores_never(tmp_path: Path) -> None:
    for number, name in [(0, "copy.wav"), (3, "other.wav")]:
        record(tmp_path / "audio" / name, seed=number)
    folder = corpus(tmp_path, extra=["audio/copy.wav,86,s0,song0,acapella", "audio/other.wav,80,s1,song0,ktv"])
    found = rejections(folder)
    assert {row: severity for row, (_, severity) in found.items()} == {4: "error", 13: "warning", 14: "error"}
    assert "row 1 (audio/c00.wav)" in found[13][0]
    for row in (4, 14):
        assert re.search(r"\b63\b.*row 4 \(audio/c03\.wav\).*\b80\b.*row 14 \(audio/other\.wav\)", found[row][0])


def test_copies_keep_the_order_of_the_clips() -> None:
    named = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")]
    clips = [Clip(name, 70.0, row=row, sha256=sha) for row, (name, sha) in enumerate(named, start=1)]
    kept, rejected = without_copies(clips)
    assert [clip.audio_file for clip in kept] == ["a", "b", "d"]
    assert [one["audio_file"] for one in rejected] == ["c"]
    kept, rejected = without_copies([clips[0], clips[1], replace(clips[2], score=71.0)])
    assert [clip.audio_file for clip in kept] == ["b"]
    assert [one["row"] for one in rejected] == [1, 3]


def test_too_many_rejected_rows_fail_the_gate_and_the_share_is_a_setting(tmp_path: Path) -> None:
    folder = corpus(tmp_path, extra=[f"gone{number}.wav,70,s9,x,ktv" for number in range(3)])
    result = validate_folder(folder)
    [reason] = result.reasons
    assert re.search(r"3 of 15\b.*\b20%.*\b10%.*row 13\b", reason)
    assert not result.expectations[-1]["success"]
    assert validate_folder(folder, settings=ValidationSettings(max_rejected_share=0.2)).valid
    (tmp_path / "labels.csv").write_text("\n".join((tmp_path / "labels.csv").read_text().splitlines()[:13]))
    result = validate_folder(with_order(folder, ["gone.wav", "lost.wav"]))
    assert re.search(r"2 of 14\b.*\b14%.*\b10%.*order\.json, gone\.wav", result.reasons[0])


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ({"min_clips": 13}, ["13", "12"]),
        ({"min_singers": 7}, ["7", "6"]),
        ({"min_per_source": 7, "sources": ("ktv", "acapella")}, ["7", "ktv", "6"]),
    ],
)
def test_too_few_clips_or_singers_fail_the_gate(tmp_path: Path, options: dict[str, Any], figures: list[str]) -> None:
    result = validate_folder(corpus(tmp_path), settings=ValidationSettings(**options))
    assert not result.valid
    assert re.findall(r"\b(?:\d+|ktv)\b", result.reasons[0]) == figures
    assert len(result.accepted) == 12


def test_clips_of_other_sources_are_rejected_and_not_counted(tmp_path: Path) -> None:
    settings = ValidationSettings(min_clips=7, max_rejected_share=1, sources=("ktv",))
    result = validate_folder(corpus(tmp_path), settings=settings)
    [reason] = result.reasons
    assert re.findall(r"\d+", reason) == ["6", "12", "7"]
    assert [(one["row"], one["severity"]) for one in result.rejected] == [(row, "error") for row in range(1, 12, 2)]
    assert all("acapella" in one["reason"] for one in result.rejected)


def test_a_folder_without_a_usable_table_fails(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv"):
        validate_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("audio_file,mood\na.wav,sad\n")
    result = validate_folder(tmp_path)
    assert "score" in result.reasons[0]
    assert (result.clips, result.accepted, result.rejected) == (0, [], [])
    assert result.to_json()["expectations"][0]["observed"] == result.reasons[0]
    (tmp_path / "labels.csv").write_text(HEADER + "\n")
    result = validate_folder(tmp_path)
    assert any(re.findall(r"\d+", reason) == ["10", "0"] for reason in result.reasons)
    write_index(corpus(tmp_path) / "order.json", [[Clip("a.wav", 70.0), Clip("b.wav", 60.0)]])
    result = validate_folder(tmp_path)
    assert re.search(r"order\.json.*\b2\b.*\(a\.wav, b\.wav\)", result.reasons[0])


def test_unusual_scores_and_missing_singers_are_warnings(tmp_path: Path) -> None:
    record(tmp_path / "audio" / "low.wav", seed=99)
    result = validate_folder(corpus(tmp_path, extra=["audio/low.wav,42,,x,ktv"]))
    assert (result.valid, len(result.accepted)) == (True, 13)
    score, singer = result.warnings
    assert re.search(r"50-99.*\b1 \(row 13 \(audio/low\.wav\): 42\)", score)
    assert re.search(r"singer.*\b1 \(row 13 \(audio/low\.wav\)", singer)


@pytest.mark.usefixtures("without_expectations")
def test_settings_reach_the_reader_and_the_measurement(tmp_path: Path) -> None:
    folder = corpus(tmp_path, header="audio_file,points,who,song_id,source")
    settings = replace(LOOSE, column_map={"score": "points"}, singer_from=r"c(\d)", limits=AudioLimits(min_seconds=1.3))
    result = validate_folder(folder, settings=settings)
    assert len(result.rejected) == 12
    assert re.findall(r"\S+ s\b", result.rejected[0]["reason"]) == ["1.20 s", "1.3 s"]
    settings = replace(settings, limits=AudioLimits())
    assert {clip.singer_id for clip in validate_folder(folder, settings=settings).accepted} == {"0", "1"}


@pytest.mark.usefixtures("without_expectations")
def test_a_finding_has_the_severity_of_its_rule(tmp_path: Path) -> None:
    record(tmp_path / "audio" / "short.wav", seconds=0.5)
    folder = corpus(tmp_path, clips=2, extra=["audio/short.wav,70,s9,x,ktv"])

    def validated(**severity: str) -> tuple[list[int | None], list[str], int]:
        result = validate_folder(folder, settings=replace(LOOSE, severity=severity))
        assert result.to_json()["warnings"] == result.warned
        assert {one["severity"] for one in result.warned} <= {"warning"}
        warned = [one["reason"] for one in result.warned if one["row"] == 3]
        return [one["row"] for one in result.rejected], warned, len(result.accepted)

    assert validated(no_voice="off", narrow_band="off") == ([3], [], 2)
    rows, [warned], accepted = validated(too_short="warning", no_voice="off", narrow_band="off")
    assert (rows, accepted) == ([], 3)
    assert "0.50 s" in warned
    assert validated(too_short="off", no_voice="off", narrow_band="off") == ([], [], 3)


@pytest.mark.usefixtures("without_expectations")
def test_two_processes_and_cached_measurements_give_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = corpus(tmp_path / "data", clips=26), tmp_path / "probes.db"
    progress: list[tuple[int, int]] = []
    both = validate_folder(folder, workers=2, progress=lambda done, total: progress.append((done, total)))
    assert progress == [(done, 26) for done in range(1, 27)]
    assert both == validate_folder(folder, workers=1, cache=cache)
    monkeypatch.setattr("audioscore.data.file_checks.decode", lambda *_, **__: pytest.fail("a recording was decoded"))
    assert validate_folder(folder, workers=1, cache=cache) == both


@pytest.mark.usefixtures("without_expectations")
def test_a_recording_with_another_hash_than_in_the_table_is_rejected(tmp_path: Path) -> None:
    folder = corpus(tmp_path, clips=2)
    right, wrong = sha256_of(folder / "audio" / "c00.wav"), "0" * 64
    rows = f"audio_file,score,sha256\naudio/c00.wav,70,{right.upper()}\naudio/c01.wav,71,{wrong}\n"
    (folder / "labels.csv").write_text(rows)
    found = rejections(folder)
    assert list(found) == [2]
    assert sha256_of(folder / "audio" / "c01.wav")[:12] in found[2][0]


@pytest.mark.usefixtures("without_expectations")
def test_near_duplicates_are_listed_or_rejected_by_severity(tmp_path: Path) -> None:
    def noise(seed: int, level: float = 0.1) -> NDArray[np.float32]:
        return np.asarray(level * np.random.default_rng(seed).standard_normal(96_000), dtype=np.float32)

    encode(noise(1), 16_000, tmp_path / "a.wav", codec="pcm_s16le")
    encode(noise(1, level=0.05), 16_000, tmp_path / "b.m4a")
    encode(noise(2), 16_000, tmp_path / "c.wav", codec="pcm_s16le")
    (tmp_path / "labels.csv").write_text("audio_file,score\na.wav,60\nb.m4a,85\nc.wav,70\n")
    result = validate_folder(tmp_path, settings=LOOSE)
    assert result.near_duplicates == [("a.wav", "b.m4a")]
    pattern = re.compile(r"row 1 \(a\.wav\).*\b85\b.*\b60\b.*\b25\b")
    assert [one["row"] for one in result.warned if pattern.search(one["reason"])] == [2]
    strict = validate_folder(tmp_path, settings=replace(LOOSE, severity={"near_duplicate": "error"}))
    assert [one["row"] for one in strict.rejected if pattern.search(one["reason"])] == [2]
    assert [clip.audio_file for clip in strict.accepted] == ["a.wav", "c.wav"]
    assert strict.near_duplicates == []


def with_order(folder: Path, names: Sequence[str]) -> Path:
    write_index(folder / "order.json", [[Clip(name, row=5, source="ktv") for name in names]])
    return folder


@pytest.mark.usefixtures("without_expectations")
def test_unscored_groups_are_measured_and_keep_their_order_without_rejected_clips(tmp_path: Path) -> None:
    folder = with_order(corpus(tmp_path, clips=4), ["z.wav", "gone.wav", "a.wav", "audio/c00.wav", "copy.wav"])
    for seed, name in [(90, "z.wav"), (91, "a.wav"), (91, "copy.wav")]:
        record(folder / name, seed=seed)
    result = validate_folder(folder, settings=LOOSE)
    [group] = result.ordered
    assert [clip.audio_file for clip in group] == ["z.wav", "a.wav", "audio/c00.wav"]
    assert [(clip.score, clip.row) for clip in group] == [(None, None)] * 3
    assert group[0].sha256 == sha256_of(folder / "z.wav")
    assert (group[0].seconds, group[0].source) == (1.2, "ktv")
    rejected = [(one["row"], one["audio_file"], one["severity"]) for one in result.rejected]
    assert rejected == [(None, "gone.wav", "error"), (None, "copy.wav", "warning")]
    assert (result.clips, len(result.accepted)) == (4, 4)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["rejected"][0]["row"] is None


def test_a_folder_may_contain_only_unscored_groups(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(HEADER + "\n")
    names = [f"{number}.wav" for number in range(10)]
    for seed, name in enumerate(names):
        record(tmp_path / name, seed=seed)
    result = validate_folder(with_order(tmp_path, names))
    assert (result.reasons, [len(group) for group in result.ordered]) == ([], [10])
    (tmp_path / names[0]).unlink()
    result = validate_folder(tmp_path)
    assert any(re.findall(r"\d+", reason) == ["10", "9", "9"] for reason in result.reasons)


def test_without_audio_no_recording_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "check_recordings", lambda *_: pytest.fail("decoded"))
    same = "a" * 64
    rows = [f"{name},{score},s,x,ktv,{sha}" for name, score, sha in [("a", 70, same), ("b", 70, same), ("c", 60, "")]]
    (tmp_path / "labels.csv").write_text("\n".join([HEADER + ",sha256", *rows, "d,60,s,x,ktv,", "e,none,s,x,ktv,"]))
    result = validate_folder(with_order(tmp_path, ["o.wav"]), settings=LOOSE, audio=False)
    assert [clip.audio_file for clip in result.accepted] == ["a", "c", "d"]
    assert [one["row"] for one in result.rejected] == [2, 5]
    assert [clip.audio_file for clip in result.ordered[0]] == ["o.wav"]
    assert (result.accepted[0].seconds, result.seconds) == (None, 0.0)


def test_scores_are_compared_with_the_last_accepted_version(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    scores = np.sort(rng.uniform(50, 85, 80).round(1))[::-1].tolist()
    rows = [f"{number}.wav,{score},s{number},x,ktv" for number, score in enumerate(scores)]
    (tmp_path / "labels.csv").write_text("\n".join([HEADER, *rows]))

    def shifts() -> list[bool]:
        lines = validate_folder(tmp_path, audio=False).expectations
        return [one["success"] for one in lines if "kl_divergence" in one["expectation"]]

    def write(name: str, scores: Sequence[float], *rest: list[Clip]) -> None:
        write_index(tmp_path / "index" / name, [[Clip(f"{s}", s, source="ktv") for s in scores], *rest])

    assert shifts() == []
    write("train.json", scores[::2])
    write("val.json", scores[1::2], [Clip("o")])
    assert shifts() == [True]
    assert validate_folder(tmp_path, audio=False).warnings == []
    write("train.json", [score - 20 for score in scores])
    write("val.json", [])
    [warning] = validate_folder(tmp_path, audio=False).warnings
    assert "ktv" in warning
    failed = validate_folder(tmp_path, audio=False, settings=replace(LOOSE, severity={"distribution_shift": "error"}))
    assert failed.reasons == [warning]
    (tmp_path / "index" / "test.json").write_text("[[")
    unread = validate_folder(tmp_path, audio=False)
    assert unread.valid
    assert [one["expectation"] for one in unread.expectations if not one["success"]] == [
        "expect_last_version_to_be_readable"
    ]
    assert "test.json" in unread.warnings[0]


@pytest.mark.usefixtures("without_expectations")
def test_contradictions_are_notes_among_the_warnings(tmp_path: Path) -> None:
    header = f"{HEADER},split,remark"
    extra = [f"audio/x{number}.wav,80,{singer},s,live,test,good" for number, singer in enumerate(("9", "009", "9.0"))]
    folder = corpus(tmp_path, extra=extra, header=header)
    for number in range(3):
        record(folder / "audio" / f"x{number}.wav", seed=20 + number)
    write_index(folder / "order.json", [[Clip("audio/x0.wav"), Clip("audio/x1.wav")], [Clip("audio/x2.wav")]])
    result = validate_folder(folder, settings=LOOSE)
    assert (result.valid, len(result.accepted)) == (True, 15)
    assert {clip.singer_id for clip in result.accepted[12:]} == {"9"}
    patterns = [r"singer_id: 1 of 7 .*'9' = '009' = '9\.0'", r"order\.json: 1 of 2 ", r"split, remark", r"live: 3 "]
    assert [sum(bool(re.search(one, note)) for note in result.notes) for one in patterns] == [1, 1, 1, 1]
    assert len(result.notes) == len(patterns)
    assert result.warnings == result.notes
    assert result.to_json()["notes"] == result.notes
    assert result.splits == {f"audio/x{number}.wav": "test" for number in range(3)}


@pytest.mark.usefixtures("without_expectations")
def test_names_are_found_in_other_spellings(tmp_path: Path) -> None:
    folder = corpus(tmp_path, clips=4, extra=[r"audio\Zo\u00eb.WAV".replace(r"\u00eb", "\u00eb") + ",70,s9,x,ktv"])
    record(folder / "audio" / "Zoe\u0308.wav", seed=30)
    write_index(folder / "order.json", [[Clip("audio/ZO\u00cb.wav"), Clip("./audio/c00.wav")]])
    result = validate_folder(folder, settings=LOOSE)
    assert result.rejected == []
    assert result.accepted[-1].audio_file == "audio/Zoe\u0308.wav"
    assert [clip.audio_file for clip in result.ordered[0]] == ["audio/Zoe\u0308.wav", "./audio/c00.wav"]
    [note] = [note for note in result.notes if "Zo" in note]
    assert re.search(r"\b2 of 7\b", note)
    assert validate_folder(folder, settings=LOOSE, audio=False).accepted[-1].audio_file == "audio\\Zo\u00eb.WAV"


@pytest.mark.usefixtures("without_expectations")
def test_rows_of_a_workbook_are_named_as_a_spreadsheet_counts_them(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "九月"
    for row in (["评分表"], ["录音", "分数"], ["a.wav", 80], ["gone.wav", 80], ["a.wav", 80], ["b.wav", "=80+1"]):
        sheet.append(row)
    book.save(tmp_path / "labels.xlsx")
    found = rejections(tmp_path)
    assert {row: reason.split(": ")[0] for row, (reason, _) in found.items()} == {
        number: f"sheet 九月, row {number + 2}" for number in (2, 3, 4)
    }
    assert "sheet 九月, row 3" in found[3][0]
    assert [found[number][1] for number in (2, 3, 4)] == ["error", "warning", "error"]
