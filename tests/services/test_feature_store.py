"""Feature stores that several processes write and read, some of which are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch

from audioscore.config import EncodersSection
from audioscore.data.audio import encode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.encoders.extract import extract_folder
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.store import FeatureStore
from audioscore.errors import ModelError
from audioscore.files import sha256_of, write_json

pytestmark = pytest.mark.services

COUNT, KILLS = 24, 2
URI = "s3://features/team a/特征"
# The step of a pod, slowed down so that it can be killed in the middle; it prints a line for each computed feature.
SHARD = """
import json, sys, time
from types import SimpleNamespace
from pathlib import Path
from audioscore.encoders.inference import EncoderOutput
from components.extract_shard import extract_shard
encode = EncoderOutput.encode
def slow(part, recording):
    time.sleep(0.2)
    print(part.reference.kind, flush=True)
    return encode(part, recording)
EncoderOutput.encode = slow
shard, data, index, settings, store = sys.argv[1:]
artifacts = [SimpleNamespace(path=path, metadata={"data_digest": "d"}) for path in (data, index)]
share = SimpleNamespace(path=str(Path(settings).with_name(shard.replace("/", "-"))))
extract_shard.python_func(shard, *artifacts, shard, "code", json.loads(Path(settings).read_text()), store, share)
"""
FETCH = """
import sys
from audioscore.encoders import bucket_store
from audioscore.encoders.bucket_store import FeatureBucket
download, done = bucket_store.download_object, []
def note(*positional, **named):
    download(*positional, **named)
    done.append(1)
bucket_store.download_object = note
FeatureBucket(sys.argv[1]).fetch(sys.stdin.read().split())
print(len(done))
"""


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Recordings under `data`, and their index under `sorted`."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(COUNT):
        wave = rng.normal(0, 0.1, 12_000 + 500 * number).astype(np.float32)
        path = tmp_path / "data" / "audio" / f"{number:02d}.wav"
        encode(wave, 24_000, path, codec="pcm_s16le")
        found.append(Clip(f"audio/{path.name}", 99.0 - number, sha256=sha256_of(path)))
    for split, part in (("train", found[:16]), ("val", found[16:20]), ("test", found[20:])):
        write_index(tmp_path / "sorted" / "index" / f"{split}.json", [part])
    return found


@pytest.fixture
def settings(tiny_encoders: Path, tmp_path: Path) -> Path:
    sources: dict[str, dict[str, Any]] = {
        name: {"source": str(tiny_encoders / f"{name}-small")} for name in ("muq", "campplus")
    }
    sources["muq"]["layer"] = 2
    write_json(tmp_path / "settings.json", {"encoders": sources})
    return tmp_path / "settings.json"


@pytest.fixture
def features_bucket(s3_environment: Any) -> Any:
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="features")
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="features"):
        for one in page.get("Contents", []):
            client.delete_object(Bucket="features", Key=one["Key"])
    client.delete_bucket(Bucket="features")
    client.close()


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "features")
    request.getfixturevalue("features_bucket")
    return URI


def start(shard: str, folder: Path, settings: Path, uri: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SHARD, shard, str(folder / "data"), str(folder / "sorted"), str(settings), uri]
    one_thread = {**os.environ, "LOCAL_WORLD_SIZE": str(os.cpu_count())}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one_thread)


def finished(process: "subprocess.Popen[str]") -> int:
    """The number of features that a process computed."""
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0
    return len(out.split())


def kill_half_way(process: "subprocess.Popen[str]", lines: int, seconds: float) -> int:
    """Kill a process after `lines` features and `seconds`; returns the number of features that it had started."""
    assert process.stdout is not None
    begun = sum(1 for _ in zip(range(lines), process.stdout, strict=False))
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return begun + len(process.communicate(timeout=60)[0].split())


def stored(uri: str, clips: list[Clip], references: list[EncoderReference]) -> set[tuple[str, str]]:
    """The features of a store, read again and completely."""
    store, found = FeatureStore(uri), set()
    for clip in clips:
        for reference in references:
            if store.has(reference, str(clip.sha256)):
                store.get(reference, str(clip.sha256))
                found.add((reference.key, str(clip.sha256)))
    return found


def test_a_killed_shard_is_retried_and_only_what_is_missing_is_computed(
    clips: list[Clip], settings: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = EncodersSection.model_validate(json.loads(settings.read_text())["encoders"])
    data, index = tmp_path / "data", tmp_path / "sorted"
    wanted = extract_folder(data, index, tmp_path / "alone", tmp_path / "wanted", section, device="cpu")
    references = list(wanted.encoders.values())
    mine = sorted(clips, key=lambda clip: str(clip.sha256))[0::2]
    dice = random.Random(1)
    before: set[tuple[str, str]] = set()
    for _ in range(KILLS):
        computed = kill_half_way(start("0/2", tmp_path, settings, uri), 7, dice.uniform(0, 0.1))
        after = stored(uri, clips, references)
        assert before <= after
        assert len(after) - len(before) <= computed
        before = after
    assert 2 * 3 * KILLS <= len(before) < 2 * len(mine), "each kill happens after about 3.5 clips"
    assert before <= {(reference.key, str(clip.sha256)) for clip in mine for reference in references}
    assert finished(start("0/2", tmp_path, settings, uri)) == 2 * len(mine) - len(before)
    assert finished(start("0/2", tmp_path, settings, uri)) == 0
    # The other share failed: extract_features extracts it.
    extraction = extract_folder(data, index, tmp_path / "out", uri, section, device="cpu")
    assert (extraction.clips, extraction.reused, extraction.store) == (COUNT, COUNT // 2, uri)
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "another machine"))
    found, right = FeatureStore(uri), FeatureStore(tmp_path / "wanted")
    for clip in clips:
        for reference in references:
            assert torch.equal(found.get(reference, str(clip.sha256)), right.get(reference, str(clip.sha256)))


def test_parallel_shards_fill_one_bucket(
    clips: list[Clip], settings: Path, features_bucket: Any, tmp_path: Path
) -> None:
    assert sum(finished(one) for one in [start(f"{i}/2", tmp_path, settings, URI) for i in range(2)]) == 2 * COUNT
    listed = features_bucket.list_objects_v2(Bucket="features")["Contents"]
    assert len(listed) == 2 * COUNT
    assert all(one["Key"].startswith("team a/特征/") for one in listed)


def test_a_feature_is_fetched_once(features_bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, store = EncoderReference("campplus", None, None, "cd" * 32), FeatureStore(URI)
    for number in range(40):
        store.put(encoder, f"{number:064x}", torch.full((192,), float(number)))
    names = [f"{encoder.key}/00/{number:064x}.safetensors" for number in range(40)]
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "another machine"))
    processes = [
        subprocess.Popen([sys.executable, "-c", FETCH, URI], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n".join(names))
        process.stdin.close()
        process.stdin = None
    assert sum(int(process.communicate(timeout=120)[0]) for process in processes) == 40
    found = FeatureStore(URI)
    assert [found.path(encoder, f"{number:064x}").is_file() for number in range(40)] == [True] * 40
    assert float(found.get(encoder, f"{7:064x}")[0]) == 7.0


@pytest.fixture
def cut_short(features_bucket: Any) -> Callable[[str], str]:
    """Truncate an object to its first half; returns its address."""

    def cut(name: str) -> str:
        key = f"team a/特征/{name}"
        whole = features_bucket.get_object(Bucket="features", Key=key)["Body"].read()
        features_bucket.put_object(Bucket="features", Key=key, Body=whole[: len(whole) // 2])
        return f"{URI}/{name}"

    return cut


def test_half_and_large_objects(
    cut_short: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    muq, store = EncoderReference("muq", None, None, "ab" * 32, 6), FeatureStore(URI)
    long = torch.randn(8000, 1024, generator=torch.Generator().manual_seed(1))  # 320 s, 33 MB
    store.put(muq, "11" * 32, long)
    store.put(muq, "22" * 32, long[:50])
    address = cut_short(f"{muq.key}/22/{'22' * 32}.safetensors")
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "another machine"))
    store = FeatureStore(URI)
    store.fetch([(muq, "11" * 32), (muq, "22" * 32)])
    assert torch.equal(store.get(muq, "11" * 32), long)
    with pytest.raises(ModelError, match=rf"^{address}: .*damaged"):
        store.get(muq, "22" * 32)


def test_denied_access_is_an_error(s3_server: Any, features_bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.reader.items():
        monkeypatch.setenv(name, value)
    encoder = EncoderReference("campplus", None, None, "cd" * 32)
    with pytest.raises(ModelError, match=r"^s3://features/.+ stored .*http://.+AccessDenied"):
        FeatureStore(URI).put(encoder, "00" * 32, torch.ones(4))
    with pytest.raises(ModelError, match=r"^s3://features/.+ fetched .*http://.+AccessDenied"):
        FeatureStore(URI).has(encoder, "00" * 32)
