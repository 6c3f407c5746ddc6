import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from audioscore.config import Config, parse_config
from audioscore.data.accepted import run_gate
from audioscore.data.index import write_index
from audioscore.data.sort import read_split, sort_folder
from audioscore.encoders.extract import extract_folder, features_of, read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError, ModelError
from audioscore.scoring.checkpoint import load_scorer
from audioscore.scoring.scorer import BRANCHES, Plan
from audioscore.scoring.trained import TrainedPlan, read_trained
from audioscore.training.train import train_plan


@dataclass(frozen=True)
class Run:
    """A run's folders up to training."""

    data: Path
    index: Path
    features: Path
    config: Config

    def train(self, plan: Plan, target: Path) -> TrainedPlan:
        return train_plan(
            plan, self.index, self.features, target, self.config.training, data_digest="d.dir", code_revision="abc"
        )


def prepare(data: Path, work: Path, store: Path, config: Config) -> Run:
    run_gate(data, work / "validated", work / "report.html", config)
    sort_folder(data, work / "validated", work / "sorted", config.split)
    extract_folder(data, work / "sorted", work / "features", store, config.encoders)
    return Run(data, work / "sorted", work / "features", config)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, tiny_encoders: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = parse_config(
        {
            "encoders": {
                "muq": {"source": str(tiny_encoders / "muq-small"), "layer": 2},
                "campplus": {"source": str(tiny_encoders / "campplus-small")},
            },
            "training": {"seeds": [1, 2], "epochs": 6, "width": 8, "hidden": 8, "learning_rate": 5e-3},
        }
    )
    return prepare(tiny_corpus, tmp_path_factory.mktemp("run"), store, config)


@pytest.fixture(scope="module")
def hybrid(run: Run, tmp_path_factory: pytest.TempPathFactory) -> TrainedPlan:
    return run.train("hybrid", tmp_path_factory.mktemp("plans") / "hybrid")


def test_a_plan_is_a_scorer_a_seed_and_a_plan_json(hybrid: TrainedPlan) -> None:
    assert sorted(path.name for path in hybrid.folder.iterdir()) == ["plan.json", "seed-1", "seed-2"]
    assert read_trained(hybrid.folder) == hybrid
    assert set(hybrid.validation) == set(hybrid.curves) == {1, 2}
    assert all(len(curve) == 6 for curve in hybrid.curves.values())
    best = {seed: max(entry["selection"] for entry in curve) for seed, curve in hybrid.curves.items()}
    assert hybrid.representative == max(best, key=lambda seed: best[seed])


def test_the_trainable_parameters_are_listed_by_name_and_counted(hybrid: TrainedPlan) -> None:
    head = load_scorer(hybrid.scorer_folder()).head
    assert hybrid.trainable == tuple(name for name, _ in head.named_parameters())
    assert hybrid.parameters == sum(value.numel() for _, value in head.named_parameters())
    assert not any(name.startswith("norms") for name in hybrid.trainable)


def test_a_saved_scorer_says_what_it_saw_and_how_it_was_trained(run: Run, hybrid: TrainedPlan) -> None:
    for seed in (1, 2):
        said = load_scorer(hybrid.scorer_folder(seed)).description
        seen = {str(clip.sha256) for split in ("train", "val") for clip in read_split(run.index, split)}
        assert set(said.seen_clips) == seen
        assert not seen & {clip.sha256 for clip in read_split(run.index, "test")}
        assert (said.plan, said.seed, said.data_digest, said.code_revision) == ("hybrid", seed, "d.dir", "abc")
        assert said.training["settings"]["epochs"] == 6
        assert said.training["train_clips"] + said.training["val_clips"] == len(seen)
        assert said.training["validation_spearman"] == hybrid.validation[seed]


def test_a_recording_gets_the_score_that_its_stored_features_get(run: Run, hybrid: TrainedPlan) -> None:
    scorer = load_scorer(hybrid.scorer_folder())
    clips = read_split(run.index, "test")[:3]
    extraction = read_extraction(run.features)
    features = features_of(clips, extraction.encoders, BRANCHES["hybrid"], FeatureStore(extraction.store))
    scored = [scorer.score(run.data / clip.audio_file) for clip in clips]
    np.testing.assert_allclose([one.raw for one in scored], scorer.raw(features), rtol=0, atol=1e-5)
    assert all(0 <= one.interval[0] <= one.score <= one.interval[1] <= 100 for one in scored)


@pytest.mark.parametrize("plan", ["baseline", "campplus_only"])
def test_a_plan_of_one_branch_embeds_only_its_encoder(run: Run, tmp_path: Path, plan: Plan) -> None:
    trained = run.train(plan, tmp_path / plan)
    embedded = trained.scorer_folder() / "encoders"
    assert tuple(path.name for path in embedded.iterdir()) == BRANCHES[plan]
    assert set(load_scorer(trained.scorer_folder()).encoders) == set(BRANCHES[plan])


def test_no_file_names_the_folders_it_was_made_in(run: Run, hybrid: TrainedPlan, store: Path) -> None:
    for path in hybrid.folder.rglob("*.json"):
        text = path.read_text()
        assert not [folder for folder in (run.data, run.features, hybrid.folder, store) if str(folder) in text]


def test_the_order_of_the_tables_rows_changes_no_weight(
    run: Run, hybrid: TrainedPlan, store: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(run.data, tmp_path / "data"))
    with (run.data / "labels.csv").open(encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle)
    with (data / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows[::-1]])
    again = prepare(data, tmp_path / "run", store, run.config).train("hybrid", tmp_path / "plan")
    described = json.loads((tmp_path / "run" / "features" / "extraction.json").read_text())
    assert (described["computed"], described["reused"]) == (0, 48), "the features are known by content"
    for seed in (1, 2):
        ours, wanted = (load_file(plan.scorer_folder(seed) / "head.safetensors") for plan in (again, hybrid))
        assert all((ours[name] == wanted[name]).all() for name in wanted)
    assert again.validation == hybrid.validation


@pytest.mark.parametrize(("split", "count"), [("train", 7), ("val", 7), ("val", 0)])
def test_a_split_that_is_too_small_is_refused_with_its_numbers(
    run: Run, tmp_path: Path, split: str, count: int
) -> None:
    for name in ("train", "val", "test"):
        clips = read_split(run.index, name)
        write_index(tmp_path / "index" / f"{name}.json", [clips[:count] if name == split else clips])
    small = Run(run.data, tmp_path, run.features, run.config)
    with pytest.raises(DataError, match=rf"^{split} split: {count} scored clips; at least 8 are needed\. Add data\.$"):
        small.train("hybrid", tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_a_training_split_of_one_score_is_refused(run: Run, tmp_path: Path) -> None:
    from dataclasses import replace

    for name in ("train", "val", "test"):
        clips = read_split(run.index, name)
        equal = [replace(clip, score=80.0) for clip in clips]
        write_index(tmp_path / "index" / f"{name}.json", [equal if name == "train" else clips])
    with pytest.raises(DataError, match=r"^train split: all \d+ clips have one score; there is nothing to rank"):
        Run(run.data, tmp_path, run.features, run.config).train("hybrid", tmp_path / "plan")


def test_training_without_extraction_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no extraction\.json"):
        Run(run.data, run.index, tmp_path, run.config).train("hybrid", tmp_path / "plan")
