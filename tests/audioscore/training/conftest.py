"""Toy clips that a network learns in a second, the tiny corpus with its features, and an S3 server."""

import os
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Toys:
    """Clips of random features, the networks that learn from them, and their settings."""

    def split(self, count: int, seed: int, *, strength: float = 1.0) -> Any:
        """Clips whose score is one direction of their frames' mean and one of their embedding's, in noise.

        Everything else varies too, lengths included.
        """
        import torch

        from audioscore.training.data import TrainingSplit

        rng = np.random.default_rng(seed)
        quality = rng.normal(0, 1, count)
        features = []
        for value in quality:
            frames = rng.normal(0, 1, (int(rng.integers(5, 15)), 6))
            frames[:, 2] += strength * value
            embedding = rng.normal(0, 1, 5)
            embedding[1] += strength * value
            features.append({"muq": torch.tensor(frames).float(), "campplus": torch.tensor(embedding).float()})
        scores = [float(score) for score in np.round(np.clip(78 + 8 * quality, 50, 99), 1)]
        sources = ["ktv" if index % 2 else "acapella" for index in range(count)]
        names = [f"{index:03d}.wav" for index in range(count)]
        return TrainingSplit(features, scores, sources, [f"{index:064x}" for index in range(count)], names=names)

    @cached_property
    def train(self) -> Any:
        return self.split(64, 1)

    @cached_property
    def val(self) -> Any:
        return self.split(32, 2)

    @cached_property
    def test(self) -> Any:
        return self.split(64, 3)

    def network(self, seed: int = 1, dropout: float = 0.1, kinds: Sequence[str] = ("muq", "campplus")) -> Any:
        import torch

        from audioscore.scoring.head import ScoreHead
        from audioscore.scoring.network import ScoreNetwork

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dims = {kind: {"muq": 6, "campplus": 5}[kind] for kind in kinds}
            return ScoreNetwork(ScoreHead(dims, width=8, hidden=8, dropout=dropout))

    def adversary(self, split: Any, dim: int, seed: int = 3) -> tuple[Any, Any]:
        """Return a split with speaker targets, and the adversary that predicts them."""
        import torch

        from audioscore.training.adversary import SpeakerAdversary

        targets = torch.stack([clip["campplus"] for clip in split.features])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adversary = SpeakerAdversary(dim, 8, targets.shape[1])
        adversary.fit_targets(targets)
        return replace(split, targets=targets), adversary

    def settings(self, **changed: Any) -> Any:
        from audioscore.training.losses import Objective
        from audioscore.training.step import FitSettings

        usual: dict[str, Any] = {
            "objective": Objective("pairwise", 0.1, 0.5, 0.0, 2.0), "epochs": 15, "patience": 15, "batch_clips": 16,
            "micro_clips": None, "learning_rate": 3e-3, "encoder_learning_rate": 1e-3, "weight_decay": 0.01,
            "schedule": "constant", "warmup_share": 0.0, "clip_norm": 1.0, "precision": "fp32", "checkpoint_steps": 3,
        }  # fmt: skip
        return FitSettings(**(usual | changed))

    def fit(self, train: Any, val: Any, *, seed: int = 1, dropout: float = 0.1, **changed: Any) -> Any:
        """A new head, fitted."""
        from audioscore.training.data import fit_statistics
        from audioscore.training.loop import fit_network

        network = self.network(seed, dropout, tuple(train.features[0]))
        fit_statistics(network, train.features)
        return fit_network(network, train, val, self.settings(**changed), seed=seed, device="cpu")


@pytest.fixture(autouse=True)
def _own_generators() -> Iterator[None]:
    """Start each test with the same global generators, and put back those of the process."""
    import torch

    state = random.getstate()
    random.seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    random.setstate(state)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """The address of an S3 server in this process. moto keeps its buckets per process: each test makes its own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def own_bucket(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a bucket that only this test uses; the environment gives the code under test access to it."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": moto_endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    bucket = boto3.session.Session("key", "secret").resource("s3").Bucket(f"jobs-{uuid.uuid4().hex}")
    bucket.create()
    yield bucket.name
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture(scope="session")
def toys() -> Toys:
    return Toys()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[dict[str, Any]]]:
    """Make validation return given figures, and collect the weights of every epoch."""
    from audioscore.training import loop

    def script(figures: list[float]) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = []

        def validated(network: Any, *_: object) -> dict[str, float]:
            kept.append({name: value.clone() for name, value in network.state_dict().items()})
            figure = figures[len(kept) - 1]
            return {"val_spearman": figure / 2, "val_spearman_within_source": figure, "selection": figure}

        monkeypatch.setattr(loop, "validate", validated)
        return kept

    return script


@dataclass(frozen=True)
class PreparedCorpus:
    """The tiny corpus, sorted and with features; the input of MuQ's first layer is stored too, for tuning."""

    data: Path
    index: Path
    features: Path
    store: Path
    values: dict[str, Any]

    def config(self, **training: Any) -> Any:
        from audioscore.config import parse_config

        return parse_config({**self.values, "training": {**self.values["training"], **training}})

    def train(self, plan: str, target: Path, *, resume: bool = False, folds: int | None = 1, **training: Any) -> Any:
        """Train a plan; by default on the single split."""
        from audioscore.scoring.scorer import plan_by_name
        from audioscore.training.train import train_plan

        return train_plan(
            plan_by_name(plan), self.index, self.features, target, self.config(**training).training,
            data_digest="d.dir", code_revision="abc", device="cpu", resume=resume, folds=folds,
        )  # fmt: skip

    def sort(self, data: Path, target: Path) -> "PreparedCorpus":
        """Return this corpus with another data folder."""
        sort_corpus(data, target)
        return replace(self, data=data, index=target)

    def extract(self, target: Path, **training: Any) -> "PreparedCorpus":
        """Return this corpus with the additional features that some settings need."""
        from audioscore.encoders.extract import extract_folder

        config = self.config(**training)
        extract_folder(self.data, self.index, target, self.store, config.encoders, config.training, device="cpu")
        return replace(self, features=target)


def sort_corpus(data: Path, target: Path) -> None:
    """Sort a data folder without running the data gate, which the tiny corpus passes."""
    from audioscore.config import SplitSection
    from audioscore.data.labels import read_labels
    from audioscore.data.split.assign import assign_splits
    from audioscore.data.split.sort import write_sorted
    from audioscore.files import sha256_of

    listed = read_labels(data / "labels.csv").clips
    clips = [replace(clip, sha256=sha256_of(data / clip.audio_file)) for clip in listed]
    section = SplitSection()
    write_sorted(target, clips, assign_splits(clips, val=section.val, test=section.test, seed=section.seed))


@pytest.fixture(scope="session")
def corpus(tiny_corpus: Path, tiny_encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    """Trained with two seeds of six epochs, width 8."""
    folder = tmp_path_factory.mktemp("corpus")
    values = {
        "encoders": {
            "muq": {"source": str(tiny_encoders / "muq-small"), "layer": 2},
            "campplus": {"source": str(tiny_encoders / "campplus-small")},
        },
        "training": {"seeds": [1, 2], "epochs": 6, "width": 8, "hidden": 8, "learning_rate": 5e-3},
    }
    sort_corpus(tiny_corpus, folder / "sorted")
    bare = PreparedCorpus(tiny_corpus, folder / "sorted", folder / "features", folder / "store", values)
    return bare.extract(folder / "features", tuning="lora", lora={"rank": 4, "alpha": 6})
