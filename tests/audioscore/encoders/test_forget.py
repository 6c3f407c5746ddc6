from pathlib import Path
from typing import Any

import pytest
import torch

from audioscore.encoders.features import EncoderReference
from audioscore.encoders.store import FeatureStore, Forgotten, forget_features
from audioscore.errors import DataError

ENCODERS = [EncoderReference("muq", None, None, "ab" * 32, 2), EncoderReference("campplus", None, None, "cd" * 32)]
GONE, STAYS = "0a" * 32, "0b" * 32


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    request.getfixturevalue("bucket")
    return "s3://encoder-features/team a/特征"


def test_only_the_recordings_features_are_deleted(uri: str, monkeypatch: Any, tmp_path: Path) -> None:
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
    ("uri", "shown"),
    [("/gone/features", ""), ("s3://nowhere/features", r".*NoSuchBucket"), ("s3:///features", r".*\bbucket\b")],
)
def test_an_unreachable_store_is_named(uri: str, shown: str, bucket: Any) -> None:
    with pytest.raises(DataError, match=rf"^{uri}\b{shown}"):
        forget_features(uri, {GONE})
