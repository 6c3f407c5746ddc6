import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audioscore.data.clips import Clip
from audioscore.data.delivery.folder_state import FolderState, Withdrawn
from audioscore.data.delivery.plan import (
    LONGEST,
    AddPlan,
    DeliveredRecording,
    plan_add,
    recording_name,
)
from audioscore.data.spelling import normalized_name
from audioscore.errors import DataError, UsageError

HERE = Path("/delivery")
SHA = "5fd2" * 16


def sent(name: str, content: str, score: float | None = 80.0, row: int = 1, **more: str) -> DeliveredRecording:
    return DeliveredRecording(Clip(name, score, row=row, sha256=content, **more), HERE / name)


def plan(tmp_path: Path, *scored: DeliveredRecording, state: FolderState | None = None, **more: Any) -> AddPlan:
    return plan_add(scored, [], state or FolderState(), tmp_path, **more)


def test_new_recordings_get_names_of_their_own(tmp_path: Path) -> None:
    planned = plan(tmp_path, sent("x/a.wav", "1" * 64), sent("y/A.wav", "2" * 64), sent("b.wav", "3" * 64, 90.0))
    assert [(one.clip.audio_file, one.clip.score, one.path) for one in planned.added] == [
        ("audio/a.wav", 80.0, HERE / "x/a.wav"),
        ("audio/A-22222222.wav", 80.0, HERE / "y/A.wav"),
        ("audio/b.wav", 90.0, HERE / "b.wav"),
    ]
    assert planned.changes
    assert all(one.clip.row is None for one in planned.added)


def test_existing_recordings_are_updated_whatever_their_name(tmp_path: Path) -> None:
    old = Clip("audio/a.wav", 80.0, "001", row=4, sha256="1" * 64)
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").touch()
    same = plan(tmp_path, sent("renamed.wav", "1" * 64), state=FolderState([old]))
    assert (same.added, same.updated, same.restored, same.unchanged, same.changes) == ([], [], [], 1, False)
    moved = plan(tmp_path, sent("a.wav", "1" * 64, 82.5, singer_id="002"), state=FolderState([old]))
    assert [(update.clip, update.cells) for update in moved.updated] == [(old, {"score": "82.5", "singer_id": "002"})]


@pytest.mark.parametrize("state", ["missing", "damaged"])
@pytest.mark.parametrize(("name", "inside"), [("audio/a.wav", True), ("/elsewhere/a.wav", False), ("../a.wav", False)])
def test_missing_and_damaged_files_in_the_folder_are_restored(
    tmp_path: Path, state: str, name: str, inside: bool
) -> None:
    old = Clip(name, 80.0, row=1, sha256="1" * 64)
    planned = plan(tmp_path, sent("a.wav", "1" * 64), state=FolderState([old], **{state: frozenset({name})}))
    assert [(one.clip, one.path) for one in planned.restored] == ([(old, HERE / "a.wav")] if inside else [])


def test_a_replaced_file_keeps_its_row(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").write_bytes(b"new")
    old = Clip("audio/a.wav", 80.0, row=3, sha256="1" * 64)
    one = DeliveredRecording(Clip("audio/a.wav", 85.0, sha256="2" * 64), tmp_path / "audio" / "a.wav")
    planned = plan_add([one], [], FolderState([old], damaged=frozenset({"audio/a.wav"})), tmp_path)
    assert planned.added == []
    assert [(update.clip, update.cells) for update in planned.updated] == [(old, {"score": "85", "sha256": "2" * 64})]


def test_every_row_of_a_recording_is_updated_and_an_unusable_one_corrected(tmp_path: Path) -> None:
    found = [("a.wav", 80.0), ("copy.wav", 70.0), ("a.wav", None)]
    rows = [Clip(name, score, row=row, sha256="1" * 64) for row, (name, score) in enumerate(found, 1)]
    planned = plan(tmp_path, sent("new.wav", "1" * 64, 70.0, singer_id="s1"), state=FolderState(rows))
    assert [(update.clip.row, update.cells) for update in planned.updated] == [
        (1, {"score": "70", "singer_id": "s1"}),
        (2, {"singer_id": "s1"}),
        (3, {"score": "70", "singer_id": "s1"}),
    ]


def test_contradicting_singers_are_left_blank(tmp_path: Path) -> None:
    rows = [
        sent("a.wav", "1" * 64, singer_id="s1"),
        sent("b.wav", "1" * 64, row=2, singer_id="s2", song_id="x"),
    ]
    planned = plan(tmp_path, *rows)
    assert (planned.added[0].clip.singer_id, planned.added[0].clip.song_id) == (None, "x")
    (note,) = planned.notes
    assert [name in note for name in ("a.wav", "b.wav", "singer_id", "song_id")] == [True, True, True, False]


def test_repeats_are_counted_and_conflicts_resolved_by_policy(tmp_path: Path) -> None:
    rows = [
        sent("a.wav", "1" * 64, 80, 1),
        sent("b.wav", "1" * 64, 90, 2),
        sent("c.wav", "2" * 64, 70, 3),
    ]
    rows += [sent("d.wav", "2" * 64, 70, 4), sent("a.wav", "1" * 64, 85, 5)]
    figures = r"1 of 2 .*a\.wav .*1\b.*80.*b\.wav .*2\b.*90.*a\.wav .*5\b.*85.*--on-conflict newest"
    with pytest.raises(DataError, match=figures):
        plan(tmp_path, *rows)
    mean = plan(tmp_path, *rows, on_conflict="mean")
    assert [one.clip.score for one in mean.added] == [85.0, 70.0]
    assert mean.repeats == 1
    assert all(part in mean.notes[0] for part in ("1 ", "mean", "a.wav (row 1): 80"))
    newest = plan(tmp_path, *rows, on_conflict="newest")
    assert [one.clip.score for one in newest.added] == [85.0, 70.0]
    assert newest.added[0].clip.audio_file == "audio/a.wav"
    with pytest.raises(UsageError, match=r"--on-conflict oldest.*error, mean, newest"):
        plan(tmp_path, *rows, on_conflict="oldest")


def test_files_that_no_table_names_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").write_bytes(b"x")
    planned = plan(tmp_path, sent("a.wav", "1" * 64))
    assert planned.added[0].clip.audio_file == "audio/a-11111111.wav"


def test_a_recording_inside_the_folder_keeps_its_path(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.wav").write_bytes(b"x")
    planned = plan(tmp_path, DeliveredRecording(Clip("a.wav", 80.0, sha256="1" * 64), tmp_path / "own" / "a.wav"))
    assert [(one.clip.audio_file, one.path) for one in planned.added] == [("own/a.wav", None)]


GBK = os.fsdecode("歌.wav".encode("gbk"))


@pytest.mark.parametrize(("on_disk", "name"), [(GBK, "own/歌.wav"), (os.fsdecode(b"\xff.wav"), "audio/a.wav")])
def test_a_name_that_is_not_utf_8_becomes_text(tmp_path: Path, on_disk: str, name: str) -> None:
    (tmp_path / "own").mkdir()
    path = tmp_path / "own" / on_disk
    path.write_bytes(b"x")
    planned = plan(tmp_path, DeliveredRecording(Clip("a.wav", 80.0, sha256="1" * 64), path))
    assert [(one.clip.audio_file, one.path) for one in planned.added] == [(name, path if "a.wav" in name else None)]
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / GBK).touch()
    assert plan(tmp_path, sent("歌.wav", "1" * 64)).added[0].clip.audio_file == "audio/歌-11111111.wav"


def test_a_replaced_file_whose_name_is_in_gbk_changes_its_row(tmp_path: Path) -> None:
    (tmp_path / GBK).write_bytes(b"x")
    state = FolderState([Clip("歌.wav", 80.0, row=1, sha256="2" * 64)], damaged=frozenset({"歌.wav"}))
    planned = plan(tmp_path, DeliveredRecording(Clip("a.wav", 80.0, sha256="1" * 64), tmp_path / GBK), state=state)
    assert (planned.added, [one.cells for one in planned.updated]) == ([], [{"sha256": "1" * 64}])


def test_conflicts_name_the_rows_of_worksheets(tmp_path: Path) -> None:
    rows = [sent("a.wav", "1" * 64, 80, 1), sent("b.wav", "1" * 64, 90, 20)]
    where = {20: "sheet 九月, row 16"}
    with pytest.raises(DataError, match=r"\(row 1\).*\(sheet 九月, row 16\)"):
        plan(tmp_path, *rows, locations=where)
    assert "(sheet 九月, row 16)" in plan(tmp_path, *rows, on_conflict="mean", locations=where).notes[0]


def test_removed_recordings_are_not_added_again(tmp_path: Path) -> None:
    state = FolderState(withdrawn={"1" * 64: Withdrawn("2026-01-31")})
    planned = plan(tmp_path, sent("a.wav", "1" * 64, row=7), state=state)
    assert planned.added == []
    assert [(row.row, row.audio_file) for row in planned.refused] == [(7, "a.wav")]
    assert "2026-01-31" in planned.refused[0].reason


def order(*contents: str) -> list[DeliveredRecording]:
    return [sent(f"{content}.wav", content * 64, None) for content in contents]


def test_groups_without_scores_are_kept_once(tmp_path: Path) -> None:
    first = plan_add([], [order("1", "2", "3")], FolderState(), tmp_path)
    names = ["audio/1.wav", "audio/2.wav", "audio/3.wav"]
    assert [[clip.audio_file for clip in group] for group in first.groups] == [names]
    assert [one.clip.audio_file for one in first.ordered] == names
    (tmp_path / "audio").mkdir()
    for name in names:
        (tmp_path / name).touch()
    again = plan_add([], [order("1", "2", "3")], FolderState(groups=first.groups), tmp_path)
    assert (again.ordered, again.groups, again.changes) == ([], first.groups, False)
    more = plan_add([], [order("3", "4")], FolderState(groups=first.groups), tmp_path)
    assert [one.clip.audio_file for one in more.ordered] == ["audio/4.wav"]
    assert [clip.audio_file for clip in more.groups[1]] == ["audio/3.wav", "audio/4.wav"]


def test_a_recording_with_a_score_leaves_its_ordered_group(tmp_path: Path) -> None:
    first = plan_add([], [order("1", "2", "3")], FolderState(), tmp_path)
    scored = plan_add([sent("x.wav", "2" * 64, 70.0)], [], FolderState(groups=first.groups), tmp_path)
    assert [one.clip.audio_file for one in scored.added] == ["audio/2.wav"]  # with its existing name
    assert [[clip.audio_file for clip in group] for group in scored.groups] == [["audio/1.wav", "audio/3.wav"]]
    state = FolderState([Clip("audio/1.wav", 80.0, sha256="1" * 64)])
    late = plan_add([], [order("1", "2")], state, tmp_path)
    assert (late.ordered, late.groups) == ([], [])
    assert len(late.notes) == 2
    assert "1 of 2 ordered" in late.notes[0]


@pytest.mark.parametrize(
    ("delivered", "name"),
    [
        ("a.m4a", "audio/a.m4a"),
        ("录音/甜蜜 蜜.M4A", "audio/甜蜜_蜜.m4a"),
        ("C:\\new\\b.wav", "audio/b.wav"),
        ("https://host/x/part%201.mp3?sig=1#t", "audio/part_1.mp3"),
        ("s3://bucket/a/b.flac", "audio/b.flac"),
        ('quo"te\nline.wav', "audio/quo_te_line.wav"),
        ("\N{PARTY POPPER}.wav", "audio/\N{PARTY POPPER}.wav"),
        ("../../.hidden.wav", "audio/hidden.wav"),
        ("https://host/get?id=7", "audio/get"),
        ("https://host/", f"audio/{SHA[:16]}"),
        ("e\u0301.wav", "audio/\u00e9.wav"),
    ],
)
def test_names_are_readable_and_safe(delivered: str, name: str) -> None:
    assert recording_name(delivered, SHA, set()) == name


def test_a_name_in_use_gets_digits_of_the_hash() -> None:
    assert recording_name("A.WAV", SHA, {normalized_name("audio/a.wav")}) == "audio/A-5fd25fd2.wav"


@given(st.text(min_size=1, max_size=300))
def test_every_name_is_one_file_below_audio(delivered: str) -> None:
    name = recording_name(delivered, SHA, set())
    folder, _, base = name.partition("/")
    assert folder == "audio"
    assert base
    assert not {"/", "\0"} & set(base)
    assert not base.startswith((".", "-"))
    assert base == base.strip()
    assert len(base.encode()) <= LONGEST + 20


def test_messages_about_many_rows_are_short(tmp_path: Path) -> None:
    rows = [sent(f"{number}.wav", "1" * 64, number % 100, number, singer_id=f"s{number}") for number in range(5_000)]
    with pytest.raises(DataError, match=r"1 of 1 .*4995 more") as caught:
        plan(tmp_path, *rows)
    assert len(str(caught.value)) < 500
    assert all(len(note) < 500 for note in plan(tmp_path, *rows, on_conflict="mean").notes)
    groups = [order(str(number)) for number in range(300)]
    assert len(plan_add([], groups, FolderState(), tmp_path).notes) == 1
