"""The trained part of MuQ: only the parameters that the settings select change, and they are saved."""

import importlib.util
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from audioscore.data.index import write_index
from audioscore.data.split.sort import read_split, read_unscored_groups
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.muq import load_muq
from audioscore.encoders.muq_layers import prefix_reference
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.errors import ModelError
from audioscore.scoring.checkpoint import load_scorer, read_description
from audioscore.scoring.scorer import BRANCHES
from audioscore.scoring.trained_plan import TrainedPlan
from audioscore.training import train

LORA = {"tuning": "lora", "lora": {"rank": 4, "alpha": 6}}
SHORT = {"seeds": [1], "epochs": 2, "batch_clips": 10}
PROJECTIONS = ("linear_q", "linear_k", "linear_v", "linear_out")
LINEAR = ("attention.score", "regressor.0", "regressor.2", "regressor.5")
HEAD = {f"{name}.{part}" for name in LINEAR for part in ("weight", "bias")}


def head_names(*branches: str) -> set[str]:
    own = {f"fusion.projections.{branch}.{part}" for branch in branches for part in ("weight", "bias")}
    return {f"head.{name}" for name in HEAD | own}


def muq_state(folder: Path) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in load_muq(str(folder), layer=2).module.state_dict().items()}


@pytest.fixture
def encoders_after(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """State of the whole MuQ, buffers included, after the training of each seed."""
    kept: list[dict[str, Tensor]] = []
    plain = train.new_network

    def watch(*arguments: Any) -> Any:
        made = plain(*arguments)
        _, muq, *_ = made
        kept.append({} if muq is None else muq.module.state_dict())  # tensors that training changes in place
        return made

    monkeypatch.setattr(train, "new_network", watch)
    return kept


@pytest.mark.parametrize("plan", ["baseline", "hybrid"])
def test_what_lora_moves(corpus: Any, tmp_path: Path, encoders_after: list[dict[str, Tensor]], plan: str) -> None:
    trained: TrainedPlan = corpus.train(plan, tmp_path / plan, **SHORT, **LORA)
    adapters = {
        f"suffix.layers.{layer}.self_attn.{projection}.lora_{part}.default.weight"
        for layer in (0, 1)
        for projection in PROJECTIONS
        for part in "AB"
    }
    branches = ("muq", "campplus") if plan == "hybrid" else ("muq",)
    assert set(trained.chosen.trainable) == adapters | head_names(*branches)
    (after,) = encoders_after
    for name, value in muq_state(Path(corpus.values["encoders"]["muq"]["source"])).items():
        found = after.get(
            name, after.get(name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias"))
        )
        assert torch.equal(found, value), f"{name} is frozen, and moved"
    tuned = load_file(trained.scorer_folder() / "muq.safetensors")
    assert len(tuned) == 16
    assert all(value.any() for value in tuned.values()), "every B left zero"
    assert_reloads(corpus, trained, prefix=0)


def test_what_full_tuning_moves(corpus: Any, tmp_path: Path, encoders_after: list[dict[str, Tensor]]) -> None:
    deeper = corpus.extract(tmp_path / "features", tuning="full", tune_from=1)
    trained = deeper.train("baseline", tmp_path / "plan", **SHORT, tuning="full", tune_from=1)
    (after,) = encoders_after
    before = muq_state(Path(corpus.values["encoders"]["muq"]["source"]))
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    # The layer that is read is this MuQ's last: the norm behind it is part of it.
    parts = {"suffix.layers.1.": "model.conformer.layers.1.", "suffix.norm.": "model.conformer.layer_norm."}
    named = {
        theirs + name.removeprefix(ours)
        for name in trained.chosen.trainable
        for ours, theirs in parts.items()
        if name.startswith(ours)
    }
    assert len(named) + len(head_names("muq")) == len(trained.chosen.trainable)
    assert moved <= named
    assert named - moved <= {name for name in named if "linear_k.bias" in name}, "of which softmax takes little notice"
    assert not [name for name in moved if "running_" in name or "num_batches" in name]
    assert set(load_file(trained.scorer_folder() / "muq.safetensors")) == named
    assert_reloads(corpus, trained, prefix=1)


def test_frozen_training_touches_no_encoder(corpus: Any, tmp_path: Path) -> None:
    source = Path(corpus.values["encoders"]["muq"]["source"])
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    trained = corpus.train("hybrid", tmp_path / "plan", **SHORT)
    assert set(trained.chosen.trainable) == head_names("muq", "campplus")
    assert not (trained.scorer_folder() / "muq.safetensors").exists()
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_mix_of_layers_is_learned_beside_the_head(corpus: Any, tmp_path: Path) -> None:
    trained = corpus.train("baseline", tmp_path / "plan", **SHORT, layers="mix")
    assert set(trained.chosen.trainable) == head_names("muq") | {"mix.logits"}
    logits = load_file(trained.scorer_folder() / "head.safetensors")["mix.logits"]
    assert logits.shape == (3,)
    assert logits.any(), "the layers' weights are still equal"
    assert_reloads(corpus, trained, prefix=0)


def assert_reloads(corpus: Any, trained: TrainedPlan, prefix: int) -> None:
    """The saved scorer gives a recording the output of its stored features."""
    scorer, extraction = load_scorer(trained.scorer_folder()), read_extraction(corpus.features)
    assert scorer.description.prefix_layer == prefix
    clips = read_split(corpus.index, "test")[:2]
    features = StoredFeatures(
        clips, extraction.encoders, BRANCHES[trained.plan], FeatureStore(extraction.store), prefix_layer=prefix
    )
    scored = [scorer.score(corpus.data / clip.audio_file).raw for clip in clips]
    assert scored == pytest.approx(list(scorer.raw(features)), abs=1e-5)


def test_gradient_checkpointing_changes_no_weight(corpus: Any, tmp_path: Path) -> None:
    options = {**SHORT, **LORA, "lora": {"rank": 4, "alpha": 6, "dropout": 0.2}, "dropout": 0.3}
    plain, spared = (
        corpus.train("baseline", tmp_path / str(saving), **options, gradient_checkpointing=saving)
        for saving in (False, True)
    )
    for name in ("muq.safetensors", "head.safetensors"):
        wanted, found = (load_file(one.scorer_folder() / name) for one in (plain, spared))
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tuning", [{}, LORA])
def test_an_adversary_reports_singer_accuracy(corpus: Any, tmp_path: Path, tuning: dict[str, Any]) -> None:
    trained = corpus.train("hybrid", tmp_path / "plan", **SHORT, **tuning, adversary={"weight": 1.0})
    speakers = trained.chosen.speakers
    assert speakers is not None
    singers = {clip.singer_id for clip in read_split(corpus.index, "val")}
    assert speakers.singers == len(singers) > 1
    assert 0 <= min(speakers.before, speakers.after) <= max(speakers.before, speakers.after) <= 1
    assert not [name for name in trained.chosen.trainable if "discriminator" in name], "it is not part of the scorer"
    assert json.loads((trained.folder / "plan.json").read_text())["seeds"]["1"]["speakers"] == asdict(speakers)
    plain = corpus.train("hybrid", tmp_path / "plain", **SHORT, **tuning)
    ours, theirs = (load_file(one.scorer_folder() / "head.safetensors") for one in (trained, plain))
    assert any(not torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_speaker_target_that_was_not_extracted_is_named(corpus: Any, tmp_path: Path) -> None:
    wanted = {"weight": 1.0, "target": "samoye", "source": "somewhere"}
    with pytest.raises(ModelError, match="samoye"):
        corpus.train("hybrid", tmp_path / "plan", **SHORT, adversary=wanted)


@pytest.mark.services
def test_resemblyzer_embeddings_are_adversary_targets(corpus: Any, tmp_path: Path) -> None:
    found = importlib.util.find_spec("resemblyzer")
    assert found is not None
    assert found.origin is not None
    wanted = {"weight": 1.0, "target": "ge2e", "source": str(Path(found.origin).parent / "pretrained.pt")}
    with_speakers = corpus.extract(tmp_path / "features", adversary=wanted)
    trained = with_speakers.train("hybrid", tmp_path / "plan", **SHORT, adversary=wanted)
    assert trained.chosen.speakers is not None


def with_order(corpus: Any, target: Path, *, backwards: bool = False) -> Any:
    """The corpus with six of its training clips, without their scores, in two ordered groups."""
    scored = read_split(corpus.index, "train")
    pulled = sorted(scored, key=lambda clip: str(clip.sha256))[:6]
    groups = [
        sorted(part, key=lambda clip: clip.score or 0.0, reverse=not backwards) for part in (pulled[:3], pulled[3:])
    ]
    left = [clip for clip in scored if clip not in pulled]
    write_index(
        target / "index" / "train.json", [left, *([replace(clip, score=None) for clip in one] for one in groups)]
    )
    for split in ("val", "test"):
        write_index(target / "index" / f"{split}.json", [read_split(corpus.index, split)])
    return replace(corpus, index=target)


def test_ordered_groups_are_trained_on_and_recorded(corpus: Any, tmp_path: Path) -> None:
    ordered = with_order(corpus, tmp_path / "ordered")
    groups = read_unscored_groups(ordered.index, "train")
    assert [len(group) for group in groups] == [3, 3]
    found = ordered.train("baseline", tmp_path / "a", **SHORT)
    again = with_order(corpus, tmp_path / "turned", backwards=True).train("baseline", tmp_path / "b", **SHORT)
    ours, turned = (load_file(one.scorer_folder() / "head.safetensors") for one in (found, again))
    moved = [name for name, value in ours.items() if not torch.equal(turned[name], value)]
    assert set(moved) >= {"regressor.5.weight", "fusion.projections.muq.weight"}
    description = read_description(found.scorer_folder())
    assert {str(clip.sha256) for group in groups for clip in group} <= set(description.seen_clips)
    assert description.training["train_clips"] == len(read_split(ordered.index, "train")) + 6


def test_features_with_a_nan_name_the_recording_and_no_plan_is_written(corpus: Any, tmp_path: Path) -> None:
    extraction, clip = read_extraction(corpus.features), read_split(corpus.index, "train")[3]
    store = FeatureStore(tmp_path / "store")
    for reference in (*extraction.encoders.values(), prefix_reference(extraction.encoders["muq"], 0)):
        for split in ("train", "val"):
            for one in read_split(corpus.index, split):
                target = store.path(reference, str(one.sha256))
                source = FeatureStore(extraction.store).path(reference, str(one.sha256))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        value = store.get(reference, str(clip.sha256))
        value.view(-1)[0] = math.nan
        save_file({"feature": value}, store.path(reference, str(clip.sha256)))
    described = json.loads((corpus.features / "extraction.json").read_text())
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "extraction.json").write_text(json.dumps({**described, "store": str(store.root)}))
    (tmp_path / "features" / "encoders").symlink_to(corpus.features / "encoders")
    for options in ({}, LORA):
        with pytest.raises(ModelError, match=f"features of {clip.audio_file}: "):
            replace(corpus, features=tmp_path / "features").train("hybrid", tmp_path / "plan", **SHORT, **options)
    assert not (tmp_path / "plan" / "plan.json").exists()
    # The legacy head has no statistics; its error is found by the loss of the batch.
    with pytest.raises(ModelError, match=rf"^seed 1, epoch 1, step \d: .* 1 of its 10 .*\({clip.audio_file}\)"):
        replace(corpus, features=tmp_path / "features").train("baseline", tmp_path / "p", **SHORT, head="legacy")
