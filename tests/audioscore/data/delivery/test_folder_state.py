import os
from pathlib import Path

import pytest

from audioscore.data.clips import Clip
from audioscore.data.delivery.folder_state import changed_cells, read_folder_state, read_labels_file, write_labels_file
from audioscore.data.labels import read_labels
from audioscore.errors import DataError


def test_unknown_columns_and_rows_are_kept(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("备注,录音,标记分数\n好,a.wav,\uff18\uff10\n,b.wav,bad\n", encoding="gbk")
    table = read_labels_file(tmp_path)
    table.update(1, {"score": "82", "singer_id": "001"})
    table.append(Clip("audio/c.wav", 90.5, raters=(90.0, None, 91.0), sha256="5fd2"))
    assert write_labels_file(tmp_path, table)
    assert (tmp_path / "labels.csv").read_text(encoding="utf-8") == (
        "备注,录音,标记分数,singer_id,sha256,rater_1,rater_2,rater_3\n"
        "好,a.wav,82,001,,,,\n,b.wav,bad,,,,,\n,audio/c.wav,90.5,,5fd2,90,,91\n"
    )
    assert not write_labels_file(tmp_path, table)  # unchanged


def test_a_new_table_is_read_back(tmp_path: Path) -> None:
    table = read_labels_file(tmp_path)
    table.append(Clip("audio/a.wav", 80.0, "001", "two\nlines", source="ktv"))
    table.append(Clip("audio/b.wav", 70.25))
    write_labels_file(tmp_path, table)
    assert read_labels(tmp_path / "labels.csv").clips == [
        Clip("audio/a.wav", 80.0, "001", "two lines", source="ktv", row=1),
        Clip("audio/b.wav", 70.25, row=2),
    ]
    table.remove({1})
    write_labels_file(tmp_path, table)
    assert [clip.audio_file for clip in read_labels(tmp_path / "labels.csv").clips] == ["audio/b.wav"]


def test_a_cell_with_half_of_a_character_is_refused(tmp_path: Path) -> None:
    table = read_labels_file(tmp_path)
    table.append(Clip("audio/\udcb8.wav", 80.0))
    with pytest.raises(DataError, match=r"labels\.csv.*udcb8"):
        write_labels_file(tmp_path, table)
    assert not (tmp_path / "labels.csv").exists()


def test_a_file_whose_name_is_in_gbk_is_not_missing(tmp_path: Path) -> None:
    on_disk = os.fsdecode("歌.wav".encode("gbk"))
    (tmp_path / on_disk).write_bytes(b"x")
    (tmp_path / "labels.csv").write_text("audio_file,score\n歌.wav,80\n", encoding="utf-8")
    state = read_folder_state(tmp_path, read_labels_file(tmp_path))
    assert ([clip.audio_file for clip in state.rows], state.missing) == (["歌.wav"], frozenset())


def test_tables_that_cannot_be_changed_safely_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("audio_file\tscore\n")
    with pytest.raises(DataError, match=r"labels\.tsv.*labels\.csv"):
        read_labels_file(tmp_path)
    (tmp_path / "labels.csv").write_text("audio_file,score\n")
    with pytest.raises(DataError, match=r"labels\.tsv"):
        read_labels_file(tmp_path)
    (tmp_path / "labels.tsv").unlink()
    (tmp_path / "labels.csv").write_text('audio_file,score\na.wav,"80\nb.wav,70\nc.wav,60"\n')
    with pytest.raises(DataError, match=r"labels\.csv.*\b1 rows"):
        read_labels_file(tmp_path)
    for text in ("评分表\naudio_file,score\na.wav,80\n", "audio_file,score\na.wav,80\n\nscore,file\n70,b.wav\n"):
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"labels\.csv\b"):
            read_labels_file(tmp_path)


def test_changed_cells_are_the_differing_values() -> None:
    old = Clip("audio/a.wav", 80.0, "001", "song", raters=(79.0, 81.0), sha256="5fd2")
    assert changed_cells(old, Clip("x.wav", 80.0)) == {}
    new = {"score": "82.5", "singer_id": "002", "source": "ktv"}
    assert changed_cells(old, Clip("x.wav", 82.5, "002", None, "ktv")) == new
    assert changed_cells(old, Clip("x.wav", 90.0, raters=(90.0,))) == {"score": "90", "rater_1": "90", "rater_2": ""}


def test_another_spelling_of_an_id_is_no_change() -> None:
    old = Clip("a", 80.0, "007", "Song", artist="王明")
    assert changed_cells(old, Clip("a", 80.0, "7", "song", artist="王 明")) == {}
    assert changed_cells(old, Clip("a", 80.0, "8", "Song 2")) == {"singer_id": "8", "song_id": "Song 2"}
    assert changed_cells(Clip("a", 80.0), old) == {"singer_id": "007", "song_id": "Song", "artist": "王明"}


def test_recordings_have_the_names_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "Zoe\u0308.wav").write_bytes(b"voice")
    (tmp_path / "labels.csv").write_text(
        "audio_file,score\naudio/Zo\u00eb.WAV,80\naudio/gone.wav,70\n", encoding="utf-8"
    )
    state = read_folder_state(tmp_path, read_labels_file(tmp_path))
    assert [clip.audio_file for clip in state.rows] == ["audio/Zoe\u0308.wav", "audio/gone.wav"]
    assert (state.missing, len(state.rows[0].sha256 or "")) == ({"audio/gone.wav"}, 64)
