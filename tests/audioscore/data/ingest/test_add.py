import json
import os
import shutil
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from audioscore.data.ingest.add import Added, DeliveryRefused, Request, add_delivery, incoming_of, sweep
from audioscore.data.labels import read_labels
from audioscore.data.validation_settings import ValidationSettings
from audioscore.errors import DataError, GateRefused, UsageError

SETTINGS = ValidationSettings(max_rejected_share=0.5)


def add(labels: Path, folder: Path, *, dry_run: bool = False, **more: Any) -> Added:
    return add_delivery(Request(labels, **more), folder, SETTINGS, dry_run=dry_run)


def table(folder: Path, rows: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("audio_file,score,singer_id,source\n" + rows, encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_delivery_becomes_a_data_folder(takes: Path, tmp_path: Path) -> None:
    labels = table(takes, "t0.wav,80,001,ktv\nt1.wav,\uff19\uff10,002,acapella\n")
    added = add(labels, tmp_path / "songs")
    clips = read_labels(tmp_path / "songs" / "labels.csv").clips
    assert [(clip.audio_file, clip.score, clip.singer_id, clip.source) for clip in clips] == [
        ("audio/t0.wav", 80.0, "001", "ktv"),
        ("audio/t1.wav", 90.0, "002", "acapella"),
    ]
    assert all(len(clip.sha256 or "") == 64 for clip in clips)
    assert (tmp_path / "songs" / "audio" / "t0.wav").read_bytes() == (takes / "t0.wav").read_bytes()
    assert not (tmp_path / "songs" / "audio" / "t0.wav").samefile(takes / "t0.wav")
    assert added.refused == []
    assert added.to_json()["added"] == ["audio/t0.wav", "audio/t1.wav"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delivery", "songs"]


def test_adding_twice_changes_nothing(takes: Path, tmp_path: Path) -> None:
    labels = table(takes, "".join(f"t{take}.wav,{60 + take},{take},ktv\n" for take in range(6)))
    add(labels, tmp_path / "songs")
    before = snapshot(tmp_path / "songs")
    again = add(labels, tmp_path / "songs")
    assert (again.plan.added, again.plan.updated, again.plan.unchanged) == ([], [], 6)
    assert snapshot(tmp_path / "songs") == before


def test_a_new_score_is_an_update_and_everything_else_stays(takes: Path, tmp_path: Path) -> None:
    add(table(takes, "t0.wav,80,001,ktv\nt1.wav,70,002,ktv\n"), tmp_path / "songs")
    path = tmp_path / "songs" / "labels.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},note", *(f"{row},heard by Li" for row in rows)]) + "\n")
    shutil.copy(takes / "t0.wav", takes / "renamed.wav")
    added = add(table(takes, "renamed.wav,82.5,001,ktv\nt2.wav,60,,\n", "more.csv"), tmp_path / "songs")
    assert [(one.clip.audio_file, one.cells) for one in added.plan.updated] == [("audio/t0.wav", {"score": "82.5"})]
    text = path.read_text()
    assert text.count("heard by Li") == 2
    assert "audio/t0.wav,82.5,001,ktv" in text
    assert [clip.score for clip in read_labels(path).clips] == [82.5, 70.0, 60.0]


def test_a_workbook_with_chinese_headers_and_every_sheet(takes: Path, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    first, second = book.active, book.create_sheet("八月")
    assert first is not None
    for sheet, takes_of in ((first, (0, 1)), (second, (2, 3))):
        sheet.append(["录音", "标记分数", "歌曲名称", "备注"])
        for take in takes_of:
            sheet.append([f"t{take}.wav", 70 + take, "甜蜜蜜", "x"])
    book.save(takes / "new.xlsx")
    added = add(takes / "new.xlsx", tmp_path / "songs", source="ktv")
    assert len(added.plan.added) == 4
    assert added.delivery.columns == {"audio_file": "录音", "score": "标记分数", "song_id": "歌曲名称"}
    assert added.to_json()["left_out"] == ["备注"]


def test_a_dry_run_changes_nothing(takes: Path, tmp_path: Path) -> None:
    added = add(table(takes, "t0.wav,80,,\n"), tmp_path / "songs", dry_run=True)
    assert [one.clip.audio_file for one in added.plan.added] == ["audio/t0.wav"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delivery"]


def test_rows_that_cannot_be_used_are_listed_and_the_rest_is_added(takes: Path, tmp_path: Path) -> None:
    (takes / "broken.m4a").write_text("no audio")
    labels = table(takes, "t0.wav,80,,\ngone.wav,70,,\nbroken.m4a,60,,\nt1.wav,high,,\nt2.wav,75,,\nt3.wav,65,,\n")
    added = add(labels, tmp_path / "songs")
    assert [one.clip.audio_file for one in added.plan.added] == ["audio/t0.wav", "audio/t2.wav", "audio/t3.wav"]
    told = {fault.row: fault.reason for fault in added.refused}
    assert set(told) == {2, 3, 4}
    assert told[2].startswith("no such file under")
    assert told[3].startswith("cannot be decoded")
    assert told[4] == "score 'high' is not a number"


def test_too_many_bad_rows_stop_everything(takes: Path, tmp_path: Path) -> None:
    labels = table(takes, "t0.wav,80,,\ngone.wav,70,,\nalso.wav,60,,\n")
    with pytest.raises(GateRefused, match=r"2 of 3 rows cannot be used \(67%\).*at most 50%.*row 2 \(gone\.wav\)"):
        add(labels, tmp_path / "songs")
    assert not (tmp_path / "songs").exists()


def test_names_that_leave_the_root_are_refused(takes: Path, tmp_path: Path, record: object) -> None:
    (tmp_path / "secret.wav").write_bytes((takes / "t0.wav").read_bytes())
    added = add(table(takes, "../secret.wav,80,,\nt1.wav,70,,\n"), tmp_path / "songs", audio=str(takes))
    assert len(added.refused) == 1
    assert "by `..`" in added.refused[0].reason


def test_an_index_of_order_alone_is_kept_beside_the_scores(takes: Path, tmp_path: Path) -> None:
    index = takes / "train.json"
    index.write_text('[[{"audio_file": "/old/disk/t2.wav",}, {"audio_file": "/old/disk/t0.wav",},],]')
    added = add(index, tmp_path / "songs", audio=str(takes))
    assert [one.clip.audio_file for one in added.plan.ordered] == ["audio/t2.wav", "audio/t0.wav"]
    order = json.loads((tmp_path / "songs" / "order.json").read_text())
    assert [entry["audio_file"] for entry in order[0]] == ["audio/t2.wav", "audio/t0.wav"]
    assert (tmp_path / "songs" / "labels.csv").read_text() == "audio_file,score\n"
    before = snapshot(tmp_path / "songs")
    assert not add(index, tmp_path / "songs", audio=str(takes)).plan.changes
    assert snapshot(tmp_path / "songs") == before
    add(table(takes, "t0.wav,80,,\n"), tmp_path / "songs")
    assert json.loads((tmp_path / "songs" / "order.json").read_text()) == []  # a group of one says nothing


def test_raters_are_kept_and_their_agreement_is_told(takes: Path, tmp_path: Path) -> None:
    labels = takes / "labels.csv"
    labels.write_text("file,评分1,评分2,评分3\nt0.wav,80,82,\nt1.wav,70,,71\nt2.wav,60,61,66\nt3.wav,90,91,92\n")
    added = add(labels, tmp_path / "songs")
    assert added.agreement is not None
    assert added.agreement.raters == 3
    clips = read_labels(tmp_path / "songs" / "labels.csv").clips
    assert [clip.raters for clip in clips] == [(80, 82), (70, None, 71), (60, 61, 66), (90, 91, 92)]
    assert [clip.score for clip in clips] == pytest.approx([81, 70.5, 62.333333, 91])


def test_one_process_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(DataError, match=rf"songs is being changed by another process \({os.getpid()}\)")
    with incoming_of(tmp_path / "songs"), refused, incoming_of(tmp_path / "songs"):
        pass
    with incoming_of(tmp_path / "songs") as incoming:
        assert incoming.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    litter = [tmp_path / ".labels.csv.ab12cd_9.csv", tmp_path / "index" / ".train.json.abcdefgh.json"]
    kept = [tmp_path / ".notes", tmp_path / ".labels.csv.swp", tmp_path / "labels.csv"]
    for path in litter + kept:
        path.touch()
    sweep(tmp_path)
    assert not any(path.exists() for path in litter)
    assert all(path.exists() for path in kept)


def test_a_damaged_file_is_put_back(takes: Path, tmp_path: Path) -> None:
    labels = table(takes, "t0.wav,80,,\n")
    add(labels, tmp_path / "songs")
    before = (tmp_path / "songs" / "labels.csv").read_bytes()
    (tmp_path / "songs" / "audio" / "t0.wav").write_bytes(b"half a")
    added = add(labels, tmp_path / "songs")
    assert [one.clip.audio_file for one in added.plan.restored] == ["audio/t0.wav"]
    assert (tmp_path / "songs" / "audio" / "t0.wav").read_bytes() == (takes / "t0.wav").read_bytes()
    assert (tmp_path / "songs" / "labels.csv").read_bytes() == before


def test_a_table_of_raters_keeps_its_scores(takes: Path, tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    songs.mkdir()
    (songs / "labels.csv").write_text(f"audio_file,rater_1,rater_2\n{takes / 't0.wav'},80,90\n")
    add(table(takes, "t1.wav,70,,\n"), songs)
    assert [clip.score for clip in read_labels(songs / "labels.csv").clips] == [85.0, 70.0]


def test_the_folders_own_headers_are_kept_apart_from_the_deliverys(takes: Path, tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    songs.mkdir()
    (songs / "labels.csv").write_text(f"audio_file;Mine;notes, free, text, here\n{takes / 't0.wav'};80;x\n")
    (takes / "new.csv").write_text("audio_file,Points\nt1.wav,70\n")
    add(takes / "new.csv", songs, column_map={"score": "Points"}, own_columns={"score": "Mine"})
    clips = read_labels(songs / "labels.csv", column_map={"score": "Mine"}).clips
    assert [clip.score for clip in clips] == [80.0, 70.0]
    assert (songs / "labels.csv").read_text().startswith('audio_file,Mine,"notes, free, text, here",sha256\n')


def test_names_in_the_folder_stay_as_they_are(tmp_path: Path, takes: Path) -> None:
    songs = tmp_path / "songs"
    (songs / "audio").mkdir(parents=True)
    shutil.copy(takes / "t0.wav", songs / "audio" / "two  spaces.wav")
    add(table(songs, "audio/two  spaces.wav,80,,\n", "new.csv"), songs)
    (clip,) = read_labels(songs / "labels.csv").clips
    assert (songs / clip.audio_file).is_file()
    assert clip.audio_file == "audio/two  spaces.wav"


def test_order_with_scores_is_refused_before_anything_changes(tmp_path: Path, takes: Path) -> None:
    songs = tmp_path / "songs"
    songs.mkdir()
    (songs / "order.json").write_text('[[{"audio_file": "a", "score": 90, "mine": 1}]]')
    with pytest.raises(DataError, match=r"order\.json carries 1 scores \(a\)"):
        add(table(takes, "t0.wav,80,,\n"), songs)
    assert [path.name for path in songs.iterdir()] == ["order.json"]


def test_a_refused_delivery_names_every_bad_row(takes: Path, tmp_path: Path) -> None:
    rows = "".join(f"gone{number}.wav,80,,\n" for number in range(20))
    with pytest.raises(DeliveryRefused, match="20 of 20 rows cannot be used") as refusal:
        add(table(takes, rows), tmp_path / "songs")
    assert len(refusal.value.added.refused) == 20


def test_only_folders_and_s3_are_looked_through(takes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--audio https://host/x: only folders and s3:// are looked through"):
        add(table(takes, "t0.wav,80,,\n"), tmp_path / "songs", audio="https://host/x")
