import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile

from audioscore.data import validation
from audioscore.data.audio import encode
from audioscore.data.clips import Clip
from audioscore.data.expectations import TableCheck
from audioscore.data.index import write_index
from audioscore.data.probes import ProbeLimits
from audioscore.data.rejections import without_copies
from audioscore.data.validation import validate_folder
from audioscore.data.validation_settings import ValidationSettings
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
    """`clips` sound clips, half of each source, and further rows as they are given."""
    rows = [header]
    for number in range(clips):
        record(folder / "audio" / f"c{number:02d}.wav", seed=number)
        source, score = ("ktv", 60 + number) if number % 2 else ("acapella", 86 + number % 13)
        rows.append(f"audio/c{number:02d}.wav,{score},s{number // 2},song{number % 3},{source}")
    (folder / "labels.csv").write_text("\n".join([*rows, *extra]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def ears_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the expectations, which take their time and have tests of their own."""
    monkeypatch.setattr(validation, "check_table", lambda *_, **__: TableCheck([], {}))


def rejections(folder: Path, settings: ValidationSettings = LOOSE) -> dict[int | None, tuple[str, str]]:
    return {one["row"]: (one["reason"], one["severity"]) for one in validate_folder(folder, settings=settings).rejected}


def test_a_good_folder_is_valid_and_its_clips_are_measured(tmp_path: Path) -> None:
    result = validate_folder(corpus(tmp_path))
    assert (result.valid, result.reasons, result.rejected, result.warnings) == (True, [], [], [])
    assert (result.clips, len(result.accepted)) == (12, 12)
    assert [clip.row for clip in result.accepted] == list(range(1, 13))
    first = result.accepted[0]
    path = tmp_path / first.audio_file
    assert first == Clip(
        audio_file="audio/c00.wav",
        score=86,
        singer_id="s0",
        song_id="song0",
        source="acapella",
        row=1,
        sha256=sha256_of(path),
        seconds=1.2,
        level_db=first.level_db,
        snr_db=first.snr_db,
        bytes=path.stat().st_size,
    )
    assert first.level_db == pytest.approx(-20, abs=0.3)
    assert result.seconds == pytest.approx(12 * 1.2)
    assert result.sources["ktv"] == {
        "clips": 6,
        "seconds": pytest.approx(7.2),
        "score_min": 61,
        "score_max": 71,
    }


def test_the_json_document_has_the_agreed_keys_and_no_nan(tmp_path: Path) -> None:
    result = validate_folder(corpus(tmp_path, extra=["audio/gone.wav,70,s9,x,ktv"]))
    document = json.loads(json.dumps(result.to_json("report.html"), allow_nan=False))
    assert list(document) == ["valid", "clips", "accepted", "rejected", "warnings", "expectations", "report"]
    assert (document["valid"], document["clips"], document["accepted"], document["report"]) == (
        True,
        13,
        12,
        "report.html",
    )
    assert document["rejected"] == [
        {
            "audio_file": "audio/gone.wav",
            "row": 13,
            "reason": "no such file. Check the path.",
            "severity": "error",
        }
    ]
    share = document["expectations"][-1]
    assert (share["expectation"], share["success"]) == ("expect_rejected_share_to_be_at_most", True)
    assert share["observed"] == pytest.approx(1 / 13)


@pytest.mark.usefixtures("ears_only")
def test_each_bad_recording_is_rejected_with_its_reason(tmp_path: Path) -> None:
    record(tmp_path / "audio" / "short.wav", seconds=0.5)
    record(tmp_path / "audio" / "quiet.wav", level=1e-4)
    (tmp_path / "audio" / "empty.wav").touch()
    (tmp_path / "audio" / "text.m4a").write_text("not audio at all" * 20)
    names = ["short.wav", "quiet.wav", "empty.wav", "text.m4a", "gone.wav"]
    folder = corpus(tmp_path, extra=[f"audio/{name},70,s9,x,ktv" for name in names])
    (folder / "audio" / "c03.wav").write_bytes((folder / "audio" / "c03.wav").read_bytes()[:5_000])
    found = rejections(folder)
    said = {
        4: "ends ",
        13: "too short: 0.50 s",
        14: "silent: its level is -80.",
        15: "the file is empty (0 bytes)",
        16: "cannot be decoded",
        17: "no such file",
    }
    assert list(found) == list(said)
    assert all(found[row][0].startswith(start) for row, start in said.items())
    assert {severity for _, severity in found.values()} == {"error"}
    assert not any(str(tmp_path) in reason for reason, _ in found.values())


@pytest.mark.usefixtures("ears_only")
def test_rows_the_table_itself_spoils_are_rejected(tmp_path: Path) -> None:
    spoiled = [
        "audio/c00.wav,86,s0,song0,acapella",
        "x.wav,,s,x,ktv",
        ",70,s,x,ktv",
        "y.wav,104,s,x,ktv",
        "z.wav,good,s,x,ktv",
    ]
    found = rejections(corpus(tmp_path, extra=spoiled))
    assert list(found) == [13, 14, 15, 16, 17]
    assert [severity for _, severity in found.values()] == ["warning", "error", "error", "error", "error"]
    assert "104" in found[16][0]


@pytest.mark.usefixtures("ears_only")
def test_the_same_audio_twice_is_kept_once_and_with_two_scores_not_at_all(tmp_path: Path) -> None:
    for number, name in [(0, "copy.wav"), (3, "other.wav")]:
        record(tmp_path / "audio" / name, seed=number)
    folder = corpus(tmp_path, extra=["audio/copy.wav,86,s0,song0,acapella", "audio/other.wav,80,s1,song0,ktv"])
    told = "conflict: the same audio is scored 63 in row 4 (audio/c03.wav), 80 in row 14 (audio/other.wav)"
    assert rejections(folder) == {
        4: (told, "error"),
        13: ("duplicate: same audio and score as row 1 (audio/c00.wav)", "warning"),
        14: (told, "error"),
    }


def test_copies_keep_the_order_of_the_clips() -> None:
    named = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")]
    clips = [Clip(name, 70.0, row=row, sha256=sha) for row, (name, sha) in enumerate(named, start=1)]
    kept, rejected = without_copies(clips)
    assert [clip.audio_file for clip in kept] == ["a", "b", "d"]
    assert [one["audio_file"] for one in rejected] == ["c"]
    kept, rejected = without_copies([clips[0], clips[1], replace(clips[2], score=71.0)])
    assert [clip.audio_file for clip in kept] == ["b"]
    assert [one["row"] for one in rejected] == [1, 3]


def test_unknown_sources_reject_their_rows(tmp_path: Path) -> None:
    record(tmp_path / "audio" / "r.wav", seed=99)
    folder = corpus(tmp_path, extra=["audio/r.wav,70,s9,x,radio"])
    found = rejections(folder, replace(LOOSE, sources=("ktv", "acapella")))
    assert found == {13: ("source radio is not one of ktv, acapella", "error")}
    assert rejections(folder) == {}


@pytest.mark.usefixtures("ears_only")
def test_absolute_paths_are_the_users_own_and_ways_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    record(tmp_path / "elsewhere" / "a.wav", seed=50)
    record(tmp_path / "b.wav", seed=51)
    extra = [f"{tmp_path}/elsewhere/a.wav,70,s,x,ktv", "../b.wav,71,s,x,ktv"]
    result = validate_folder(corpus(tmp_path / "data", extra=extra), settings=LOOSE)
    assert [clip.audio_file for clip in result.accepted][12:] == [f"{tmp_path}/elsewhere/a.wav"]
    [refused] = result.rejected
    assert (refused["audio_file"], refused["row"], refused["severity"]) == ("../b.wav", 14, "error")
    assert str(tmp_path) not in refused["reason"]


def test_too_many_rejected_rows_close_the_gate_and_the_share_is_a_setting(tmp_path: Path) -> None:
    folder = corpus(tmp_path, extra=[f"gone{number}.wav,70,s9,x,ktv" for number in range(3)])
    result = validate_folder(folder)
    assert not result.valid
    [reason] = result.reasons
    assert reason.startswith("3 of 15 rows are rejected (20%), and at most 10% may be: row 13: no such file.")
    assert not result.expectations[-1]["success"]
    assert validate_folder(folder, settings=ValidationSettings(max_rejected_share=0.2)).valid


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"min_clips": 13}, "Expected: at least 13 usable clips; found 12."),
        ({"min_singers": 7}, "Expected: at least 7 singers; found 6."),
        ({"min_per_source": 7, "sources": ("ktv", "acapella")}, "Expected: at least 7 usable clips of ktv; found 6."),
    ],
)
def test_too_few_close_the_gate(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    result = validate_folder(corpus(tmp_path), settings=ValidationSettings(**asked))
    assert not result.valid
    assert said in result.reasons
    assert len(result.accepted) == 12


def test_clips_lost_to_their_sources_are_missed_too(tmp_path: Path) -> None:
    settings = ValidationSettings(min_clips=7, max_rejected_share=1, sources=("ktv",))
    result = validate_folder(corpus(tmp_path), settings=settings)
    assert result.reasons == ["6 of 12 clips are accepted, and 7 are needed. Add clips."]


def test_a_missing_column_closes_the_gate_in_words(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("audio_file,mood\na.wav,sad\n")
    result = validate_folder(tmp_path)
    assert not result.valid
    assert "has no column score" in result.reasons[0]
    assert (result.clips, result.accepted, result.rejected) == (0, [], [])
    assert result.to_json()["expectations"][0]["observed"] == result.reasons[0]


def test_a_table_of_headers_alone_closes_the_gate(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(HEADER + "\n")
    result = validate_folder(tmp_path)
    assert "Expected: at least 10 usable clips; found 0." in result.reasons


def test_no_table_at_all_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no labels table"):
        validate_folder(tmp_path)


def test_what_is_unusual_is_a_warning(tmp_path: Path) -> None:
    record(tmp_path / "audio" / "low.wav", seed=99)
    result = validate_folder(corpus(tmp_path, extra=["audio/low.wav,42,,x,ktv"]))
    assert result.valid
    assert len(result.accepted) == 13
    assert result.warnings == [
        "Expected: scores lie within the usual 50-99; not so in 1 (row 13 (audio/low.wav): 42).",
        "Expected: every clip names its singer; not so in 1 (row 13 (audio/low.wav): empty).",
    ]


@pytest.mark.usefixtures("ears_only")
def test_settings_reach_the_reader_and_the_probes(tmp_path: Path) -> None:
    folder = corpus(tmp_path, header="audio_file,points,who,song_id,source")
    settings = ValidationSettings(
        column_map={"score": "points"}, singer_from=r"c(\d)", limits=ProbeLimits(min_seconds=1.3), max_rejected_share=1
    )
    result = validate_folder(folder, settings=settings)
    assert len(result.rejected) == 12
    assert result.rejected[0]["reason"].startswith("too short: 1.20 s, and at least 1.3 s")
    settings = replace(settings, limits=ProbeLimits())
    assert {clip.singer_id for clip in validate_folder(folder, settings=settings).accepted} == {"0", "1"}


@pytest.mark.usefixtures("ears_only")
def test_progress_is_told_and_two_processes_give_the_same_answer(tmp_path: Path) -> None:
    folder = corpus(tmp_path, clips=26)
    told: list[tuple[int, int]] = []
    both = validate_folder(folder, workers=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 26) for done in range(1, 27)]
    assert both == validate_folder(folder, workers=1)


def test_a_finding_weighs_what_its_rule_is_set_to(tmp_path: Path) -> None:
    record(tmp_path / "audio" / "short.wav", seconds=0.5)
    folder = corpus(tmp_path, extra=["audio/short.wav,70,s9,x,ktv"])
    assert rejections(folder)[13][0].startswith("too short: 0.50 s")
    result = validate_folder(folder, settings=replace(LOOSE, severity={"too_short": "warning", "no_voice": "off"}))
    assert (result.rejected, len(result.accepted)) == ([], 13)
    [warned] = [one for one in result.warned if one["reason"].startswith("too short: 0.50 s")]
    assert (warned["row"], warned["severity"]) == (13, "warning")
    assert not [one for one in result.warned if "voice" in one["reason"]]
    assert result.to_json()["warnings"] == result.warned
    off = validate_folder(folder, settings=replace(LOOSE, severity={"too_short": "off"}))
    assert (off.rejected, [one for one in off.warned if "short" in one["reason"]]) == ([], [])


@pytest.mark.usefixtures("ears_only")
def test_a_recording_that_is_not_the_one_the_table_means_is_rejected(tmp_path: Path) -> None:
    folder = corpus(tmp_path, clips=2)
    right, wrong = sha256_of(folder / "audio" / "c00.wav"), "0" * 64
    rows = f"audio_file,score,sha256\naudio/c00.wav,70,{right.upper()}\naudio/c01.wav,71,{wrong}\n"
    (folder / "labels.csv").write_text(rows)
    found = rejections(folder)
    assert list(found) == [2]
    assert found[2][0].startswith(f"changed content: its SHA-256 is {sha256_of(folder / 'audio' / 'c01.wav')[:12]}...")


def take(seed: int, seconds: float = 6.0, level: float = 0.1) -> NDArray[np.float32]:
    return np.asarray(level * np.random.default_rng(seed).standard_normal(round(seconds * 16_000)), dtype=np.float32)


@pytest.mark.usefixtures("ears_only")
def test_near_duplicates_are_named_and_kept_or_rejected_as_the_rule_is_set(tmp_path: Path) -> None:
    encode(take(1), 16_000, tmp_path / "a.wav", codec="pcm_s16le")
    encode(take(1, level=0.05), 16_000, tmp_path / "b.m4a")
    encode(take(2), 16_000, tmp_path / "c.wav", codec="pcm_s16le")
    (tmp_path / "labels.csv").write_text("audio_file,score\na.wav,60\nb.m4a,85\nc.wav,70\n")
    result = validate_folder(tmp_path, settings=LOOSE)
    assert result.near_duplicates == [("a.wav", "b.m4a")]
    told = "near-duplicate of row 1 (a.wav), yet scored 85 against 60, 25 points apart; listen to both"
    assert told in [one["reason"] for one in result.warned if one["row"] == 2]
    strict = validate_folder(tmp_path, settings=replace(LOOSE, severity={"near_duplicate": "error"}))
    assert [(one["row"], one["reason"]) for one in strict.rejected] == [(2, told)]
    assert [clip.audio_file for clip in strict.accepted] == ["a.wav", "c.wav"]
    assert strict.near_duplicates == []


def with_order(folder: Path, names: Sequence[str]) -> Path:
    write_index(folder / "order.json", [[Clip(name, row=5, source="ktv") for name in names]])
    return folder


@pytest.mark.usefixtures("ears_only")
def test_unscored_groups_are_heard_keep_their_order_and_lose_their_bad_clips(tmp_path: Path) -> None:
    folder = with_order(corpus(tmp_path, clips=4), ["z.wav", "gone.wav", "a.wav", "audio/c00.wav", "copy.wav"])
    for seed, name in [(90, "z.wav"), (91, "a.wav"), (91, "copy.wav")]:
        record(folder / name, seed=seed)
    result = validate_folder(folder, settings=LOOSE)
    [group] = result.ordered
    assert [clip.audio_file for clip in group] == ["z.wav", "a.wav", "audio/c00.wav"]
    assert [(clip.score, clip.row) for clip in group] == [(None, None)] * 3
    assert group[0].sha256 == sha256_of(folder / "z.wav")
    assert (group[0].seconds, group[0].source) == (1.2, "ktv")
    assert [(one["row"], one["audio_file"], one["severity"]) for one in result.rejected] == [
        (None, "gone.wav", "error"),
        (None, "copy.wav", "warning"),
    ]
    assert (result.clips, len(result.accepted)) == (4, 4)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["rejected"][0]["row"] is None


def test_a_folder_may_hold_an_order_and_no_scores(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(HEADER + "\n")
    names = [f"{number}.wav" for number in range(10)]
    for seed, name in enumerate(names):
        record(tmp_path / name, seed=seed)
    result = validate_folder(with_order(tmp_path, names))
    assert result.reasons == []
    assert [len(group) for group in result.ordered] == [10]
    (tmp_path / names[0]).unlink()
    result = validate_folder(tmp_path)
    assert "Expected: at least 10 usable clips, with the 9 that have an order and no score; found 9." in result.reasons


@pytest.mark.usefixtures("ears_only")
def test_too_many_bad_clips_in_an_order_close_the_gate(tmp_path: Path) -> None:
    result = validate_folder(with_order(corpus(tmp_path), ["gone.wav", "lost.wav"]))
    assert result.reasons[0].startswith(
        "2 of 14 rows are rejected (14%), and at most 10% may be: order.json, gone.wav:"
    )


def test_an_order_with_scores_closes_the_gate_in_words(tmp_path: Path) -> None:
    write_index(corpus(tmp_path) / "order.json", [[Clip("a.wav", 70.0), Clip("b.wav", 60.0)]])
    result = validate_folder(tmp_path)
    assert result.reasons[0].startswith("order.json: 2 clips have scores (a.wav, b.wav)")
    assert not result.valid


def test_without_audio_no_recording_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "hear_all", lambda *_: pytest.fail("a recording was opened"))
    same = "a" * 64
    rows = [f"{name},{score},s,x,ktv,{sha}" for name, score, sha in [("a", 70, same), ("b", 70, same), ("c", 60, "")]]
    (tmp_path / "labels.csv").write_text("\n".join([HEADER + ",sha256", *rows, "d,60,s,x,ktv,", "e,none,s,x,ktv,"]))
    result = validate_folder(with_order(tmp_path, ["o.wav"]), settings=LOOSE, audio=False)
    assert [clip.audio_file for clip in result.accepted] == ["a", "c", "d"]
    assert [one["row"] for one in result.rejected] == [2, 5]
    assert [clip.audio_file for clip in result.ordered[0]] == ["o.wav"]
    assert (result.accepted[0].seconds, result.seconds) == (None, 0.0)


def test_scores_are_compared_with_those_that_were_last_accepted(tmp_path: Path) -> None:
    chance = np.random.default_rng(4)
    scores = np.sort(chance.uniform(50, 85, 80).round(1))[::-1].tolist()
    rows = [f"{number}.wav,{score},s{number},x,ktv" for number, score in enumerate(scores)]
    (tmp_path / "labels.csv").write_text("\n".join([HEADER, *rows]))
    assert not [one for one in validate_folder(tmp_path, audio=False).expectations if "last" in one["meaning"]]
    write_index(tmp_path / "index" / "train.json", [[Clip(f"{s}", s, source="ktv") for s in scores[::2]]])
    write_index(tmp_path / "index" / "val.json", [[Clip(f"{s}", s, source="ktv") for s in scores[1::2]], [Clip("o")]])
    assert validate_folder(tmp_path, audio=False).warnings == []
    lower = [score - 20 for score in scores]
    write_index(tmp_path / "index" / "train.json", [[Clip(f"{s}", s, source="ktv") for s in lower]])
    write_index(tmp_path / "index" / "val.json", [[]])
    [warning] = validate_folder(tmp_path, audio=False).warnings
    assert warning.startswith("Expected: scores of ktv are distributed as in the last accepted version, within ")
    closed = validate_folder(tmp_path, audio=False, settings=replace(LOOSE, severity={"distribution_shift": "error"}))
    assert closed.reasons == [warning]


def test_an_index_of_the_last_version_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    (folder / "index").mkdir()
    (folder / "index" / "test.json").write_text("[[")
    result = validate_folder(folder, audio=False)
    assert result.valid
    [warning] = result.warnings
    assert "the last accepted version's index can be read; found test.json is not JSON" in warning


@pytest.mark.usefixtures("ears_only")
def test_what_was_measured_once_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus(tmp_path / "data", clips=3)
    memory = tmp_path / "probes.db"
    first = validate_folder(folder, settings=LOOSE, memory=memory)
    monkeypatch.setattr("audioscore.data.probes.decode", lambda *_, **__: pytest.fail("a recording was decoded"))
    assert validate_folder(folder, settings=LOOSE, memory=memory) == first
