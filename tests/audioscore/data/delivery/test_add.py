import json
import os
import shutil
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from audioscore.data.delivery.add import (
    AddResult,
    DeliveryRefused,
    DeliveryRequest,
    add_delivery,
    incoming_folder,
    remove_leftovers,
)
from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.labels import read_labels
from audioscore.errors import DataError, GateRefused, UsageError


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """The data folder, not created yet."""
    return tmp_path / "songs"


def add(labels: Path, folder: Path, *, dry_run: bool = False, **more: Any) -> AddResult:
    return add_delivery(
        DeliveryRequest(labels, **more), folder, ValidationSettings(max_rejected_share=0.5), dry_run=dry_run
    )


def table(folder: Path, rows: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("audio_file,score,singer_id,source\n" + rows, encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_delivery_becomes_a_data_folder(delivery: Path, songs: Path) -> None:
    labels = table(delivery, "t0.wav,80,001,ktv\nt1.wav,\uff19\uff10,002,acapella\n")
    planned = add(labels, songs, dry_run=True).plan.added
    assert [one.clip.audio_file for one in planned] == ["audio/t0.wav", "audio/t1.wav"]
    assert not songs.exists()
    added = add(labels, songs)
    clips = read_labels(songs / "labels.csv").clips
    assert [(clip.audio_file, clip.score, clip.singer_id, clip.source) for clip in clips] == [
        ("audio/t0.wav", 80.0, "001", "ktv"),
        ("audio/t1.wav", 90.0, "002", "acapella"),
    ]
    assert all(len(clip.sha256 or "") == 64 for clip in clips)
    assert (songs / "audio" / "t0.wav").read_bytes() == (delivery / "t0.wav").read_bytes()
    assert not (songs / "audio" / "t0.wav").samefile(delivery / "t0.wav")
    assert (added.refused, added.to_json()["added"]) == ([], ["audio/t0.wav", "audio/t1.wav"])
    assert sorted(path.name for path in songs.parent.iterdir()) == ["delivery", "songs"]


def test_adding_twice_restores_damaged_files_only(delivery: Path, songs: Path) -> None:
    labels = table(delivery, "".join(f"t{number}.wav,{60 + number},{number},ktv\n" for number in range(6)))
    add(labels, songs)
    before = snapshot(songs)
    again = add(labels, songs)
    assert (again.plan.added, again.plan.updated, again.plan.unchanged) == ([], [], 6)
    assert snapshot(songs) == before
    (songs / "audio" / "t0.wav").write_bytes(b"half a")
    assert [one.clip.audio_file for one in add(labels, songs).plan.restored] == ["audio/t0.wav"]
    assert {name: body for name, (body, _) in snapshot(songs).items()} == {
        name: body for name, (body, _) in before.items()
    }


def test_a_new_score_is_an_update_and_other_cells_stay(delivery: Path, songs: Path) -> None:
    add(table(delivery, "t0.wav,80,001,ktv\nt1.wav,70,002,ktv\n"), songs)
    path = songs / "labels.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},note", *(f"{row},by Li" for row in rows)]) + "\n")
    shutil.copy(delivery / "t0.wav", delivery / "renamed.wav")
    added = add(table(delivery, "renamed.wav,82.5,001,ktv\nt2.wav,60,,\n", "more.csv"), songs)
    assert [(one.clip.audio_file, one.cells) for one in added.plan.updated] == [("audio/t0.wav", {"score": "82.5"})]
    text = path.read_text()
    assert text.count("by Li") == 2
    assert "audio/t0.wav,82.5,001,ktv" in text
    assert [clip.score for clip in read_labels(path).clips] == [82.5, 70.0, 60.0]


def test_a_workbook_with_chinese_headers_and_two_sheets(delivery: Path, songs: Path) -> None:
    book = openpyxl.Workbook()
    for sheet, indices in ((book.worksheets[0], (0, 1)), (book.create_sheet("八月"), (2, 3))):
        sheet.append(["录音", "标记分数", "歌曲名称", "备注"])
        for number in indices:
            sheet.append([f"t{number}.wav", 70 + number, "甜蜜蜜", "x"])
    book.save(delivery / "new.xlsx")
    added = add(delivery / "new.xlsx", songs, source="ktv")
    assert len(added.plan.added) == 4
    assert added.delivery.columns == {"audio_file": "录音", "score": "标记分数", "song_id": "歌曲名称"}
    assert added.to_json()["left_out"] == ["备注"]


def test_unusable_rows_are_listed_and_the_others_added(delivery: Path, songs: Path) -> None:
    (delivery / "broken.m4a").write_text("no audio")
    rows = "t0.wav,80,,\ngone.wav,70,,\nbroken.m4a,60,,\nt1.wav,high,,\nt2.wav,75,,\nt3.wav,65,,\n"
    added = add(table(delivery, rows), songs)
    assert [one.clip.audio_file for one in added.plan.added] == ["audio/t0.wav", "audio/t2.wav", "audio/t3.wav"]
    refused = sorted((row.row, row.audio_file) for row in added.refused)
    assert refused == [(2, "gone.wav"), (3, "broken.m4a"), (4, "t1.wav")]
    reasons = {row.row: row.reason for row in added.refused}
    assert str(delivery) in reasons[2]
    assert "'high'" in reasons[4]


@pytest.mark.parametrize(
    ("good", "bad", "figures"),
    [(1, 2, r"2 of 3 .*\(67%\).*50%.*row 2 \(gone0\.wav\)"), (0, 20, r"20 of 20 .*\(100%\)")],
)
def test_too_many_unusable_rows_are_refused(delivery: Path, songs: Path, good: int, bad: int, figures: str) -> None:
    rows = "t0.wav,80,,\n" * good + "".join(f"gone{number}.wav,80,,\n" for number in range(bad))
    with pytest.raises(GateRefused, match=figures) as refusal:
        add(table(delivery, rows), songs)
    assert isinstance(refusal.value, DeliveryRefused)
    assert len(refusal.value.result.refused) == bad
    assert not songs.exists()


def test_names_outside_the_root_are_refused(delivery: Path, songs: Path) -> None:
    shutil.copy(delivery / "t0.wav", delivery.parent / "secret.wav")
    added = add(table(delivery, "../secret.wav,80,,\nt1.wav,70,,\n"), songs, audio=str(delivery))
    (row,) = added.refused
    assert (row.row, row.audio_file) == (1, "../secret.wav")
    assert ".." in row.reason


def test_an_index_without_scores_is_kept_in_order_json(delivery: Path, songs: Path) -> None:
    index = delivery / "train.json"
    index.write_text('[[{"audio_file": "/old/disk/t2.wav",}, {"audio_file": "/old/disk/t0.wav",},],]')
    added = add(index, songs, audio=str(delivery))
    assert [one.clip.audio_file for one in added.plan.ordered] == ["audio/t2.wav", "audio/t0.wav"]
    order = json.loads((songs / "order.json").read_text())
    assert [entry["audio_file"] for entry in order[0]] == ["audio/t2.wav", "audio/t0.wav"]
    assert (songs / "labels.csv").read_text() == "audio_file,score\n"
    before = snapshot(songs)
    assert not add(index, songs, audio=str(delivery)).plan.changes
    assert snapshot(songs) == before
    add(table(delivery, "t0.wav,80,,\n"), songs)
    assert json.loads((songs / "order.json").read_text()) == []  # a single recording has no order


def test_raters_are_kept_and_their_agreement_is_reported(delivery: Path, songs: Path) -> None:
    labels = delivery / "labels.csv"
    labels.write_text("file,评分1,评分2,评分3\nt0.wav,80,82,\nt1.wav,70,,71\nt2.wav,60,61,66\nt3.wav,90,91,92\n")
    added = add(labels, songs)
    assert added.agreement is not None
    assert added.agreement.raters == 3
    clips = read_labels(songs / "labels.csv").clips
    assert [clip.raters for clip in clips] == [(80, 82), (70, None, 71), (60, 61, 66), (90, 91, 92)]
    assert [clip.score for clip in clips] == pytest.approx([81, 70.5, 62.333333, 91])


def test_one_process_at_a_time(songs: Path) -> None:
    refused = pytest.raises(DataError, match=rf"songs: .*\({os.getpid()}\)")
    with incoming_folder(songs), refused, incoming_folder(songs):
        pass
    with incoming_folder(songs) as incoming:
        assert incoming.is_dir()
    assert list(songs.parent.iterdir()) == []


def test_sweep_removes_temporary_files_of_a_killed_process_only(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    temporary = [tmp_path / ".labels.csv.ab12cd_9.csv", tmp_path / "index" / ".train.json.abcdefgh.json"]
    kept = [tmp_path / ".notes", tmp_path / ".labels.csv.swp", tmp_path / "labels.csv"]
    for path in temporary + kept:
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_table_of_raters_keeps_its_scores(delivery: Path, songs: Path) -> None:
    songs.mkdir()
    (songs / "labels.csv").write_text(f"audio_file,rater_1,rater_2\n{delivery / 't0.wav'},80,90\n")
    add(table(delivery, "t1.wav,70,,\n"), songs)
    assert [clip.score for clip in read_labels(songs / "labels.csv").clips] == [85.0, 70.0]


def test_headers_of_the_folder_and_of_the_delivery_are_independent(delivery: Path, songs: Path) -> None:
    songs.mkdir()
    (songs / "labels.csv").write_text(f"audio_file;Mine;notes, free, text, here\n{delivery / 't0.wav'};80;x\n")
    (delivery / "new.csv").write_text("audio_file,Points\nt1.wav,70\n")
    add(delivery / "new.csv", songs, column_map={"score": "Points"}, own_columns={"score": "Mine"})
    clips = read_labels(songs / "labels.csv", column_map={"score": "Mine"}).clips
    assert [clip.score for clip in clips] == [80.0, 70.0]
    assert (songs / "labels.csv").read_text().startswith('audio_file,Mine,"notes, free, text, here",sha256\n')


def test_names_in_the_folder_are_kept(delivery: Path, songs: Path) -> None:
    (songs / "audio").mkdir(parents=True)
    shutil.copy(delivery / "t0.wav", songs / "audio" / "two  spaces.wav")
    add(table(songs, "audio/two  spaces.wav,80,,\n", "new.csv"), songs)
    (clip,) = read_labels(songs / "labels.csv").clips
    assert clip.audio_file == "audio/two  spaces.wav"
    assert (songs / clip.audio_file).is_file()


def test_order_with_scores_is_refused_before_anything_changes(delivery: Path, songs: Path) -> None:
    songs.mkdir()
    (songs / "order.json").write_text('[[{"audio_file": "a", "score": 90, "mine": 1}]]')
    with pytest.raises(DataError, match=r"order\.json: .*\b1 scores \(a\)"):
        add(table(delivery, "t0.wav,80,,\n"), songs)
    assert [path.name for path in songs.iterdir()] == ["order.json"]


def test_an_http_root_is_refused(delivery: Path, songs: Path) -> None:
    with pytest.raises(UsageError, match=r"--audio https://host/x\b.*s3://"):
        add(table(delivery, "t0.wav,80,,\n"), songs, audio="https://host/x")


def test_names_in_another_spelling_are_found(delivery: Path, songs: Path) -> None:
    (delivery / "t0.wav").rename(delivery / "Zoe\u0308.wav")
    added = add(table(delivery, "zo\u00eb.WAV,80,,\nT1.wav,81,,\n"), songs)
    assert (len(added.plan.added), added.refused) == (2, [])


def test_contradictions_of_a_delivery_are_notes(delivery: Path, songs: Path) -> None:
    added = add(table(delivery, "t0.wav,80,001,ktv\nt1.wav,81,1,ktv\nt2.wav,82,4.4E+17,ktv\n"), songs)
    [note] = added.to_json()["notes"]
    assert "'001' = '1'" in note
    assert [(row.row, "4.4E+17" in row.reason) for row in added.refused] == [(3, True)]
    index = delivery / "order.json"
    pairs = [["t3.wav", "t4.wav"], ["t4.wav", "t3.wav"], ["t5.wav"], []]
    index.write_text(json.dumps([[{"audio_file": name} for name in group] for group in pairs]), encoding="utf-8")
    notes = add(index, songs).notes
    assert [any(figure in note for note in notes) for figure in ("1 of 4", "groups 1, 2")] == [True, True]


def test_a_file_in_the_folder_whose_name_is_in_gbk_is_added_once(delivery: Path, songs: Path) -> None:
    (songs / "audio").mkdir(parents=True)
    on_disk = songs / "audio" / os.fsdecode("歌.wav".encode("gbk"))
    shutil.copy(delivery / "t0.wav", on_disk)
    new = table(delivery, "audio/歌.wav,80,001,\n", "new.csv")
    assert add(new, songs, audio=str(songs)).plan.changes
    assert [clip.audio_file for clip in read_labels(songs / "labels.csv").clips] == ["audio/歌.wav"]
    before = snapshot(songs)
    assert not add(new, songs, audio=str(songs)).plan.changes
    assert snapshot(songs) == before
    assert list((songs / "audio").iterdir()) == [on_disk]


def test_scores_for_ordered_files_in_gbk(delivery: Path, songs: Path) -> None:
    songs.mkdir()
    on_disk = [os.fsdecode(f"{name}.wav".encode("gbk")) for name in "歌曲"]
    for number, name in enumerate(on_disk):
        shutil.copy(delivery / f"t{number}.wav", songs / name)
    (songs / "order.json").write_text(json.dumps([[{"audio_file": f"{name}.wav"} for name in "歌曲"]]))
    assert len(add(table(delivery, "t0.wav,80,001,\n", "new.csv"), songs).plan.added) == 1
    assert [clip.audio_file for clip in read_labels(songs / "labels.csv").clips] == ["歌.wav"]
    assert sorted(path.name for path in songs.glob("*.wav")) == sorted(on_disk)
    (songs / on_disk[0]).write_bytes(b"damaged")
    add(table(delivery, "t0.wav,80,001,\n", "new.csv"), songs)
    assert (songs / on_disk[0]).read_bytes() == (delivery / "t0.wav").read_bytes()


def test_rows_of_worksheets_are_named_in_refusals(delivery: Path, songs: Path) -> None:
    book = openpyxl.Workbook()
    for sheet, rows in ((book.worksheets[0], [("t0.wav", 70)]), (book.create_sheet("九月"), [("t0.wav", 80)])):
        sheet.append(["录音", "标记分数"])
        for row in rows:
            sheet.append(row)
    book.save(delivery / "new.xlsx")
    with pytest.raises(DataError, match=r"t0\.wav \(sheet 九月, row 2\)"):
        add(delivery / "new.xlsx", songs)
    book.worksheets[1]["A2"] = "x.m4a"
    book.worksheets[0]["A2"] = "y.m4a"
    book.save(delivery / "new.xlsx")
    with pytest.raises(DeliveryRefused, match=r": [(]y\.m4a[)]: sheet .*, [(]x\.m4a[)]: sheet 九月, row 2"):
        add(delivery / "new.xlsx", songs)
