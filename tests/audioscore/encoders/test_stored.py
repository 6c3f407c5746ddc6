from pathlib import Path
from typing import Any

import pytest
import torch

from audioscore.data.clips import Clip
from audioscore.encoders.extract import WINDOWS, Features
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.reference import EncoderReference, Kind
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored import StoredFeatures
from audioscore.errors import ModelError

MUQ = EncoderReference("muq", None, None, "ab" * 32, 2)
CAMPPLUS = EncoderReference("campplus", None, None, "cd" * 32)
REFERENCES: dict[Kind, EncoderReference] = {"muq": MUQ, "campplus": CAMPPLUS}
CLIPS = [Clip(f"audio/{number}.wav", 90.0 - number, sha256=f"{number:064x}") for number in range(5)]


class CountingStore(FeatureStore):
    """A store that notes what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[tuple[str, int]] = []

    def load(self, encoder: EncoderReference, sha256: str) -> tuple[torch.Tensor, int]:
        self.read.append((encoder.key.split("-")[0] + f"-{encoder.layer}", int(sha256, 16)))
        return super().load(encoder, sha256)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    """Clip n has n + 2 frames of n at layer 2, n + 2 of -n at layer 1 in n + 1 windows, and a voice of 10 n."""
    store = CountingStore(tmp_path / "store")
    for number, clip in enumerate(CLIPS):
        store.put(MUQ, str(clip.sha256), torch.full((number + 2, 3), float(number)))
        store.put(prefix_reference(MUQ, 1), str(clip.sha256), torch.full((number + 2, 3), -1.0 * number), number + 1)
        store.put(CAMPPLUS, str(clip.sha256), torch.full((4,), 10.0 * number))
    return store


def stored(store: FeatureStore, clips: list[Clip] = CLIPS, kinds: tuple[Kind, ...] = ("muq",), **more: Any) -> Any:
    return StoredFeatures(clips, REFERENCES, kinds, store, **more)


def numbers(features: list[Features]) -> list[float]:
    return [float(one["muq"][0, 0]) for one in features]


def test_features_come_in_the_clips_order(store: CountingStore) -> None:
    features = stored(store, kinds=("muq", "campplus"))
    assert len(features) == 5
    assert numbers(list(features)) == [0, 1, 2, 3, 4]
    assert [len(one["muq"]) for one in features] == [2, 3, 4, 5, 6]
    assert [one["campplus"].tolist() for one in features] == [[10.0 * number] * 4 for number in range(5)]
    assert [set(one) for one in features] == [{"muq", "campplus"}] * 5
    assert numbers(list(stored(store, CLIPS[::-1]))) == [4, 3, 2, 1, 0]
    assert numbers(list(stored(store, [CLIPS[2], CLIPS[2], CLIPS[0]]))) == [2, 2, 0]


def test_places_are_a_lists(store: CountingStore) -> None:
    features = stored(store)
    assert numbers(features[1:4]) == [1, 2, 3]
    assert numbers(features[::-2]) == [4, 2, 0]
    assert numbers([features[-1], features[-5]]) == [4, 0]
    assert features[5:] == []
    for place in (5, -6):
        with pytest.raises(IndexError):
            features[place]


def test_of_no_clips_there_is_nothing(store: CountingStore) -> None:
    features = stored(store, [])
    assert (len(features), list(features), features[:]) == (0, [], [])


def test_nothing_is_read_before_its_turn(store: CountingStore) -> None:
    features = stored(store, kinds=("muq", "campplus"))
    assert store.read == []
    features[3]
    assert store.read == [("muq-2", 3), ("campplus-None", 3)]


def test_only_the_kinds_asked_for_are_read(store: CountingStore) -> None:
    assert set(stored(store, kinds=("campplus",))[1]) == {"campplus"}
    assert store.read == [("campplus-None", 1)]


def test_what_is_kept_is_read_once(store: CountingStore) -> None:
    features = stored(store)
    for _ in range(3):
        list(features)
    assert store.read == [("muq-2", number) for number in range(5)]


def test_where_nothing_is_kept_it_is_read_each_time(store: CountingStore) -> None:
    features = stored(store, kept_bytes=0)
    for _ in range(3):
        assert numbers(list(features)) == [0, 1, 2, 3, 4]
    assert store.read == 3 * [("muq-2", number) for number in range(5)]


def test_memory_stays_within_what_may_be_kept_and_the_first_stay(store: CountingStore) -> None:
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


def test_a_place_counted_from_the_end_is_kept_as_the_same_clip(store: CountingStore) -> None:
    features = stored(store)
    features[-1], features[4], features[-1]
    assert store.read == [("muq-2", 4)]


def test_a_hidden_state_takes_the_outputs_place_with_its_windows(store: CountingStore) -> None:
    features = stored(store, kinds=("muq", "campplus"), prefix_layer=1)
    assert [set(one) for one in features] == [{"muq", "campplus", WINDOWS}] * 5
    assert numbers(list(features)) == [0, -1, -2, -3, -4]
    assert [int(one[WINDOWS]) for one in features] == [1, 2, 3, 4, 5]
    assert ("muq-2", 0) not in store.read


def test_a_hidden_state_of_muq_says_nothing_to_a_plan_without_it(store: CountingStore) -> None:
    assert set(stored(store, kinds=("campplus",), prefix_layer=1)[0]) == {"campplus"}


def test_layer_0_is_a_hidden_state_too(store: CountingStore) -> None:
    store.put(prefix_reference(MUQ, 0), str(CLIPS[0].sha256), torch.full((4, 3), 7.0), 2)
    found = stored(store, CLIPS[:1], prefix_layer=0)[0]
    assert (found["muq"].tolist(), int(found[WINDOWS])) == ([[7.0] * 3] * 4, 2)


def test_a_kind_that_was_not_extracted_is_named_at_once(store: CountingStore) -> None:
    only: dict[Kind, EncoderReference] = {"muq": MUQ}
    with pytest.raises(ModelError, match=r"^no campplus features were extracted; there are \['muq'\]\.$"):
        StoredFeatures(CLIPS, only, ["muq", "campplus"], store)
    assert store.read == []


def test_a_clip_that_was_not_extracted_is_named_when_it_is_read(store: CountingStore) -> None:
    features = stored(store, [CLIPS[0], Clip("audio/new.wav", 50.0, sha256="12" * 32)])
    assert numbers([features[0]]) == [0]
    with pytest.raises(ModelError, match=rf"feature {MUQ.key} of recording 121212121212 is not in .*Extract features"):
        features[1]


def test_a_hidden_state_that_was_not_extracted_is_named_by_its_layer(store: CountingStore) -> None:
    with pytest.raises(ModelError, match=r"feature muq-abababababababab-l0-e1 of recording 000000000000 is not in"):
        stored(store, prefix_layer=0)[0]
