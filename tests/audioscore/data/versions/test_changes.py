import json
from pathlib import Path
from typing import Any

import pytest

from audioscore.data.clips import Clip
from audioscore.data.delivery.folder_state import LabelsFile, write_labels_file
from audioscore.data.index import write_index
from audioscore.data.versions.changes import (
    LabelChange,
    OtherFiles,
    ScoreChange,
    compare_tables,
    describe,
    last_scores,
    status,
)
from audioscore.data.versions.repository import commit
from audioscore.data.versions.revision import folder_digest
from audioscore.errors import DataError

BEFORE = [
    Clip("a", 80.0, "s1", "song", "ktv", sha256="A"),
    Clip("b", 70.0, "s1", None, "ktv", sha256="B"),
    Clip("c", 90.0, "s2", None, "acapella", sha256="C"),
    Clip("d", 60.0, None, None, None, sha256="D"),
]
AFTER = [
    Clip("e", 55.0, "s3", None, "ktv", sha256="E"),
    Clip("d", 60.0, None, None, None, sha256="D2"),
    Clip("c2", 92.0, "s2", None, "acapella", sha256="C"),
    Clip("a", 81.0, "s9", "song", "acapella", sha256="A"),
]


def test_every_kind_of_change_is_listed() -> None:
    changes = compare_tables(BEFORE, AFTER)
    assert changes.clips == (4, 4)
    assert (changes.added, changes.gone, changes.renamed, changes.replaced) == (["e"], ["b"], [("c", "c2")], ["d"])
    assert sorted(changes.moved) == [ScoreChange("a", 80.0, 81.0), ScoreChange("c2", 90.0, 92.0)]
    assert changes.relabelled == [
        LabelChange("a", "singer_id", "s1", "s9"),
        LabelChange("a", "source", "ktv", "acapella"),
    ]
    assert changes.sources == {"acapella": (1, 2), "ktv": (2, 1), "no source": (1, 1)}
    assert (changes.mean_before, changes.mean_after, changes.mean_shift) == (75.0, 72.0, 1.0)
    figures = ["4 -> 4", "1 (e)", "1 (b)", "1 (d)", "1 (c -> c2)", "2 (a 80 -> 81, c2 90 -> 92)", "1 (a s1 -> s9)"]
    figures += ["1 (a ktv -> acapella)", "acapella: 1 -> 2", "ktv: 2 -> 1", "75 -> 72"]
    lines = describe(changes)
    assert [figure for figure, line in zip(figures, lines, strict=True) if figure not in line] == []
    assert "+1.00" in lines[5]
    back = compare_tables(AFTER, BEFORE)
    assert (back.added, back.gone, back.renamed) == (["b"], ["e"], [("c2", "c")])
    assert (back.mean_shift, len(back.moved)) == (-1.0, 2)
    document = json.loads(json.dumps(changes.to_json()))
    assert document["moved"][0] == {"audio_file": "a", "before": 80.0, "after": 81.0}
    assert document["sources"]["ktv"] == [2, 1]


def test_the_order_of_rows_is_not_a_change() -> None:
    changes = compare_tables(BEFORE, BEFORE[::-1])
    assert not changes
    assert describe(changes) == []
    assert changes.mean_shift == 0.0
    empty = compare_tables([], [])
    assert (bool(empty), empty.clips, empty.mean_before, empty.mean_shift) == (False, (0, 0), None, None)


def test_clips_without_unique_content_are_compared_by_name() -> None:
    assert compare_tables([Clip("a", 1.0)], [Clip("b", 1.0)]).renamed == []
    twice = [Clip("b", 1.0, sha256="A"), Clip("c", 1.0, sha256="A")]
    changes = compare_tables([Clip("a", 1.0, sha256="A")], twice)
    assert (changes.renamed, changes.added, changes.gone) == ([], ["b", "c"], ["a"])
    assert compare_tables([Clip("a", None)], [Clip("a", 50.0)]).moved == [ScoreChange("a", None, 50.0)]


def write_table(folder: Path, *clips: Clip) -> None:
    table = LabelsFile()
    for clip in clips:
        table.append(clip)
    write_labels_file(folder, table)


@pytest.fixture
def data(data: Path, fill: Any) -> Path:
    """Two clips, recorded with DVC but not in git."""
    fill(data, {"audio/a.wav": "a", "audio/b.wav": "b"})
    write_table(data, Clip("audio/a.wav", 80.0), Clip("audio/b.wav", 70.0))
    commit(data)
    return data


def test_a_clean_folder_and_one_without_a_record(data: Path, git: Any) -> None:
    found = status(data)
    assert found.clean
    assert found.digest == found.version == folder_digest(data)
    assert (found.uncommitted is not None, bool(found.uncommitted)) == (True, False)
    assert (found.since, found.version_since, found.committed) == (None, None, None)
    git(data.parent, "add", "data.dvc")
    git(data.parent, "commit", "-q", "-m", "first")
    found = status(data)
    assert (found.since, found.version_since) == ("HEAD", found.version)
    assert (found.committed is not None, bool(found.committed)) == (True, False)
    (data.parent / "data.dvc").unlink()
    found = status(data)
    assert (found.version, found.clean, found.uncommitted, found.committed) == (None, False, None, None)
    assert found.to_json()["uncommitted"] is None


def test_changes_since_the_record_and_since_a_revision(data: Path, git: Any) -> None:
    git(data.parent, "add", "data.dvc")
    git(data.parent, "commit", "-q", "-m", "first")
    git(data.parent, "tag", "v1")
    first = folder_digest(data)
    write_table(data, Clip("audio/a.wav", 85.0), Clip("audio/b.wav", 70.0))
    (data / "splits.json").write_text("{}")
    second = commit(data).md5
    (data / "audio" / "b.wav").rename(data / "audio" / "c.wav")
    write_table(data, Clip("audio/a.wav", 85.0), Clip("audio/c.wav", 70.0))
    (data / "splits.json").write_text("[]")
    found = status(data, "v1")
    assert (found.clean, found.version, found.version_since) == (False, second, first)
    assert found.uncommitted is not None
    assert found.uncommitted.renamed == [("audio/b.wav", "audio/c.wav")]
    assert found.uncommitted.moved == []
    assert found.other_files == OtherFiles([], [], ["splits.json"])
    assert found.committed is not None
    assert found.committed.moved == [ScoreChange("audio/a.wav", 80.0, 85.0)]
    assert found.other_committed == OtherFiles(["splits.json"], [], [])
    document = json.loads(json.dumps(found.to_json()))
    assert (document["clean"], document["committed"]["mean_shift"], document["since"]) == (False, 2.5, "v1")


def test_an_unknown_revision_and_a_folder_without_a_table_are_refused(data: Path) -> None:
    with pytest.raises(DataError, match=r"\bv9\b"):
        status(data, "v9")
    (data / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"labels\.csv"):
        status(data)


def test_last_scores_are_those_of_every_split_by_source(tmp_path: Path) -> None:
    assert last_scores(tmp_path) == {}  # never sorted
    write_index(tmp_path / "index" / "train.json", [[Clip("a", 80.0, source="ktv"), Clip("b", 70.0)], [Clip("c")]])
    write_index(tmp_path / "index" / "test.json", [[Clip("d", 60.0, source="ktv")]])
    assert last_scores(tmp_path) == {"ktv": [80.0, 60.0], "": [70.0]}


def test_last_scores_refuse_an_index_in_the_wrong_order(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    rows = '[[{"audio_file": "a", "score": 60}, {"audio_file": "b", "score": 70}]]'
    (tmp_path / "index" / "val.json").write_text(rows)
    with pytest.raises(DataError, match=r"val\.json, group 1: a \(score 60, position 1\).* b"):
        last_scores(tmp_path)
