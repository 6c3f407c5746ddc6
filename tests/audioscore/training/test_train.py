import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.data.split.sort import read_split
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import DataError, ModelError
from audioscore.scoring.checkpoint import load_scorer
from audioscore.scoring.scorer import BRANCHES, Plan
from audioscore.scoring.trained_plan import TrainedPlan, read_trained


@pytest.fixture(scope="module")
def hybrid(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> TrainedPlan:
    return corpus.train("hybrid", tmp_path_factory.mktemp("plans") / "hybrid")


def test_a_plan_has_one_scorer_per_seed_and_a_plan_json(hybrid: TrainedPlan) -> None:
    files = ["plan.json", "seed-1", "seed-1.json", "seed-2", "seed-2.json"]
    assert sorted(path.name for path in hybrid.folder.iterdir()) == files
    assert read_trained(hybrid.folder) == hybrid
    assert set(hybrid.validation) == set(hybrid.curves) == {1, 2}
    assert all(len(curve) == 6 for curve in hybrid.curves.values())
    best = {seed: max(entry["selection"] for entry in curve) for seed, curve in hybrid.curves.items()}
    assert hybrid.representative == max(best, key=lambda seed: best[seed])


def test_the_trainable_parameters_are_listed_by_name_and_counted(hybrid: TrainedPlan) -> None:
    network = load_scorer(hybrid.scorer_folder()).network
    assert hybrid.chosen.trainable == tuple(name for name, _ in network.named_parameters())
    assert hybrid.chosen.parameters == sum(value.numel() for _, value in network.named_parameters())
    assert not any("norms" in name for name in hybrid.chosen.trainable)


def test_a_saved_scorer_records_its_clips_and_training(corpus: Any, hybrid: TrainedPlan) -> None:
    for seed in (1, 2):
        description = load_scorer(hybrid.scorer_folder(seed)).description
        seen = {str(clip.sha256) for split in ("train", "val") for clip in read_split(corpus.index, split)}
        assert set(description.seen_clips) == seen
        assert not seen & {clip.sha256 for clip in read_split(corpus.index, "test")}
        assert (description.plan, description.seed, description.data_digest, description.code_revision) == (
            "hybrid",
            seed,
            "d.dir",
            "abc",
        )
        assert description.training["settings"]["epochs"] == 6
        assert description.training["train_clips"] + description.training["val_clips"] == len(seen)
        assert description.training["validation_spearman"] == hybrid.validation[seed]


def test_a_recording_and_its_stored_features_get_the_same_score(corpus: Any, hybrid: TrainedPlan) -> None:
    scorer = load_scorer(hybrid.scorer_folder())
    clips = read_split(corpus.index, "test")[:3]
    extraction = read_extraction(corpus.features)
    features = StoredFeatures(clips, extraction.encoders, BRANCHES["hybrid"], FeatureStore(extraction.store))
    scored = [scorer.score(corpus.data / clip.audio_file) for clip in clips]
    np.testing.assert_allclose([one.raw for one in scored], scorer.raw(features), rtol=0, atol=1e-5)
    assert all(0 <= one.interval[0] <= one.score <= one.interval[1] <= 100 for one in scored)


@pytest.mark.parametrize("plan", ["baseline", "campplus_only"])
def test_a_plan_of_one_branch_embeds_only_its_encoder(corpus: Any, tmp_path: Path, plan: Plan) -> None:
    trained = corpus.train(plan, tmp_path / plan)
    embedded = trained.scorer_folder() / "encoders"
    assert tuple(path.name for path in embedded.iterdir()) == BRANCHES[plan]
    assert set(load_scorer(trained.scorer_folder()).encoders) == set(BRANCHES[plan])


def test_no_written_file_contains_paths(corpus: Any, hybrid: TrainedPlan) -> None:
    for path in hybrid.folder.rglob("*.json"):
        for folder in (corpus.data, corpus.features, hybrid.folder, corpus.store):
            assert str(folder) not in path.read_text()


def test_the_order_of_the_tables_rows_changes_no_weight(corpus: Any, hybrid: TrainedPlan, tmp_path: Path) -> None:
    data = Path(shutil.copytree(corpus.data, tmp_path / "data"))
    with (corpus.data / "labels.csv").open(encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle)
    with (data / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows[::-1]])
    other = corpus.sort(data, tmp_path / "sorted").extract(tmp_path / "features")
    described = json.loads((tmp_path / "features" / "extraction.json").read_text())
    assert (described["computed"], described["reused"]) == (0, 48), "features are found by content"
    again = other.train("hybrid", tmp_path / "plan")
    for seed in (1, 2):
        ours, wanted = (load_file(plan.scorer_folder(seed) / "head.safetensors") for plan in (again, hybrid))
        assert all((ours[name] == wanted[name]).all() for name in wanted)
    assert again.validation == hybrid.validation


@pytest.mark.parametrize(("split", "count"), [("train", 7), ("val", 7), ("val", 0)])
def test_a_split_that_is_too_small_is_refused(corpus: Any, tmp_path: Path, split: str, count: int) -> None:
    small = with_split(corpus, tmp_path, split, read_split(corpus.index, split)[:count])
    with pytest.raises(DataError, match=rf"^{split} split: {count} .* 8 "):
        small.train("hybrid", tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def with_split(corpus: Any, target: Path, split: str, clips: list[Clip]) -> Any:
    """The corpus with other clips in one split."""
    for name in ("train", "val", "test"):
        write_index(target / "index" / f"{name}.json", [clips if name == split else read_split(corpus.index, name)])
    return replace(corpus, index=target)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_one_score_is_refused(corpus: Any, tmp_path: Path, split: str) -> None:
    equal = [replace(clip, score=80.0) for clip in read_split(corpus.index, split)]
    with pytest.raises(DataError, match=rf"^{split} split: all {len(equal)} "):
        with_split(corpus, tmp_path, split, equal).train("hybrid", tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_training_without_extraction_is_refused(corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"extraction\.json"):
        replace(corpus, features=tmp_path).train("hybrid", tmp_path / "plan")


def test_resuming_keeps_finished_seeds(corpus: Any, hybrid: TrainedPlan, tmp_path: Path) -> None:
    target = tmp_path / "plan"
    corpus.train("hybrid", target, seeds=[1])
    weights = target / "seed-1" / "head.safetensors"
    before = weights.stat()
    (target / "plan.json").unlink()  # as if it had been killed between the seeds
    resumed = corpus.train("hybrid", target, resume=True)
    after = weights.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "not written again"
    assert resumed.validation == hybrid.validation
    for seed in (1, 2):
        ours, wanted = (load_file(plan.scorer_folder(seed) / "head.safetensors") for plan in (resumed, hybrid))
        assert all((ours[name] == wanted[name]).all() for name in wanted)


@pytest.mark.parametrize("changed", [{"learning_rate": 1e-3}, {"dropout": 0.1}, {"adversary": {"weight": 0.5}}])
def test_other_settings_are_refused_when_resuming(corpus: Any, tmp_path: Path, changed: dict[str, Any]) -> None:
    target = tmp_path / "plan"
    corpus.train("hybrid", target, seeds=[1], epochs=1)
    with pytest.raises(ModelError, match=r"seed-1\.json: .*settings"):
        corpus.train("hybrid", target, resume=True, seeds=[1], epochs=1, **changed)
    corpus.train("hybrid", target, resume=True, seeds=[1, 2], epochs=1, checkpoint_steps=7)


def test_results_of_another_corpus_are_not_resumed(corpus: Any, tmp_path: Path) -> None:
    corpus.train("hybrid", tmp_path / "plan", seeds=[1], epochs=1)
    other = with_split(corpus, tmp_path, "train", read_split(corpus.index, "train")[1:])
    with pytest.raises(ModelError, match=r"seed-1\.json: .*other data"):
        other.train("hybrid", tmp_path / "plan", resume=True, seeds=[1], epochs=1)


def test_a_damaged_seed_file_is_not_resumed(corpus: Any, tmp_path: Path) -> None:
    corpus.train("hybrid", tmp_path, seeds=[1], epochs=1)
    (tmp_path / "seed-1.json").write_text("{")
    with pytest.raises(ModelError, match=r"seed-1\.json: damaged"):
        corpus.train("hybrid", tmp_path, resume=True, seeds=[1], epochs=1)


def test_without_resume_results_of_an_earlier_training_are_deleted(corpus: Any, tmp_path: Path) -> None:
    corpus.train("hybrid", tmp_path, epochs=1)
    (tmp_path / "seed-2.checkpoint").write_bytes(b"of a training that was killed")
    with pytest.raises(ModelError, match=r"training\.learning_rate"):
        corpus.train("hybrid", tmp_path, epochs=2, learning_rate=float("inf"))
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []
    with pytest.raises(ModelError, match=r"plan\.json"):
        read_trained(tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_half_written_files_of_a_killed_training_are_deleted(corpus: Any, tmp_path: Path, resume: bool) -> None:
    for name in (".seed-1.checkpoint.x2b1.checkpoint", ".seed-1.json.8ab2.json", ".plan.json.9f.json"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".seed-1.77aa" / "encoders").mkdir(parents=True)
    corpus.train("hybrid", tmp_path, seeds=[1], epochs=1, resume=resume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "seed-1", "seed-1.json"]


def test_a_warm_start_keeps_the_statistics_of_its_head(corpus: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"seeds": [1], "epochs": 1}
    first = corpus.train("baseline", tmp_path / "first", **options)
    other = with_split(corpus, tmp_path, "train", read_split(corpus.index, "train")[:16])
    warm = other.train("baseline", tmp_path / "warm", **options, init=f"warm:{first.scorer_folder()}")
    scratch = other.train("baseline", tmp_path / "scratch", **options)
    before, after, fresh = (
        load_file(plan.scorer_folder() / "head.safetensors")["fusion.norms.muq.mean"] for plan in (first, warm, scratch)
    )
    assert (before == after).all()
    assert (fresh != before).any()
