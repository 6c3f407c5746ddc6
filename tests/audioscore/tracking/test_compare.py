from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audioscore.data.clips import Clip
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError
from audioscore.tracking import compare


@pytest.mark.parametrize(
    ("singers", "seen", "left"), [("aabb", 3, "1 of 1 singers"), ("aabb", 2, "2 of 1 singers"), ("ab", 2, "0 of 0")]
)
def test_clips_that_cannot_judge_are_counted_before_anything_is_scored(
    singers: str, seen: int, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [Clip(audio_file=f"{place}.wav", score=70.0, singer_id=one) for place, one in enumerate(singers)]
    judged_on: Any = SimpleNamespace(index=tmp_path, data=tmp_path, clips=lambda split: [(split, one) for one in clips])
    monkeypatch.setattr(compare, "unseen", lambda all_clips, _: all_clips[seen:])
    store = FeatureStore(tmp_path / "features")
    told = rf": of {len(singers)} scored clips in split test, {seen} were trained on by a model, which leaves {left}"
    with pytest.raises(DataError, match=told):
        compare.predict_scorers({"a": tmp_path, "b": tmp_path}, judged_on, "test", store)
