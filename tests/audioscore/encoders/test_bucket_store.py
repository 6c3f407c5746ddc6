import base64
import hashlib
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open

from audioscore.data.clips import Clip
from audioscore.data.transfer import pool, s3
from audioscore.encoders import bucket_store
from audioscore.encoders.bucket_store import CACHE, LIMIT
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import DataError, ModelError, UsageError
from audioscore.home import home

URI = "s3://encoder-features/team a/特征"
MUQ = EncoderReference("muq", None, None, "ab" * 32, 2)
CAMPPLUS = EncoderReference("campplus", None, None, "cd" * 32)
CLIPS = [f"{number:02x}" * 32 for number in range(12)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.001)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count lists and downloads from now on."""
    calls: Counter[str] = Counter()

    def count(name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        calls[name] += 1
        return call(*given, **named)

    for name in ("list_objects", "download_object"):
        monkeypatch.setattr(bucket_store, name, partial(count, name, getattr(bucket_store, name)))
    return calls


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Return a function that sets another home, as on another machine."""
    homes = iter(range(1000))
    return lambda: monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / f"machine{next(homes)}"))


def frames(clip: str) -> torch.Tensor:
    number = int(clip[:2], 16)
    return torch.randn(number + 2, 8, generator=torch.Generator().manual_seed(number))


def filled(clips: list[str] = CLIPS) -> FeatureStore:
    store = FeatureStore(URI)
    for clip in clips:
        store.put(MUQ, clip, frames(clip), windows=2)
    return store


def key(clip: str, encoder: EncoderReference = MUQ) -> str:
    return f"team a/特征/{encoder.key}/{clip[:2]}/{clip}.safetensors"


def copies() -> list[Path]:
    return sorted(path for path in (home().folder / CACHE).rglob("*") if path.is_file() and path.name != ".lock")


def test_another_machine_reads_bit_for_bit(bucket: Any, elsewhere: Callable[[], None]) -> None:
    filled()
    assert {one.key for one in bucket.objects.all()} == {key(clip) for clip in CLIPS}
    elsewhere()
    store = FeatureStore(URI)
    assert all(store.has(MUQ, clip) for clip in CLIPS)
    assert not store.has(CAMPPLUS, CLIPS[0])
    assert not store.has(MUQ, "ff" * 32)
    store.fetch([(MUQ, "ff" * 32)])
    for read in (store.get, store.windows):
        with pytest.raises(ModelError, match=rf"{MUQ.key} .*\bffffffffffff\b.* {URI}\."):
            read(MUQ, "ff" * 32)
    for clip in CLIPS:
        assert torch.equal(store.get(MUQ, clip), frames(clip))
        assert store.windows(MUQ, clip) == 2


def test_an_object_equals_the_file_in_a_folder(bucket: Any, tmp_path: Path) -> None:
    filled(CLIPS[:1])
    folder = FeatureStore(tmp_path / "store")
    folder.put(MUQ, CLIPS[0], frames(CLIPS[0]), windows=2)
    path = folder.path(MUQ, CLIPS[0])
    assert key(CLIPS[0]) == f"team a/特征/{path.relative_to(folder.root).as_posix()}"
    copy = tmp_path / "object.safetensors"
    copy.write_bytes(bucket.Object(key(CLIPS[0])).get()["Body"].read())
    with safe_open(copy, "pt") as ours, safe_open(path, "pt") as wanted:
        assert ours.metadata() == wanted.metadata()
        assert ours.keys() == wanted.keys() == ["feature"]
        assert torch.equal(ours.get_tensor("feature"), wanted.get_tensor("feature"))
    assert (folder.is_bucket, FeatureStore(URI).is_bucket) == (False, True)
    answer = bucket.meta.client.get_object(Bucket=bucket.name, Key=key(CLIPS[0]), ChecksumMode="ENABLED")
    assert base64.b64decode(answer["ChecksumSHA256"]) == hashlib.sha256(answer["Body"].read()).digest()


def test_each_feature_is_downloaded_once(bucket: Any, asked: Counter[str], elsewhere: Callable[[], None]) -> None:
    filled()
    assert asked == {}
    elsewhere()
    store = FeatureStore(URI)
    for _ in range(2):
        for clip in CLIPS:
            assert store.has(MUQ, clip)
            store.get(MUQ, clip)
    assert asked == {"list_objects": 1, "download_object": len(CLIPS)}
    again = FeatureStore(URI)
    again.fetch((MUQ, clip) for clip in CLIPS)
    for clip in CLIPS:
        again.get(MUQ, clip)
    assert asked == {"list_objects": 1, "download_object": len(CLIPS)}


def test_all_pages_are_listed(bucket: Any, monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None]) -> None:
    filled()
    elsewhere()
    client = s3.connect(16)
    client.meta.events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: params | {"MaxKeys": 5})
    monkeypatch.setattr(bucket_store, "connect", lambda connections: client)
    store = FeatureStore(URI)
    assert all(store.has(MUQ, clip) for clip in CLIPS)


def test_a_stored_feature_is_found(bucket: Any, asked: Counter[str]) -> None:
    store = FeatureStore(URI)
    assert not store.has(MUQ, CLIPS[0])
    store.put(MUQ, CLIPS[0], frames(CLIPS[0]))
    assert store.has(MUQ, CLIPS[0])
    assert torch.equal(store.get(MUQ, CLIPS[0]), frames(CLIPS[0]))
    assert asked == {"list_objects": 1}
    (copy,) = copies()
    copy.write_bytes(copy.read_bytes()[:-4])
    for _ in range(2):
        assert torch.equal(store.get(MUQ, CLIPS[0]), frames(CLIPS[0]))
        assert asked["download_object"] == 1, "the damaged copy is replaced"


def test_eight_features_are_downloaded_at_once(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None]
) -> None:
    filled()
    elsewhere()
    eight = threading.Barrier(8)
    download, lock, begun = s3.download_object, threading.Lock(), list[str]()

    def together(client: Any, name: str, key: str, *more: Any, **named: Any) -> None:
        with lock:
            begun.append(key)
            first = len(begun) <= 8
        if first:
            eight.wait(20)  # fails where fewer come
        download(client, name, key, *more, **named)

    monkeypatch.setattr(bucket_store, "download_object", together)
    FeatureStore(URI).fetch((MUQ, clip) for clip in CLIPS)
    assert len(begun) == len(copies()) == len(CLIPS)


def test_clips_are_downloaded_before_the_first_is_read(
    bucket: Any, asked: Counter[str], elsewhere: Callable[[], None]
) -> None:
    store, below = filled(), prefix_reference(MUQ, 1)
    for clip in CLIPS:
        store.put(below, clip, frames(clip) + 1.0, windows=3)
    elsewhere()
    clips = [Clip(f"{clip[:2]}.wav", 90.0, sha256=clip) for clip in CLIPS]
    features = StoredFeatures(clips, {"muq": MUQ}, ["muq"], FeatureStore(URI), prefix_layer=1)
    assert asked == {}
    assert int(features[5]["windows"]) == 3
    assert asked["download_object"] == len(CLIPS)
    assert all(torch.equal(one["muq"], frames(clip) + 1.0) for one, clip in zip(features, CLIPS, strict=True))
    assert asked["download_object"] == len(CLIPS)


def test_copies_stop_at_the_limit(
    bucket: Any, asked: Counter[str], monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    filled()
    sizes = [bucket.Object(key(clip)).content_length for clip in CLIPS]
    elsewhere()
    limit = (sum(sizes[:4]) + 1) / 1e9
    monkeypatch.setenv(LIMIT, str(limit))
    store = FeatureStore(URI)
    with caplog.at_level(logging.INFO, "audioscore"):
        store.fetch((MUQ, clip) for clip in CLIPS)
    assert [path.stem for path in copies()] == CLIPS[:4]
    assert re.search(rf"\b4 .*{URI}.*\b0\.0 MB", caplog.text)
    assert re.search(rf"\b8 of 12 .*\b{limit:g} GB", caplog.text)
    for _ in range(2):
        assert all(torch.equal(store.get(MUQ, clip), frames(clip)) for clip in CLIPS)
    assert [path.stem for path in copies()] == CLIPS[:4]
    assert asked["download_object"] == 4 + 2 * 8
    elsewhere()
    monkeypatch.setenv(LIMIT, "0")
    assert torch.equal(FeatureStore(URI).get(MUQ, CLIPS[0]), frames(CLIPS[0]))
    assert copies() == []


def test_an_invalid_limit_or_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("gs://b/features", "file:///features", "S3://b/features"):
        with pytest.raises(UsageError, match=rf"^{uri}: .*s3://BUCKET/PREFIX"):
            FeatureStore(uri)
    with pytest.raises(DataError, match=r"^s3:///features: "):
        FeatureStore("s3:///features")
    for text in ("many", "-1", "nan", "inf"):
        monkeypatch.setenv(LIMIT, text)
        with pytest.raises(UsageError, match=rf"^{LIMIT}: .*'{text}'"):
            FeatureStore(URI)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_object_is_named(bucket: Any, elsewhere: Callable[[], None], keep: int) -> None:
    filled(CLIPS[:2])
    whole = bucket.Object(key(CLIPS[0])).get()["Body"].read()
    bucket.put_object(Key=key(CLIPS[0]), Body=whole[:keep])
    elsewhere()
    for _ in range(2):
        store = FeatureStore(URI)
        with pytest.raises(ModelError, match=rf"^s3://encoder-features/{key(CLIPS[0])}: .*\(.+\)"):
            store.get(MUQ, CLIPS[0])
        assert copies() == []
    bucket.put_object(Key=key(CLIPS[0]), Body=whole)
    assert torch.equal(FeatureStore(URI).get(MUQ, CLIPS[0]), frames(CLIPS[0]))


@pytest.mark.parametrize("position", [-1, -30, -96])
def test_a_changed_object_is_refused(bucket: Any, elsewhere: Callable[[], None], position: int) -> None:
    filled(CLIPS[:2])
    changed = bytearray(bucket.Object(key(CLIPS[1])).get()["Body"].read())
    changed[position] ^= 1
    bucket.put_object(Key=key(CLIPS[1]), Body=bytes(changed))
    elsewhere()
    with pytest.raises(ModelError, match=r"\(.*CRC-32 \D*[0-9a-f]{8}, not [0-9a-f]{8}\)"):
        FeatureStore(URI).get(MUQ, CLIPS[1])


def test_a_failed_upload_leaves_nothing(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(URI)
    with monkeypatch.context() as patch:
        cases = (KeyboardInterrupt, KeyboardInterrupt), (DataError("MD5 1, not 2"), ModelError)
        for error, expected in cases:
            patch.setattr(bucket_store, "upload_object", Mock(side_effect=error))
            with pytest.raises(expected, match=str(error) if expected is ModelError else None):
                store.put(MUQ, CLIPS[0], frames(CLIPS[0]))
            assert list(bucket.objects.all()) == copies() == []
    assert not store.has(MUQ, CLIPS[0])


def test_a_missing_bucket_is_named(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    none = FeatureStore("s3://no-such-bucket/features")
    for use in (lambda: none.put(MUQ, CLIPS[0], frames(CLIPS[0])), lambda: none.has(MUQ, CLIPS[0])):
        with pytest.raises(ModelError, match=r"^s3://no-such-bucket/features/muq-.+ http://.+NoSuchBucket"):
            use()
    assert copies() == []


def test_prefixes_and_servers_are_separate(bucket: Any, monkeypatch: pytest.MonkeyPatch, elsewhere: Any) -> None:
    here = FeatureStore(URI).root
    assert FeatureStore(f"{URI}/").root == here
    assert FeatureStore(f"{URI}/b").root != here
    FeatureStore(f"s3://{bucket.name}").put(CAMPPLUS, CLIPS[0], torch.arange(4.0))
    assert [one.key for one in bucket.objects.all()] == [f"{CAMPPLUS.key}/00/{CLIPS[0]}.safetensors"]
    elsewhere()
    assert FeatureStore(f"s3://{bucket.name}/").get(CAMPPLUS, CLIPS[0]).tolist() == [0.0, 1.0, 2.0, 3.0]
    here = FeatureStore(URI).root
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert FeatureStore(URI).root != here
