"""The production configuration at small size, trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audioscore.config import CONFIGS, Config, Plan, load_config
from audioscore.encoders.extract import extract_folder
from audioscore.scoring.checkpoint import load_scorer
from audioscore.training.launch import launch_plan

SMALLER = [
    "encoders.muq.revision=null", "encoders.campplus.revision=null", "encoders.muq.layer=2", "training.width=16",
    "training.hidden=16", "training.lora.rank=4", "training.lora.alpha=2", "training.batch_clips=8",
    "training.epochs=2", "training.seeds=[1]",
]  # fmt: skip


def small(encoders: Path) -> Config:
    sources = [f"encoders.{kind}.source={encoders / f'{kind}-small'}" for kind in ("muq", "campplus")]
    return load_config(CONFIGS / "full.yaml", [*SMALLER, *sources, "training.processes=1"])


def train(ground: Any, encoders: Path, target: Path, plans: Sequence[Plan]) -> None:
    config = small(encoders)
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


def test_it_trains_both_plans(ground: Any, tiny_encoders: Path, tmp_path: Path) -> None:
    train(ground, tiny_encoders, tmp_path, ["baseline", "hybrid"])
