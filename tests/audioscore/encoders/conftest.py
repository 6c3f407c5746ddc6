import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audioscore.encoders import store_bucket

LIVELY_DEPTH = 4


@pytest.fixture(scope="session")
def lively_muq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MuQ of four layers in which every part that could be forgotten does something.

    Norms have weights and BatchNorm has statistics of their own, and every dropout of the published configuration
    drops: left in train mode, no two forward passes would agree.
    """
    import torch

    from audioscore.training.pretrain import build_muq, muq_config, save_muq

    target = tmp_path_factory.mktemp("lively-muq") / "weights"
    config = muq_config(dim=32, depth=LIVELY_DEPTH, conv_dim=8, codebook=64)
    dropouts = ("activation_dropout", "hidden_dropout", "attention_dropout", "conformer_conv_dropout")
    config["w2v2_config"] |= dict.fromkeys(dropouts, 0.3) | {"layerdrop": 0.3}
    with torch.random.fork_rng(devices=[]):
        model = build_muq(config, seed=3)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    save_muq(model, config, target)
    return target


@pytest.fixture(scope="session")
def songs_bucket() -> Iterator[Any]:
    """The bucket `songs` of a server on loopback, as its owner sees it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    owner = boto3.session.Session("key", "secret", region_name="us-east-1").resource("s3", endpoint_url=endpoint)
    yield owner.create_bucket(Bucket="songs")
    server.stop()


@pytest.fixture(scope="session")
def clients() -> Iterator[list[Any]]:
    found: list[Any] = []
    yield found
    for client in found:
        client.close()


@pytest.fixture
def bucket(songs_bucket: Any, clients: list[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The bucket `songs`, empty, with its owner's credentials in the environment; stores share one client."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_ENDPOINT_URL": songs_bucket.meta.client.meta.endpoint_url,
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    if not clients:  # it takes too long to be made for every store
        clients.append(store_bucket.connect(16))
    monkeypatch.setattr(store_bucket, "connect", lambda connections: clients[0])
    yield songs_bucket
    songs_bucket.objects.all().delete()
