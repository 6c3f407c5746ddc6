import base64
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from audioscore.data.clips import Clip
from audioscore.data.transfer import retry, s3
from audioscore.encoders import store_bucket
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.reference import EncoderReference
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.store_bucket import CACHE, LIMIT
from audioscore.encoders.stored import StoredFeatures
from audioscore.errors import DataError, ModelError, UsageError
from audioscore.home import home

URI = "s3://songs/team a/特征"
MUQ = EncoderReference("muq", None, None, "ab" * 32, 2)
CAMPPLUS = EncoderReference("campplus", None, None, "cd" * 32)
CLIPS = [f"{number:02x}" * 32 for number in range(12)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something is listed and downloaded from now on."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        call: Callable[..., Any] = getattr(store_bucket, name)

        def count(*positional: Any, **named: Any) -> Any:
            calls[name] += 1
            return call(*positional, **named)

        monkeypatch.setattr(store_bucket, name, count)

    for name in ("list_objects", "download_object"):
        counted(name)
    return calls


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Go on as on another machine: with another home."""
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


def test_another_machine_reads_what_one_stored_bit_for_bit(bucket: Any, elsewhere: Callable[[], None]) -> None:
    filled()
    assert {one.key for one in bucket.objects.all()} == {key(clip) for clip in CLIPS}
    elsewhere()
    store = FeatureStore(URI)
    assert all(store.has(MUQ, clip) for clip in CLIPS)
    assert not store.has(CAMPPLUS, CLIPS[0])
    assert not store.has(MUQ, "ff" * 32)
    for clip in CLIPS:
        assert torch.equal(store.get(MUQ, clip), frames(clip))
        assert store.windows(MUQ, clip) == 2


def test_an_object_is_the_file_that_a_folder_would_hold(bucket: Any, tmp_path: Path) -> None:
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


def test_an_encoder_is_listed_once_and_each_feature_fetched_once(
    bucket: Any, asked: Counter[str], elsewhere: Callable[[], None]
) -> None:
    filled()
    assert asked == {}, "storing asks for nothing"
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
    assert asked == {"list_objects": 1, "download_object": len(CLIPS)}, "the copies answer"


def test_more_objects_than_a_page_holds_are_listed(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None]
) -> None:
    filled()
    elsewhere()
    connect = s3.connect

    def small_pages(connections: int) -> Any:
        client = connect(connections)
        client.meta.events.register(
            "provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 5}
        )
        return client

    monkeypatch.setattr(store_bucket, "connect", small_pages)
    store = FeatureStore(URI)
    assert all(store.has(MUQ, clip) for clip in CLIPS)


def test_what_this_store_put_is_there_for_it(bucket: Any, asked: Counter[str]) -> None:
    store = FeatureStore(URI)
    assert not store.has(MUQ, CLIPS[0])
    store.put(MUQ, CLIPS[0], frames(CLIPS[0]))
    assert store.has(MUQ, CLIPS[0])
    assert torch.equal(store.get(MUQ, CLIPS[0]), frames(CLIPS[0]))
    assert asked == {"list_objects": 1}, "its copy stayed here"


def test_features_are_fetched_eight_at_once(
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

    monkeypatch.setattr(store_bucket, "download_object", together)
    FeatureStore(URI).fetch((MUQ, clip) for clip in CLIPS)
    assert len(begun) == len(copies()) == len(CLIPS)


def test_clips_are_fetched_before_the_first_is_read(
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
    assert asked["download_object"] == len(CLIPS), "only the layer that is asked for"
    assert all(torch.equal(one["muq"], frames(clip) + 1.0) for one, clip in zip(features, CLIPS, strict=True))
    assert asked["download_object"] == len(CLIPS)


def test_copies_stop_at_the_limit_and_the_rest_is_read_all_the_same(
    bucket: Any,
    asked: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    filled()
    sizes = [bucket.Object(key(clip)).content_length for clip in CLIPS]
    elsewhere()
    monkeypatch.setenv(LIMIT, str((sum(sizes[:4]) + 1) / 1e9))
    store = FeatureStore(URI)
    with caplog.at_level(logging.INFO, "audioscore"):
        store.fetch((MUQ, clip) for clip in CLIPS)
    assert [path.stem for path in copies()] == CLIPS[:4]
    assert f"features: 4 fetched from {URI}, 0.0 MB" in caplog.text
    assert f"8 of 12 features do not fit the {(sum(sizes[:4]) + 1) / 1e9:g} GB of" in caplog.text
    for _ in range(2):
        assert all(torch.equal(store.get(MUQ, clip), frames(clip)) for clip in CLIPS)
    assert [path.stem for path in copies()] == CLIPS[:4], "what came first stays"
    assert asked["download_object"] == 4 + 2 * 8


def test_with_a_limit_of_nothing_nothing_stays(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "0")
    store = filled(CLIPS[:2])
    assert torch.equal(store.get(MUQ, CLIPS[0]), frames(CLIPS[0]))
    assert copies() == []


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_of_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(UsageError, match=rf"^{LIMIT} is '{text}'; give a number of gigabytes, 0 to keep no copies\.$"):
        FeatureStore(URI)


def test_what_is_not_there_is_named_with_the_store(bucket: Any) -> None:
    store = filled(CLIPS[:1])
    store.fetch([(MUQ, "ff" * 32)])
    for read in (store.get, store.windows):
        with pytest.raises(
            ModelError,
            match=rf"^feature {MUQ.key} of recording ffffffffffff is not in {URI}\. Extract features first\.$",
        ):
            read(MUQ, "ff" * 32)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_half_object_is_an_error_that_names_it(bucket: Any, elsewhere: Callable[[], None], keep: int) -> None:
    filled(CLIPS[:2])
    whole = bucket.Object(key(CLIPS[0])).get()["Body"].read()
    bucket.put_object(Key=key(CLIPS[0]), Body=whole[:keep])
    elsewhere()
    for _ in range(2):
        store = FeatureStore(URI)
        with pytest.raises(ModelError, match=rf"^s3://songs/{key(CLIPS[0])} is damaged \(.+\)\. Delete it"):
            store.get(MUQ, CLIPS[0])
        assert copies() == []
    bucket.put_object(Key=key(CLIPS[0]), Body=whole)
    assert torch.equal(FeatureStore(URI).get(MUQ, CLIPS[0]), frames(CLIPS[0])), "no damaged copy stayed"


@pytest.mark.parametrize("place", [-1, -30, -96])
def test_an_object_of_other_values_is_an_error_and_never_a_feature(
    bucket: Any, elsewhere: Callable[[], None], place: int
) -> None:
    filled(CLIPS[:2])
    changed = bytearray(bucket.Object(key(CLIPS[1])).get()["Body"].read())
    changed[place] ^= 1
    bucket.put_object(Key=key(CLIPS[1]), Body=bytes(changed))
    elsewhere()
    with pytest.raises(ModelError, match=r"is damaged \(its values' CRC-32 is [0-9a-f]{8}, not [0-9a-f]{8}\)\. Delete"):
        FeatureStore(URI).get(MUQ, CLIPS[1])


def test_a_damaged_copy_is_fetched_again(bucket: Any, asked: Counter[str]) -> None:
    store = filled(CLIPS[:1])
    (copy,) = copies()
    copy.write_bytes(copy.read_bytes()[:-4])
    assert torch.equal(store.get(MUQ, CLIPS[0]), frames(CLIPS[0]))
    assert asked["download_object"] == 1
    assert torch.equal(store.get(MUQ, CLIPS[0]), frames(CLIPS[0]))
    assert asked["download_object"] == 1


def test_an_upload_that_breaks_off_leaves_no_object_and_no_copy(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(URI)
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(store_bucket, "upload_object", die)
        with pytest.raises(KeyboardInterrupt):
            store.put(MUQ, CLIPS[0], frames(CLIPS[0]))
    assert list(bucket.objects.all()) == copies() == []
    assert not store.has(MUQ, CLIPS[0])


def test_bytes_that_arrived_otherwise_are_refused(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def garble(*_: object) -> None:
        raise DataError("s3://songs/a was stored with MD5 1, not 2. Delete it, and try again.")

    monkeypatch.setattr(store_bucket, "upload_object", garble)
    with pytest.raises(ModelError, match=r"^s3://songs/a was stored with MD5 1, not 2\. Delete it, and try again\.$"):
        FeatureStore(URI).put(MUQ, CLIPS[0], frames(CLIPS[0]))
    assert copies() == []


def test_objects_are_stored_with_their_sha256(bucket: Any) -> None:
    import hashlib

    filled(CLIPS[:1])
    answer = bucket.meta.client.get_object(Bucket="songs", Key=key(CLIPS[0]), ChecksumMode="ENABLED")
    assert base64.b64decode(answer["ChecksumSHA256"]) == hashlib.sha256(answer["Body"].read()).digest()


def test_where_nothing_can_be_written_or_read_one_sentence_says_so(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = FeatureStore("s3://no-such-bucket/features")
    with pytest.raises(
        ModelError, match=r"^s3://no-such-bucket/.+ cannot be stored at http://.+ \(NoSuchBucket\)\. Ch"
    ):
        none.put(MUQ, CLIPS[0], frames(CLIPS[0]))
    with pytest.raises(ModelError, match=r"^s3://no-such-bucket/features/muq-.+ cannot be fetched from .+NoSuchBucket"):
        none.has(MUQ, CLIPS[0])
    assert copies() == []


def test_servers_with_buckets_of_one_name_do_not_share_copies(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = FeatureStore(URI).root
    assert FeatureStore(f"{URI}/").root == here
    assert FeatureStore(f"{URI}/b").root != here
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert FeatureStore(URI).root != here


def test_a_bucket_without_a_prefix_is_a_store(bucket: Any, elsewhere: Callable[[], None]) -> None:
    FeatureStore("s3://songs").put(CAMPPLUS, CLIPS[0], torch.arange(4.0))
    assert [one.key for one in bucket.objects.all()] == [f"{CAMPPLUS.key}/00/{CLIPS[0]}.safetensors"]
    elsewhere()
    assert FeatureStore("s3://songs/").get(CAMPPLUS, CLIPS[0]).tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("uri", ["gs://songs/features", "file:///features", "S3://songs/features"])
def test_another_kind_of_address_is_no_store(uri: str) -> None:
    with pytest.raises(UsageError, match=rf"^{uri} is no feature store\. Give a folder, or s3://BUCKET/PREFIX\.$"):
        FeatureStore(uri)
    with pytest.raises(DataError, match=r"^s3:///features names no bucket\."):
        FeatureStore("s3:///features")
