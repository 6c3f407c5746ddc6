from pathlib import Path
from typing import Any

import pytest
import torch

from audioscore.encoders.forget import Forgotten, forget_features
from audioscore.encoders.reference import EncoderReference
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError

ENCODERS = [EncoderReference("muq", None, None, "ab" * 32, 2), EncoderReference("campplus", None, None, "cd" * 32)]
GONE, STAYS = "0a" * 32, "0b" * 32


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    request.getfixturevalue("bucket")
    return "s3://songs/team a/特征"


def test_every_encoders_features_of_a_recording_go_and_no_others(uri: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    store = FeatureStore(uri)
    for encoder in ENCODERS:
        for recording in (GONE, STAYS):
            store.put(encoder, recording, torch.ones(2, 3))
    assert forget_features(uri, {GONE, "ff" * 32}) == Forgotten(2)
    assert forget_features(uri, {GONE}) == Forgotten(0)
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "another"))
    fresh = FeatureStore(uri)
    assert [fresh.has(encoder, GONE) for encoder in ENCODERS] == [False, False]
    assert [fresh.has(encoder, STAYS) for encoder in ENCODERS] == [True, True]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("/gone/features", r"^/gone/features: no such folder on this machine\. Purge where it is seen"),
        ("s3://nowhere/features", r"^s3://nowhere/features cannot be .* \(NoSuchBucket: .*\)\. Check the bucket"),
        ("s3:///features", "names no bucket"),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_sentence(uri: str, sentence: str, bucket: Any) -> None:
    with pytest.raises(DataError, match=sentence):
        forget_features(uri, {GONE})
