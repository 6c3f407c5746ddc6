from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from audioscore.encoders.features import EncoderReference
from audioscore.encoders.store import DeletedFeatures, FeatureStore, delete_features
from audioscore.errors import DataError, ModelError

MUQ = EncoderReference("muq", None, None, "ab" * 32, 2)
CAMPPLUS = EncoderReference("campplus", None, None, "cd" * 32)
CLIP = "0123456789abcdef" * 4
GONE, STAYS = "0a" * 32, "0b" * 32


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def test_frames_and_embeddings_are_read_bit_for_bit(store: FeatureStore) -> None:
    generator = torch.Generator().manual_seed(0)
    frames, embedding = torch.randn(50, 32, generator=generator), torch.randn(64, generator=generator)
    store.put(MUQ, CLIP, frames)
    store.put(CAMPPLUS, CLIP, embedding)
    assert torch.equal(store.get(MUQ, CLIP), frames)
    assert torch.equal(store.get(CAMPPLUS, CLIP), embedding)
    assert store.path(MUQ, CLIP) == store.root / MUQ.key / "01" / f"{CLIP}.safetensors"
    values = torch.arange(12.0).reshape(3, 4)
    store.put(MUQ, CLIP, values.T)
    assert torch.equal(store.get(MUQ, CLIP), values.T)
    store.put(MUQ, CLIP, values.half())
    assert store.get(MUQ, CLIP).dtype == torch.float32


def test_windows_are_read_without_the_feature(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(MUQ, CLIP, torch.zeros(9, 2), windows=3)
    store.put(CAMPPLUS, CLIP, torch.zeros(2))
    monkeypatch.delattr(safetensors.torch, "load_file")
    assert (store.windows(MUQ, CLIP), store.windows(CAMPPLUS, CLIP)) == (3, 1)
    for about in (None, {"encoder": "{}"}):
        store.path(MUQ, CLIP).parent.mkdir(parents=True, exist_ok=True)
        save_file({"feature": torch.ones(2)}, store.path(MUQ, CLIP), metadata=about)
        assert store.windows(MUQ, CLIP) == 1


@pytest.mark.parametrize("count", ["0", "-1", "three", ""])
def test_an_invalid_file_is_damaged(store: FeatureStore, count: str) -> None:
    path = store.path(MUQ, CLIP)
    path.parent.mkdir(parents=True)
    save_file({"feature": torch.ones(2)}, path, metadata={"windows": count})
    with pytest.raises(ModelError, match=rf"{CLIP}\.safetensors: .*\(.+\)"):
        store.windows(MUQ, CLIP)
    save_file({"weights": torch.ones(2)}, path)
    with pytest.raises(ModelError, match=rf"{CLIP}\.safetensors: "):
        store.get(MUQ, CLIP)


@pytest.mark.parametrize(
    "change", [{"layer": 3}, {"sha256": "ef" * 32}, {"precision": "bf16"}, {"window": None}, {"window": 20.0}]
)
def test_features_of_another_encoder_are_not_found(store: FeatureStore, change: dict[str, Any]) -> None:
    store.put(MUQ, CLIP, torch.zeros(3, 2))
    assert store.has(MUQ, CLIP)
    assert not store.has(replace(MUQ, **change), CLIP)
    assert not store.has(MUQ, CLIP[::-1])


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_and_missing_files_are_named(store: FeatureStore, keep: int) -> None:
    store.put(MUQ, CLIP, torch.ones(5, 4))
    path = store.path(MUQ, CLIP)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"{CLIP}\.safetensors: .*\(.+\)"):
        store.get(MUQ, CLIP)
    if keep < 40:  # the header is damaged too
        with pytest.raises(ModelError, match=rf"{CLIP}\.safetensors: .*\(.+\)"):
            store.windows(MUQ, CLIP)
    path.unlink()
    for read in (store.get, store.windows):
        with pytest.raises(ModelError, match=rf"{MUQ.key} .*\b{CLIP[:12]}\b"):
            read(MUQ, CLIP)


def test_a_killed_write_leaves_no_partial_file(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    request.getfixturevalue("bucket")
    return "s3://encoder-features/team a/特征"


def test_only_the_recordings_features_are_deleted(uri: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    store = FeatureStore(uri)
    for encoder in (MUQ, CAMPPLUS):
        for recording in (GONE, STAYS):
            store.put(encoder, recording, torch.ones(2, 3))
    assert delete_features(uri, {GONE, "ff" * 32}) == DeletedFeatures(2)
    assert delete_features(uri, {GONE}) == DeletedFeatures(0)
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "another"))
    fresh = FeatureStore(uri)
    assert [fresh.has(encoder, GONE) for encoder in (MUQ, CAMPPLUS)] == [False, False]
    assert [fresh.has(encoder, STAYS) for encoder in (MUQ, CAMPPLUS)] == [True, True]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [("/gone/features", ""), ("s3://nowhere/features", r".*NoSuchBucket"), ("s3:///features", r".*\bbucket\b")],
)
def test_an_unreachable_store_is_named(uri: str, shown: str, bucket: Any) -> None:
    with pytest.raises(DataError, match=rf"^{uri}\b{shown}"):
        delete_features(uri, {GONE})
