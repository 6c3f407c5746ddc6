from pathlib import Path
from typing import Any

import pytest
import torch

from audioscore.data.clips import Clip
from audioscore.encoders.features import WINDOWS, EncoderReference, Features, Kind
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import ModelError

MUQ = EncoderReference("muq", None, None, "ab" * 32, 2)
CAMPPLUS = EncoderReference("campplus", None, None, "cd" * 32)
REFERENCES: dict[Kind, EncoderReference] = {"muq": MUQ, "campplus": CAMPPLUS}
CLIPS = [Clip(f"audio/{number}.wav", 90.0 - number, sha256=f"{number:064x}") for number in range(5)]


class CountingStore(FeatureStore):
    """A store that records each read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[tuple[str, int]] = []

    def load(self, encoder: EncoderReference, sha256: str) -> tuple[torch.Tensor, int]:
        self.read.append((encoder.key.split("-")[0] + f"-{encoder.layer}", int(sha256, 16)))
        return super().load(encoder, sha256)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    """Clip n has n + 2 frames of n at layer 2, n + 2 of -n at layer 1 in n + 1 windows, and an embedding of 10 n."""
    store = CountingStore(tmp_path / "store")
    for number, clip in enumerate(CLIPS):
        store.put(MUQ, str(clip.sha256), torch.full((number + 2, 3), float(number)))
        store.put(prefix_reference(MUQ, 1), str(clip.sha256), torch.full((number + 2, 3), -1.0 * number), number + 1)
        store.put(CAMPPLUS, str(clip.sha256), torch.full((4,), 10.0 * number))
    return store


def stored(store: FeatureStore, clips: list[Clip] = CLIPS, kinds: tuple[Kind, ...] = ("muq",), **more: Any) -> Any:
    return StoredFeatures(clips, REFERENCES, kinds, store, **more)


def first_values(features: list[Features]) -> list[float]:
    return [float(one["muq"][0, 0]) for one in features]


def test_features_are_in_clip_order(store: CountingStore) -> None:
    features = stored(store, kinds=("muq", "campplus"))
    assert len(features) == 5
    assert first_values(list(features)) == [0, 1, 2, 3, 4]
    assert [len(one["muq"]) for one in features] == [2, 3, 4, 5, 6]
    assert [one["campplus"].tolist() for one in features] == [[10.0 * number] * 4 for number in range(5)]
    assert [set(one) for one in features] == [{"muq", "campplus"}] * 5
    assert first_values(list(stored(store, CLIPS[::-1]))) == [4, 3, 2, 1, 0]
    assert first_values(list(stored(store, [CLIPS[2], CLIPS[2], CLIPS[0]]))) == [2, 2, 0]


def test_indexing_follows_list_rules(store: CountingStore) -> None:
    features = stored(store)
    assert first_values(features[1:4]) == [1, 2, 3]
    assert first_values(features[::-2]) == [4, 2, 0]
    assert first_values([features[-1], features[-5]]) == [4, 0]
    assert features[5:] == []
    for index in (5, -6):
        with pytest.raises(IndexError):
            features[index]
    features = stored(store, [])
    assert (len(features), list(features), features[:]) == (0, [], [])


@pytest.mark.parametrize("more", [{}, {"prefix_layer": 1}])
def test_only_the_requested_clip_and_kinds_are_read(store: CountingStore, more: dict[str, int]) -> None:
    assert set(stored(store, kinds=("campplus",), **more)[1]) == {"campplus"}
    assert store.read == [("campplus-None", 1)]
    store.read.clear()
    stored(store, kinds=("muq", "campplus"))[3]
    assert store.read == [("muq-2", 3), ("campplus-None", 3)]


@pytest.mark.parametrize(("kept", "reads"), [({}, 1), ({"kept_bytes": 0}, 3)])
def test_features_within_the_memory_limit_are_read_once(store: CountingStore, kept: dict[str, int], reads: int) -> None:
    features = stored(store, **kept)
    for _ in range(3):
        assert first_values(list(features)) == [0, 1, 2, 3, 4]
    assert first_values([features[-1]]) == [4]
    assert store.read == reads * [("muq-2", number) for number in range(5)] + [("muq-2", 4)] * (reads > 1)


def test_the_first_clips_stay_in_memory(store: CountingStore) -> None:
    """The first three clips are 2 + 3 + 4 frames of 3 channels of 4 bytes: 108 together; the fourth has 60."""
    features = stored(store, kept_bytes=108 + 59)
    for _ in range(2):
        list(features)
    assert store.read == [("muq-2", number) for number in (0, 1, 2, 3, 4, 3, 4)]
    store.read.clear()
    features = stored(store, kept_bytes=108 + 60)
    for _ in range(2):
        list(features)
    assert store.read == [("muq-2", number) for number in (0, 1, 2, 3, 4, 4)]


def test_a_hidden_state_replaces_the_output(store: CountingStore) -> None:
    features = stored(store, kinds=("muq", "campplus"), prefix_layer=1)
    assert [set(one) for one in features] == [{"muq", "campplus", WINDOWS}] * 5
    assert first_values(list(features)) == [0, -1, -2, -3, -4]
    assert [int(one[WINDOWS]) for one in features] == [1, 2, 3, 4, 5]
    assert ("muq-2", 0) not in store.read
    with pytest.raises(ModelError, match=r"muq-abababababababab-l0-e1 .*000000000000"):
        stored(store, prefix_layer=0)[0]
    store.put(prefix_reference(MUQ, 0), str(CLIPS[0].sha256), torch.full((4, 3), 7.0), 2)
    found = stored(store, CLIPS[:1], prefix_layer=0)[0]
    assert (found["muq"].tolist(), int(found[WINDOWS])) == ([[7.0] * 3] * 4, 2)


def test_a_missing_kind_or_clip_is_refused(store: CountingStore) -> None:
    only: dict[Kind, EncoderReference] = {"muq": MUQ}
    with pytest.raises(ModelError, match=r"campplus.*\['muq'\]"):
        StoredFeatures(CLIPS, only, ["muq", "campplus"], store)
    assert store.read == []
    features = stored(store, [CLIPS[0], Clip("audio/new.wav", 50.0, sha256="12" * 32)])
    assert first_values([features[0]]) == [0]
    with pytest.raises(ModelError, match=rf"{MUQ.key} .*121212121212"):
        features[1]
