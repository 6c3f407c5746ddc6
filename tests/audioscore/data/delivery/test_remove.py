import datetime
import hashlib
import json
import os
from pathlib import Path

import pytest

from audioscore.data.delivery.add import DeliveryRequest, add_delivery
from audioscore.data.delivery.folder_state import Withdrawn, read_withdrawn
from audioscore.data.delivery.remove import delete_copies, remove_recordings
from audioscore.data.gate.rejections import ValidationSettings
from audioscore.data.labels import read_labels
from audioscore.errors import DataError, UsageError
from audioscore.files import sha256_of

DAY = datetime.date(2026, 1, 31)


@pytest.fixture
def songs(delivery: Path, tmp_path: Path) -> Path:
    rows = "".join(f"t{number}.wav,{60 + number},{'AB'[number % 2]}\n" for number in range(4))
    (delivery / "labels.csv").write_text("audio_file,score,singer_id\n" + rows)
    (delivery / "order.json").write_text('[[{"audio_file": "t4.wav"}, {"audio_file": "t5.wav"}]]')
    folder = tmp_path / "songs"
    for name in ("labels.csv", "order.json"):
        add_delivery(DeliveryRequest(delivery / name), folder, ValidationSettings())
    return folder


def names(folder: Path) -> list[str]:
    return [clip.audio_file for clip in read_labels(folder / "labels.csv").clips]


def test_a_recording_is_removed_from_table_folder_and_index(songs: Path, delivery: Path) -> None:
    content = sha256_of(songs / "audio" / "t1.wav")
    (songs / "index").mkdir()
    (songs / "index" / "train.json").write_text(
        '[[{"audio_file": "audio/t1.wav", "score": 61}, {"audio_file": "audio/t0.wav", "score": 60}]]'
    )
    removed = remove_recordings(songs, ["audio/t1.wav"], today=DAY)
    assert removed.names == ["audio/t1.wav"]
    assert names(songs) == ["audio/t0.wav", "audio/t2.wav", "audio/t3.wav"]
    assert not (songs / "audio" / "t1.wav").exists()
    assert (delivery / "t1.wav").exists()
    assert json.loads((songs / "index" / "train.json").read_text()) == [[{"audio_file": "audio/t0.wav", "score": 60.0}]]
    md5 = hashlib.md5((delivery / "t1.wav").read_bytes()).hexdigest()
    assert read_withdrawn(songs) == {content: Withdrawn("2026-01-31", md5, (delivery / "t1.wav").stat().st_size)}
    added = add_delivery(DeliveryRequest(delivery / "labels.csv"), songs, ValidationSettings(max_rejected_share=0.5))
    assert [(row.audio_file, row.row) for row in added.refused] == [("t1.wav", 2)]
    assert "audio/t1.wav" not in names(songs)


def test_by_singer_by_content_and_from_order_json(songs: Path) -> None:
    assert remove_recordings(songs, singers=["a"]).names == ["audio/t0.wav", "audio/t2.wav"]
    content = sha256_of(songs / "audio" / "t3.wav")
    assert remove_recordings(songs, [content.upper()]).names == ["audio/t3.wav"]
    assert names(songs) == ["audio/t1.wav"]
    remove_recordings(songs, ["audio/t4.wav"])
    assert not (songs / "audio" / "t4.wav").exists()
    groups = json.loads((songs / "order.json").read_text())
    assert [[entry["audio_file"] for entry in group] for group in groups] == [["audio/t5.wav"]]


def test_an_unknown_name_is_refused_before_any_change(songs: Path) -> None:
    with pytest.raises(DataError, match=r"songs: 2 of 3 .*gone\.wav.*\bC\b"):
        remove_recordings(songs, ["audio/t0.wav", "gone.wav"], singers=["C"])
    assert len(names(songs)) == 4
    with pytest.raises(UsageError):
        remove_recordings(songs)
    with pytest.raises(DataError, match=str(songs / "gone")):
        remove_recordings(songs / "gone", ["a"])


def test_a_file_outside_the_folder_is_kept(songs: Path, delivery: Path) -> None:
    with (songs / "labels.csv").open("a") as handle:
        handle.write(f"{delivery / 't5.wav'},70,\n")
    removed = remove_recordings(songs, [str(delivery / "t5.wav")])
    assert removed.kept == [str(delivery / "t5.wav")]
    assert (delivery / "t5.wav").exists()


def test_copies_are_found_by_content(tmp_path: Path) -> None:
    content = hashlib.sha256(b"voice").hexdigest()
    for name, body in {
        "runs/r1/data/x.wav": b"voice", f"features/k/ab/{content}.safetensors": b"else", "runs/r1/other.wav": b"else",
        "runs/r1/same_size": b"VOICE",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    assert delete_copies(tmp_path, {content: Withdrawn("2026-01-31", None, 5)}) == 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["other.wav", "same_size"]


def test_every_row_of_a_named_recording_is_removed_and_no_other(songs: Path, delivery: Path) -> None:
    other = songs / "audio" / "T1.wav"
    other.write_bytes((delivery / "t5.wav").read_bytes())
    with (songs / "labels.csv").open("a") as handle:
        handle.write("audio/T1.wav,70,C\naudio/t1.wav,,B\n./audio/t1.wav,61,B\n")
    assert remove_recordings(songs, ["audio/t1.wav"]).names == ["./audio/t1.wav", "audio/t1.wav"]
    assert other.exists()
    assert names(songs) == ["audio/t0.wav", "audio/t2.wav", "audio/t3.wav", "audio/T1.wav"]
    assert "t1.wav" not in (songs / "labels.csv").read_text()


def test_rows_without_a_score_belong_to_their_singer(songs: Path) -> None:
    (songs / "audio" / "x.wav").write_bytes(b"x")
    with (songs / "labels.csv").open("a") as handle:
        handle.write("audio/x.wav,,Z\n")
    assert remove_recordings(songs, singers=["z"]).names == ["audio/x.wav"]
    assert not (songs / "audio" / "x.wav").exists()


def test_removing_again_keeps_the_first_entry(songs: Path) -> None:
    content = sha256_of(songs / "audio" / "t1.wav")
    table = (songs / "labels.csv").read_bytes()
    remove_recordings(songs, ["audio/t1.wav"], today=DAY)
    entry = read_withdrawn(songs)[content]
    (songs / "labels.csv").write_bytes(table)  # as after a kill before the table was changed
    remove_recordings(songs, ["audio/t1.wav"])
    assert read_withdrawn(songs)[content] == entry


def test_a_file_in_another_spelling_is_deleted(songs: Path) -> None:
    (songs / "audio" / "t1.wav").rename(songs / "audio" / "Te\u0301.wav")
    table = songs / "labels.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("audio/t1.wav", "audio/T\u00e9.wav"), encoding="utf-8")
    assert remove_recordings(songs, ["audio/t\u00e9.WAV"]).names == ["audio/Te\u0301.wav"]
    assert names(songs) == ["audio/t0.wav", "audio/t2.wav", "audio/t3.wav"]
    assert sorted(path.name for path in (songs / "audio").iterdir() if path.name.startswith("T")) == []


@pytest.mark.parametrize("written", ["audio/歌.wav", "./audio/歌.WAV"])
@pytest.mark.parametrize("kept_hash", [True, False])
def test_a_file_whose_name_is_in_gbk_is_deleted(songs: Path, written: str, kept_hash: bool) -> None:
    path = songs / "audio" / os.fsdecode("歌.wav".encode("gbk"))
    (songs / "audio" / "t1.wav").rename(path)
    content, table = sha256_of(path), songs / "labels.csv"
    text = table.read_text(encoding="utf-8").replace("audio/t1.wav", written)
    table.write_text(text if kept_hash else text.replace(content, ""), encoding="utf-8")
    (songs / "index").mkdir()
    (songs / "index" / "train.json").write_text('[[{"audio_file": "audio/歌.wav", "score": 61}]]', encoding="utf-8")
    remove_recordings(songs, ["audio/歌.wav"])
    assert not path.exists()
    assert names(songs) == ["audio/t0.wav", "audio/t2.wav", "audio/t3.wav"]
    assert content in read_withdrawn(songs)
    assert "wav" not in (songs / "index" / "train.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("by", ["name", "singer"])
def test_a_recording_without_file_and_hash_is_not_reported_as_removed(songs: Path, by: str) -> None:
    with (songs / "labels.csv").open("a") as handle:
        handle.write("audio/gone.wav,70,B\n")
    before = (songs / "labels.csv").read_bytes()
    with pytest.raises(DataError, match=r"gone\.wav"):
        remove_recordings(
            songs, *([["audio/gone.wav"]] if by == "name" else []), singers=["B"] if by == "singer" else []
        )
    assert (songs / "labels.csv").read_bytes() == before
    assert (songs / "audio" / "t1.wav").exists()
    assert not (songs / "withdrawn.json").exists()


def test_a_killed_removal_of_rows_without_hashes_is_completed(songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (songs / "labels.csv").write_text("audio_file,score,singer_id\naudio/t0.wav,60,A\naudio/t1.wav,,B\n")
    (songs / "order.json").write_text('[[{"audio_file": "audio/t4.wav"}, {"audio_file": "audio/t5.wav"}]]')
    chosen = ["audio/t0.wav", "audio/t1.wav", "audio/t4.wav"]
    with monkeypatch.context() as patch:
        patch.setattr("audioscore.data.delivery.remove._remove_from_indexes", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remove_recordings(songs, chosen)
    assert not (songs / "audio" / "t0.wav").exists()
    assert remove_recordings(songs, chosen).names == chosen
    assert (songs / "labels.csv").read_text() == "audio_file,score,singer_id,sha256\n"
    assert len(read_withdrawn(songs)) == 3


def test_a_singer_is_removed_in_every_spelling(songs: Path) -> None:
    assert remove_recordings(songs, singers=["\uff22\u200b "]).names == ["audio/t1.wav", "audio/t3.wav"]
