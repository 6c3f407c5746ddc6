from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from audioscore.data.audio import Wave, encode
from audioscore.encoders.campplus import load_campplus
from audioscore.encoders.extract import Encoders
from audioscore.encoders.muq import load_muq
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.scorer import BRANCHES, Description, Plan, Scorer

MakeScorer = Callable[[Plan], Scorer]


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
        description = Description(
            plan=plan,
            seed=2,
            encoders={kind: every[kind].reference for kind in BRANCHES[plan]},
            head={"dims": dims, "width": 8, "hidden": 8, "dropout": 0.3},
            calibration=Calibration((-1.0, 0.0, 1.0), (55.0, 80.0, 95.0), 4.0),
            seen_clips=("ab" * 32, "cd" * 32),
            data_digest="0123.dir",
            code_revision="abc1234",
            training={"best_epoch": 3},
        )
        return Scorer(head, description, {kind: every[kind] for kind in BRANCHES[plan]})

    return make


@pytest.fixture(scope="session")
def scorer(make_scorer: MakeScorer) -> Scorer:
    return make_scorer("hybrid")


def voice(seconds: float, rate: int, seed: int = 0) -> Wave:
    """A wavering tone over noise. Shape: -> [seconds * rate]."""
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
        path = folder / f"take{index}.flac"
        encode(voice(1.2 + 0.4 * index, rate, index), rate, path, codec="flac")
        paths.append(path)
    return paths
