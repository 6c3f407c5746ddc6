from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.data.clips import Clip
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError
from audioscore.tracking import compare


@pytest.mark.parametrize(
    ("singers", "seen", "left", "left_singers"),
    [("aabb", 3, 1, 1), ("aabb", 2, 2, 1), ("ab", 2, 0, 0)],
)
def test_too_few_unseen_clips_are_counted_before_scoring(
    singers: str, seen: int, left: int, left_singers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [Clip(audio_file=f"{index}.wav", score=70.0, singer_id=one) for index, one in enumerate(singers)]
    held: Any = SimpleNamespace(index=tmp_path, data=tmp_path, clips=lambda split: [(split, one) for one in clips])
    monkeypatch.setattr(compare, "unseen", lambda all_clips, _: all_clips[seen:])
    store = FeatureStore(tmp_path / "features")
    with pytest.raises(DataError, match=rf"^{tmp_path}: {left} of {len(singers)} .*\btest\b.* {left_singers} singers"):
        compare.predict_scorers({"a": tmp_path, "b": tmp_path}, held, "test", store)
