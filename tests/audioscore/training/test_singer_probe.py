from typing import Any

import torch

from audioscore.data.clips import Clip
from audioscore.training.adversary import probe_speakers


def clips(singers: list[str | None]) -> list[Clip]:
    return [Clip(f"{place}.wav", 80.0, singer) for place, singer in enumerate(singers)]


def test_singers_that_the_features_tell_apart_are_named(toys: Any) -> None:
    fold, voices = toys.fold(12, 5), torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * 5
    features = [{**clip, "campplus": voices[place % 3]} for place, clip in enumerate(fold.features)]
    found = probe_speakers(toys.network(), clips([f"s{place % 3}" for place in range(12)]), features)
    assert found is not None
    assert found.accuracy > 0.9
    assert found.singers == 3


def test_clips_without_a_singer_and_singers_with_one_clip_are_not_asked(toys: Any) -> None:
    fold = toys.fold(6, 5)
    found = probe_speakers(toys.network(), clips(["a", "a", "b", "b", None, "c"]), fold.features)
    assert found is not None
    assert found.singers == 2
    assert probe_speakers(toys.network(), clips(["a", "a", "b", None, None, "c"]), fold.features) is None
    assert probe_speakers(toys.network(), clips([None] * 6), fold.features) is None
