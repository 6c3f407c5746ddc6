"""The production configuration, at small size: everything it asks for, run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from audioscore.config import CONFIGS, Config, Plan, load_config
from audioscore.encoders.extract import extract_folder
from audioscore.scoring.checkpoint import load_scorer
from audioscore.training.launch import launch_plan

SMALLER = [
    "encoders.muq.revision=null", "encoders.campplus.revision=null", "encoders.muq.layer=2", "training.width=16",
    "training.hidden=16", "training.lora.rank=4", "training.lora.alpha=2", "training.batch_clips=8",
    "training.epochs=2", "training.seeds=[1]",
]  # fmt: skip


def small(encoders: Path, processes: int) -> Config:
    sources = [f"encoders.{kind}.source={encoders / f'{kind}-small'}" for kind in ("muq", "campplus")]
    return load_config(CONFIGS / "full.yaml", [*SMALLER, *sources, f"training.processes={processes}"])


def train(ground: Any, encoders: Path, target: Path, plans: Sequence[Plan], processes: int) -> None:
    config = small(encoders, processes)
    extract_folder(
        ground.data, ground.index, target / "features", ground.store, config.encoders, config.training, device="cpu"
    )
    for plan in plans:
        trained = launch_plan(
            plan, ground.index, target / "features", target / plan, config,
            data_digest="d.dir", code_revision="abc", device="cpu",
        )  # fmt: skip
        scorer = load_scorer(trained.scorer_folder())
        assert scorer.description.tuning is not None
        assert (scorer.description.tuning.mode, scorer.description.tuning.from_layer) == ("lora", 0)
        assert scorer.description.head["kind"] == "songeval"
        assert (trained.scorer_folder() / "encoders" / "muq" / "model.safetensors").is_file()  # save: full
        assert any(".lora_A." in name for name in trained.chosen.trainable)


def test_it_names_the_published_encoders_by_pinned_revisions() -> None:
    config = load_config(CONFIGS / "full.yaml")
    assert config.encoders.muq.source == "OpenMuQ/MuQ-large-msd-iter"
    assert len(config.encoders.muq.revision or "") == 40
    assert config.encoders.campplus.revision == "v1.0.0"
    assert (config.training.processes, config.training.lora.rank, config.training.lora.alpha) == (4, 128, 48)
    assert config.training.head_epochs == 5


def test_it_trains_both_plans(ground: Any, tiny_encoders: Path, tmp_path: Path) -> None:
    train(ground, tiny_encoders, tmp_path, ["baseline", "hybrid"], processes=1)


@pytest.mark.services
def test_it_trains_by_several_processes(ground: Any, tiny_encoders: Path, tmp_path: Path) -> None:
    train(ground, tiny_encoders, tmp_path, ["hybrid"], processes=2)
