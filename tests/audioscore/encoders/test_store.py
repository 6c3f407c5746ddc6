from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from audioscore.encoders.reference import EncoderReference
from audioscore.encoders.store import FeatureStore
from audioscore.errors import ModelError

MUQ = EncoderReference("muq", None, None, "ab" * 32, 2)
CAMPPLUS = EncoderReference("campplus", None, None, "cd" * 32)
CLIP = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def test_frames_and_embeddings_come_back_bit_for_bit(store: FeatureStore) -> None:
    chance = torch.Generator().manual_seed(0)
    frames, embedding = torch.randn(50, 32, generator=chance), torch.randn(64, generator=chance)
    store.put(MUQ, CLIP, frames)
    store.put(CAMPPLUS, CLIP, embedding)
    assert torch.equal(store.get(MUQ, CLIP), frames)
    assert torch.equal(store.get(CAMPPLUS, CLIP), embedding)
    assert store.path(MUQ, CLIP) == store.root / MUQ.key / "01" / f"{CLIP}.safetensors"


def test_views_and_halves_are_stored_whole_as_float32(store: FeatureStore) -> None:
    values = torch.arange(12.0).reshape(3, 4)
    store.put(MUQ, CLIP, values.T)
    assert torch.equal(store.get(MUQ, CLIP), values.T)
    store.put(MUQ, CLIP, values.half())
    assert store.get(MUQ, CLIP).dtype == torch.float32


def test_the_number_of_windows_is_kept_and_read_without_the_feature(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    store.put(MUQ, CLIP, torch.zeros(9, 2), windows=3)
    store.put(CAMPPLUS, CLIP, torch.zeros(2))
    monkeypatch.delattr(safetensors.torch, "load_file")
    assert (store.windows(MUQ, CLIP), store.windows(CAMPPLUS, CLIP)) == (3, 1)


def test_an_older_file_was_heard_in_one_window_as_far_as_it_says(store: FeatureStore) -> None:
    from safetensors.torch import save_file

    for about in (None, {"encoder": "{}"}):
        store.path(MUQ, CLIP).parent.mkdir(parents=True, exist_ok=True)
        save_file({"feature": torch.ones(2)}, store.path(MUQ, CLIP), metadata=about)
        assert store.windows(MUQ, CLIP) == 1


@pytest.mark.parametrize("count", ["0", "-1", "three", ""])
def test_a_number_of_windows_that_cannot_be_is_damage(store: FeatureStore, count: str) -> None:
    from safetensors.torch import save_file

    store.path(MUQ, CLIP).parent.mkdir(parents=True)
    save_file({"feature": torch.ones(2)}, store.path(MUQ, CLIP), metadata={"windows": count})
    with pytest.raises(ModelError, match=rf"{CLIP}\.safetensors is damaged \(.+\)\. Delete it"):
        store.windows(MUQ, CLIP)


@pytest.mark.parametrize("precision_and_window", [("bf16", 30.0), ("fp32", None), ("fp32", 20.0)])
def test_another_precision_or_window_never_answers(store: FeatureStore, precision_and_window: Any) -> None:
    precision, window = precision_and_window
    store.put(MUQ, CLIP, torch.zeros(3, 2))
    assert not store.has(replace(MUQ, precision=precision, window=window), CLIP)


@pytest.mark.parametrize(
    "other", [EncoderReference("muq", None, None, "ab" * 32, 3), EncoderReference("muq", None, None, "ef" * 32, 2)]
)
def test_another_layer_or_other_weights_never_answer(store: FeatureStore, other: EncoderReference) -> None:
    store.put(MUQ, CLIP, torch.zeros(3, 2))
    assert store.has(MUQ, CLIP)
    assert not store.has(other, CLIP)
    assert not store.has(MUQ, CLIP[::-1])


def test_what_is_not_there_is_named(store: FeatureStore) -> None:
    with pytest.raises(ModelError, match=rf"^feature {MUQ.key} of recording {CLIP[:12]} is not in .+ Extract features"):
        store.get(MUQ, CLIP)
    with pytest.raises(ModelError, match=rf"^feature {MUQ.key} of recording {CLIP[:12]} is not in .+ Extract features"):
        store.windows(MUQ, CLIP)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_damaged_file_is_an_error_and_never_a_feature(store: FeatureStore, keep: int) -> None:
    store.put(MUQ, CLIP, torch.ones(5, 4))
    path = store.path(MUQ, CLIP)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"{CLIP}\.safetensors is damaged \(.+\)\. Delete it"):
        store.get(MUQ, CLIP)
    if keep < 40:  # the header is damaged too
        with pytest.raises(ModelError, match=r"is damaged \(.+\)\. Delete it"):
            store.windows(MUQ, CLIP)


def test_a_foreign_safetensors_file_is_an_error(store: FeatureStore) -> None:
    from safetensors.torch import save_file

    store.path(MUQ, CLIP).parent.mkdir(parents=True)
    save_file({"weights": torch.ones(2)}, store.path(MUQ, CLIP))
    with pytest.raises(ModelError, match="is damaged"):
        store.get(MUQ, CLIP)


def test_a_killed_write_leaves_the_old_feature_and_no_half_file(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    store.put(MUQ, CLIP, torch.ones(2, 2))

    def die(_state: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        store.put(MUQ, CLIP, torch.zeros(2, 2))
    with pytest.raises(KeyboardInterrupt):
        store.put(CAMPPLUS, CLIP, torch.zeros(2))
    assert torch.equal(store.get(MUQ, CLIP), torch.ones(2, 2))
    assert not store.has(CAMPPLUS, CLIP)
    assert [path.name for path in store.root.rglob("*") if path.is_file()] == [f"{CLIP}.safetensors"]
