from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audioscore.config import EncodersSection
from audioscore.data.audio import encode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.encoders.extract import extract_folder, read_extraction, shards_of, share_of
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import UsageError
from audioscore.files import sha256_of
from audioscore.scoring.checkpoint import build_network
from audioscore.scoring.network import raw_outputs

COUNT, SHARDS = 7, 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        wave = rng.normal(0, 0.1, 12_000 + 1000 * number).astype(np.float32)
        encode(wave, 24_000, tmp_path / "data" / "audio" / f"{number}.wav", codec="pcm_s16le")
    return tmp_path / "data"


@pytest.fixture
def clips(data: Path) -> list[Clip]:
    names = [f"audio/{number}.wav" for number in range(COUNT)]
    return [Clip(name, 99.0 - number, sha256=sha256_of(data / name)) for number, name in enumerate(names)]


@pytest.fixture
def index(tmp_path: Path, clips: list[Clip]) -> Path:
    """Three training clips, two in each other split, and one of both train and val."""
    for split, part in (("train", clips[:3]), ("val", [clips[0], *clips[3:5]]), ("test", clips[5:])):
        write_index(tmp_path / "sorted" / "index" / f"{split}.json", [part])
    return tmp_path / "sorted"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "features")
    request.getfixturevalue("bucket")
    return "s3://encoder-features/features"


@pytest.mark.parametrize("shard", ["", "1", "4/4", "1/0", "-1/4", "1/4 ", "a/b", "1/4/2"])
def test_an_invalid_share_is_refused(shard: str) -> None:
    with pytest.raises(UsageError, match=rf"{shard}.*WHICH/COUNT.*0/4.*3/4"):
        share_of(shard)
    assert [share_of(valid) for valid in shards_of(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert shards_of(1) == ["0/1"]
    assert share_of("0/1") == (0, 1)


def test_shards_encode_every_clip_once(
    data: Path, index: Path, section: EncodersSection, store: str, calls: Counter[str], tmp_path: Path
) -> None:
    done = [
        extract_folder(data, index, None, store, section, device="cpu", share=share_of(shard))
        for shard in shards_of(SHARDS)
    ]
    assert [one.computed for one in done] == [3, 2, 2]
    assert calls == {"muq-l2": COUNT, "campplus": COUNT}
    extraction = extract_folder(data, index, tmp_path / "out", store, section, device="cpu")
    assert calls == {"muq-l2": COUNT, "campplus": COUNT}
    assert (extraction.clips, extraction.reused, extraction.computed, extraction.store) == (COUNT, COUNT, 0, store)
    assert read_extraction(tmp_path / "out") == extraction


def test_an_interrupted_share_is_resumed(
    data: Path, index: Path, section: EncodersSection, store: str, calls: Counter[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    put, stored = FeatureStore.put, Counter[str]()

    def break_off(self: FeatureStore, encoder: Any, sha256: str, *more: Any) -> None:
        if stored.total() == 5:
            raise KeyboardInterrupt
        put(self, encoder, sha256, *more)
        stored[encoder.kind] += 1

    monkeypatch.setattr("audioscore.encoders.extract.os.cpu_count", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "put", break_off)
        with pytest.raises(KeyboardInterrupt):
            extract_folder(data, index, None, store, section, device="cpu", share=(0, 2))
    assert stored == {"muq": 3, "campplus": 2}
    calls.clear()
    again = extract_folder(data, index, None, store, section, device="cpu", share=(0, 2))
    assert (again.clips, again.reused, again.computed) == (4, 2, 2)
    assert calls == {"muq-l2": 1, "campplus": 2}  # only what is missing
    calls.clear()
    whole = extract_folder(data, index, tmp_path / "out", store, section, device="cpu")  # 1/2 was never done
    assert (whole.reused, whole.computed) == (4, 3)
    assert calls == {"muq-l2": 3, "campplus": 3}


def test_folder_and_bucket_give_the_same_features_and_scores(
    data: Path, index: Path, clips: list[Clip], section: EncodersSection, bucket: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, uri = tmp_path / "features", "s3://encoder-features/features"
    by_folder = extract_folder(data, index, tmp_path / "a", folder, section, device="cpu")
    by_uri = extract_folder(data, index, tmp_path / "b", uri, section, device="cpu", share=(0, 1))
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "another machine"))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    assert {one.key.removeprefix("features/") for one in bucket.objects.all()} == names
    assert len(names) == 2 * COUNT
    found = [
        StoredFeatures(clips, one.encoders, ["muq", "campplus"], FeatureStore(one.store)) for one in (by_folder, by_uri)
    ]
    for ours, wanted in zip(*found, strict=True):
        assert all(torch.equal(ours[kind], wanted[kind]) for kind in ("muq", "campplus"))
    head = {"dims": {"muq": 32, "campplus": 64}, "width": 8, "hidden": 8, "dropout": 0.2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build_network(head, None, None)
    scores = [raw_outputs(network, features) for features in found]
    assert np.array_equal(scores[0], scores[1])
    assert np.ptp(scores[0]) > 0
