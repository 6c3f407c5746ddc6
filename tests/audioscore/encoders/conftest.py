import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audioscore.config import EncodersSection
from audioscore.encoders import store_bucket

LIVELY_DEPTH = 4


@pytest.fixture(scope="session")
def randomize_norms() -> Callable[[Any], None]:
    """Return a function that gives norms random weights, and BatchNorm random statistics."""
    import torch

    norms = torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d

    def randomize(model: torch.nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, norms) and module.weight is not None:
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)

    return randomize


@pytest.fixture(scope="session")
def lively_muq(tmp_path_factory: pytest.TempPathFactory, randomize_norms: Callable[[Any], None]) -> Path:
    """A small MuQ of four layers with random norms and statistics; in train mode, no two forward passes agree."""
    import torch

    from audioscore.training.pretrain import build_muq, muq_config, save_muq

    target = tmp_path_factory.mktemp("lively-muq") / "weights"
    config = muq_config(dim=32, depth=LIVELY_DEPTH, conv_dim=8, codebook=64)
    dropouts = ("activation_dropout", "hidden_dropout", "attention_dropout", "conformer_conv_dropout")
    config["w2v2_config"] |= dict.fromkeys(dropouts, 0.3) | {"layerdrop": 0.3}
    with torch.random.fork_rng(devices=[]):
        model = build_muq(config, seed=3)
        randomize_norms(model)
    save_muq(model, config, target)
    return target


@pytest.fixture(scope="session")
def full_muq(lively_muq: Path) -> Callable[[Any], tuple[Any, ...]]:
    """Return every hidden state of `lively_muq` by the package's own model, loaded by its own loader."""
    import torch
    from muq import MuQ

    model = MuQ.from_pretrained(str(lively_muq)).eval()

    def hidden_states(wave: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return tuple(state[0] for state in model(wave[None]).hidden_states)

    return hidden_states


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
        clients.append(store_bucket.connect(16))
    monkeypatch.setattr(store_bucket, "connect", lambda connections: clients[0])
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
    from audioscore.encoders.extract import Part

    calls: Counter[str] = Counter()
    hear = Part.hear

    def count(part: Part, recording: Any) -> Any:
        calls[part.reference.kind + ("" if part.reference.layer is None else f"-l{part.reference.layer}")] += 1
        return hear(part, recording)

    monkeypatch.setattr(Part, "hear", count)
    return calls
