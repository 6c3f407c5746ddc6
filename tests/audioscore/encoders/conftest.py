import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audioscore.config import EncodersSection
from audioscore.encoders import bucket_store


@pytest.fixture(scope="session")
def served_bucket() -> Iterator[Any]:
    """The bucket `encoder-features` of a server on loopback, with its owner's credentials."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    owner = boto3.session.Session("key", "secret", region_name="us-east-1").resource("s3", endpoint_url=endpoint)
    yield owner.create_bucket(Bucket="encoder-features")
    server.stop()


@pytest.fixture(scope="session")
def clients() -> Iterator[list[Any]]:
    found: list[Any] = []
    yield found
    for client in found:
        client.close()


@pytest.fixture
def bucket(served_bucket: Any, clients: list[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The served bucket, empty, with credentials in the environment; stores share one client."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_ENDPOINT_URL": served_bucket.meta.client.meta.endpoint_url,
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    if not clients:  # slow to make for every store
        clients.append(bucket_store.connect(16))
    monkeypatch.setattr(bucket_store, "connect", lambda connections: clients[0])
    yield served_bucket
    served_bucket.objects.all().delete()


@pytest.fixture
def global_rng() -> Callable[[], tuple[object, list[int]]]:
    """Return a function that reads the state of the global random generators of Python and torch."""
    import torch

    return lambda: (random.getstate(), torch.get_rng_state().tolist())


class Harmful:
    """A pickle with an instruction: create `target`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.fixture
def harmful(tmp_path: Path) -> Harmful:
    return Harmful(tmp_path / "was-run")


@pytest.fixture(scope="session")
def section(tiny_encoders: Path) -> EncodersSection:
    return EncodersSection.model_validate(
        {
            "muq": {"source": str(tiny_encoders / "muq-small"), "layer": 2},
            "campplus": {"source": str(tiny_encoders / "campplus-small")},
        }
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the forward passes of each encoder, by kind and layer."""
    from audioscore.encoders.inference import EncoderOutput

    calls: Counter[str] = Counter()
    encode = EncoderOutput.encode

    def count(part: EncoderOutput, recording: Any) -> Any:
        calls[part.reference.kind + ("" if part.reference.layer is None else f"-l{part.reference.layer}")] += 1
        return encode(part, recording)

    monkeypatch.setattr(EncoderOutput, "encode", count)
    return calls
