from pathlib import Path

import pytest

from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.data.versions.changes import last_scores
from audioscore.errors import DataError


def test_scores_of_every_split_by_source_without_those_that_have_none(tmp_path: Path) -> None:
    assert last_scores(tmp_path) == {}  # never sorted
    write_index(tmp_path / "index" / "train.json", [[Clip("a", 80.0, source="ktv"), Clip("b", 70.0)], [Clip("c")]])
    write_index(tmp_path / "index" / "test.json", [[Clip("d", 60.0, source="ktv")]])
    assert last_scores(tmp_path) == {"ktv": [80.0, 60.0], "": [70.0]}


def test_an_index_in_the_wrong_order_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    rows = '[[{"audio_file": "a", "score": 60}, {"audio_file": "b", "score": 70}]]'
    (tmp_path / "index" / "val.json").write_text(rows)
    with pytest.raises(DataError, match=r"val\.json, group 1: a \(score 60, position 1\).* b"):
        last_scores(tmp_path)
