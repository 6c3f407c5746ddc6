from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audioscore.config import Plan
from audioscore.data.audio import Wave, encode
from audioscore.encoders.campplus import load_campplus
from audioscore.encoders.features import WINDOW_SECONDS, Encoders, Kind
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.checkpoint import build_network, save_scorer, tuned_state
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.scorer import BRANCHES, Description, Scorer, Tuning

MakeScorer = Callable[[Plan], Scorer]
CALIBRATION = Calibration((-1.0, 0.0, 1.0), (55.0, 80.0, 95.0), 4.0)


@pytest.fixture(scope="session")
def make_scorer(tiny_encoders: Path) -> MakeScorer:
    """Scorers with an untrained head over the tiny encoders."""
    every: Encoders = {
        "muq": load_muq(str(tiny_encoders / "muq-small"), layer=1),
        "campplus": load_campplus(str(tiny_encoders / "campplus-small")),
    }

    def make(plan: Plan) -> Scorer:
        dims: dict[str, int] = {kind: every[kind].dim for kind in BRANCHES[plan]}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            head = ScoreHead(dims, width=8, hidden=8, dropout=0.3)
        description = describe(plan, every, {"dims": dims, "width": 8, "hidden": 8, "dropout": 0.3}, None)
        return Scorer(ScoreNetwork(head), description, {kind: every[kind] for kind in BRANCHES[plan]})

    return make


def describe(plan: Plan, encoders: Encoders, head: dict[str, Any], tuning: Tuning | None) -> Description:
    return Description(
        plan=plan, seed=2, encoders={kind: encoders[kind].reference for kind in BRANCHES[plan]}, head=head,
        calibration=CALIBRATION, seen_clips=("ab" * 32, "cd" * 32), data_digest="0123.dir", code_revision="abc1234",
        training={"best_epoch": 3}, tuning=tuning
    )  # fmt: skip


@pytest.fixture(scope="session")
def scorer(make_scorer: MakeScorer) -> Scorer:
    return make_scorer("hybrid")


@dataclass(frozen=True)
class Tuned:
    """A network after training, with changed layers of MuQ, its encoders, and its trained weights."""

    network: ScoreNetwork
    description: Description
    encoders: dict[Kind, Any]
    state: dict[str, Tensor]

    @property
    def muq(self) -> MuQEncoder:
        return self.encoders["muq"]

    def save(self, folder: Path) -> Path:
        folders = {kind: encoder.folder for kind, encoder in self.encoders.items()}
        save_scorer(self.network, self.description, folders, folder, self.state)
        return folder


MakeTuned = Callable[..., Tuned]


@pytest.fixture(scope="session")
def make_tuned(tiny_encoders: Path) -> MakeTuned:
    """Create networks with layers of MuQ, each with its own MuQ; `moved` changes all trained weights."""

    def make(
        tuning: Tuning,
        *,
        plan: Plan = "baseline",
        moved: bool = True,
        layer: int = 2,
        window: float = WINDOW_SECONDS,
        **head: Any,
    ) -> Tuned:
        muq = load_muq(str(tiny_encoders / "muq-small"), layer=layer, window_seconds=window)
        encoders: dict[Kind, Any] = {"muq": muq}
        if plan == "hybrid":
            encoders["campplus"] = load_campplus(str(tiny_encoders / "campplus-small"))
        dims: dict[str, int] = {kind: encoder.dim for kind, encoder in encoders.items()}
        sizes = {"dims": dims, "width": 8, "hidden": 8, "dropout": 0.3, **head}
        description = describe(plan, encoders, sizes, tuning)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            network = build_network(sizes, tuning, encoders["muq"])
            for parameter in network.parameters() if moved else ():
                if parameter.requires_grad:
                    parameter.data += 0.1 * torch.randn_like(parameter)
        return Tuned(network.eval(), description, encoders, tuned_state(tuning, encoders["muq"]))

    return make


@pytest.fixture(params=["missing", "left over", "of another shape", "not finite"])
def damage(request: pytest.FixtureRequest) -> Callable[[dict[str, Tensor], str], dict[str, Tensor]]:
    """A function that damages one tensor of a state dict."""

    def apply(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        value, rest = state[name].clone(), {one: kept for one, kept in state.items() if one != name}
        return {
            "missing": rest,
            "left over": {**state, f"{name}.more": value},
            "of another shape": {**rest, name: value[:-1].clone()},
            "not finite": {**rest, name: value.index_fill(0, torch.tensor([0]), torch.nan)},
        }[request.param]

    return apply


def voice(seconds: float, rate: int, seed: int = 0) -> Wave:
    """A tone with vibrato and noise. Shape: -> [seconds * rate]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 20 * seed) * time + 3 * np.sin(2 * np.pi * 5 * time))
    return np.asarray(0.2 * tone + 0.02 * rng.normal(size=len(time)), dtype=np.float32)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four recordings of different lengths and rates that can be scored."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = []
    for index, rate in enumerate((24_000, 16_000, 44_100, 48_000)):
        path = folder / f"clip{index}.flac"
        encode(voice(1.2 + 0.4 * index, rate, index), rate, path, codec="flac")
        paths.append(path)
    return paths
