import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from audioscore.config import Plan
from audioscore.encoders.features import Kind
from audioscore.errors import ModelError
from audioscore.files import sha256_of
from audioscore.scoring import checkpoint
from audioscore.scoring.checkpoint import load_network, load_scorer, read_description, save_scorer
from audioscore.scoring.scorer import Scorer

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def save(scorer: Scorer, folder: Path) -> None:
    save_scorer(
        scorer.network, scorer.description, {kind: encoder.folder for kind, encoder in scorer.encoders.items()}, folder
    )


@pytest.fixture(scope="module")
def saved(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorers") / "seed-2"
    save(scorer, folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of the scorer folder to damage."""
    return Path(shutil.copytree(saved, tmp_path / "scorer-copy"))


def edit(folder: Path, **changes: Any) -> None:
    value = json.loads((folder / "scorer.json").read_text())
    for name, change in changes.items():
        if change is None:
            del value[name]
        else:
            value[name] = change
    (folder / "scorer.json").write_text(json.dumps(value))


@pytest.mark.parametrize("plan", ["baseline", "hybrid", "campplus_only"])
def test_a_loaded_scorer_scores_the_same(make_scorer: Any, recordings: list[Path], tmp_path: Path, plan: Plan) -> None:
    scorer = make_scorer(plan)
    save(scorer, tmp_path / "scorer")
    again = load_scorer(tmp_path / "scorer")
    assert again.description == scorer.description
    for path in recordings:
        before, after = scorer.score(path), again.score(path)
        assert after.raw == pytest.approx(before.raw, abs=1e-6)
        assert after.score == pytest.approx(before.score, abs=1e-6)
        assert after.interval == pytest.approx(before.interval, abs=1e-6)


def test_a_scorer_folder_can_be_moved(
    saved: Path, scorer: Scorer, recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(saved, tmp_path / "elsewhere" / "scorer"))
    monkeypatch.chdir(moved.parent)
    loaded = load_scorer(Path("scorer"))
    assert loaded.score(recordings[0]) == scorer.score(recordings[0])
    assert not any(part.training for part in loaded.network.modules())


def test_the_description_is_complete_and_contains_no_path(saved: Path, scorer: Scorer, tiny_encoders: Path) -> None:
    text = (saved / "scorer.json").read_text()
    for path in (saved, tiny_encoders, Path.cwd(), Path.home()):
        assert str(path) not in text
    assert "/" not in text
    value = json.loads(text)
    assert value["score"] == {"min": 0.0, "max": 100.0, "direction": "higher is better"}
    assert value["sample_rates"] == {"muq": 24_000, "campplus": 16_000}
    assert (value["format"], value["plan"], value["seed"], value["tuning"]) == (2, "hybrid", 2, None)
    assert value["seen_clips"] == ["ab" * 32, "cd" * 32]
    assert (value["data_digest"], value["code_revision"]) == ("0123.dir", "abc1234")
    assert value["licence_of_weights"] == "unknown"  # weights that are not published
    muq = tiny_encoders / "muq-small"
    assert value["encoders"]["muq"]["sha256"] == sha256_of(muq / "config.json", muq / "model.safetensors")
    assert set(value["encoders"]["muq"]) == {"kind", "id", "revision", "sha256", "layer", "precision", "window"}
    assert read_description(saved) == scorer.description


def test_only_the_published_campplus_is_a_pickle(saved: Path) -> None:
    files = sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    assert files == [
        "encoders/campplus/campplus_small.bin", "encoders/campplus/configuration.json", "encoders/muq/config.json",
        "encoders/muq/model.safetensors", "head.safetensors", "scorer.json"
    ]  # fmt: skip
    assert [name for name in files if Path(name).suffix in PICKLES] == ["encoders/campplus/campplus_small.bin"]


def test_a_network_of_a_head_alone_loads_without_its_encoders(copy: Path, scorer: Scorer) -> None:
    shutil.rmtree(copy / "encoders")
    network = load_network(copy, read_description(copy))
    assert {name: value.tolist() for name, value in network.state_dict().items()} == {
        name: value.tolist() for name, value in scorer.network.state_dict().items()
    }
    assert not network.training
    assert not any(value.requires_grad for value in network.parameters())


@pytest.mark.parametrize("keep", [None, 0, 20, -1])
def test_a_missing_or_damaged_head_is_refused(copy: Path, keep: int | None) -> None:
    weights = copy / "head.safetensors"
    if keep is None:
        weights.unlink()
    else:
        # A new file: `link_or_copy` may have linked it to others.
        content = weights.read_bytes()[:keep]
        weights.unlink()
        weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"head\.safetensors: "):
        load_scorer(copy)


HEAD = {"dims": {"muq": 32, "campplus": 64}, "width": 8, "hidden": 8, "dropout": 0.3}


@pytest.mark.parametrize(
    "change", [{"width": 9}, {"dims": {"muq": 32}}, {"kind": "attention"}, {"pooled": True}, {"kind": "songeval"}]
)
def test_a_head_that_differs_from_the_description_is_an_error(copy: Path, change: dict[str, Any]) -> None:
    edit(copy, head={**HEAD, **change})
    with pytest.raises(ModelError, match=r"head\.safetensors: "):
        load_scorer(copy)


@pytest.mark.parametrize("head", [{**HEAD, "dims": {"pitch": 1}}, {"dims": HEAD["dims"]}, {**HEAD, "kind": "deep"}])
def test_an_invalid_head_description_is_refused(copy: Path, head: dict[str, Any]) -> None:
    edit(copy, head=head)
    with pytest.raises(ModelError, match=r"head .*\(.+\)"):
        load_scorer(copy)


@pytest.mark.parametrize("name", ["fusion.norms.muq.std", "fusion.projections.campplus.weight", "regressor.5.bias"])
def test_an_invalid_head_tensor_is_refused_by_name(copy: Path, damage: Callable[..., Any], name: str) -> None:
    state = load_file(copy / "head.safetensors")
    (copy / "head.safetensors").unlink()
    save_file(damage(state, name), copy / "head.safetensors")
    with pytest.raises(ModelError, match=rf"head\.safetensors: .*{re.escape(name)}"):
        load_scorer(copy)


@pytest.mark.parametrize(("kind", "name"), [("muq", "MuQ"), ("campplus", r"CAM\+\+")])
def test_a_missing_encoder_is_an_error(copy: Path, kind: str, name: str) -> None:
    shutil.rmtree(copy / "encoders" / kind)
    with pytest.raises(ModelError, match=name):
        load_scorer(copy)


@pytest.mark.parametrize("kind", ["muq", "campplus"])
def test_another_encoder_than_in_training_is_refused(copy: Path, scorer: Scorer, kind: Kind) -> None:
    references = {name: reference.to_json() for name, reference in scorer.description.encoders.items()}
    references[kind] = {**references[kind], "sha256": "ef" * 32}
    edit(copy, encoders=references)
    with pytest.raises(ModelError, match=rf"^{kind}: .*\b[0-9a-f]{{12}} .*\befefefefefef\b"):
        load_scorer(copy)


def test_a_folder_without_a_scorer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"scorer\.json missing"):
        load_scorer(tmp_path)


@pytest.mark.parametrize("number", [0, 3, "2"])
def test_an_unsupported_format_is_refused_with_the_supported_ones(copy: Path, number: object) -> None:
    edit(copy, format=number)
    with pytest.raises(ModelError, match=rf"scorer\.json: format {number}\b.*\(1, 2\)"):
        load_scorer(copy)


def as_format_1(folder: Path) -> None:
    """Convert a folder to format 1: all heads are light, and weights have other names."""
    older = {"fusion.norms.": "norms.", "fusion.projections.": "projections.", "regressor.": "mlp."}
    state = {}
    for name, value in load_file(folder / "head.safetensors").items():
        begins = next((begins for begins in older if name.startswith(begins)), "")
        state[older.get(begins, "") + name.removeprefix(begins)] = value
    assert set(state) == {
        *(f"norms.{kind}.{part}" for kind in ("muq", "campplus") for part in ("mean", "std")),
        *(f"projections.{kind}.{part}" for kind in ("muq", "campplus") for part in ("weight", "bias")),
        *(f"mlp.{index}.{part}" for index in (0, 2, 5) for part in ("weight", "bias")), "attention.score.weight",
        "attention.score.bias"
    }  # fmt: skip
    (folder / "head.safetensors").unlink()
    save_file(state, folder / "head.safetensors")
    value = json.loads((folder / "scorer.json").read_text())
    keys = ("kind", "id", "revision", "sha256", "layer")
    encoders = {kind: {key: one[key] for key in keys} for kind, one in value["encoders"].items()}
    head = {key: value["head"][key] for key in ("dims", "width", "hidden", "dropout")}
    edit(folder, format=1, tuning=None, encoders=encoders, head=head)


def test_format_1_scores_the_same(copy: Path, scorer: Scorer, recordings: list[Path], tmp_path: Path) -> None:
    as_format_1(copy)
    older = load_scorer(copy)
    assert older.description == scorer.description
    for path in recordings:
        assert older.score(path) == scorer.score(path)
    save(older, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "scorer.json").read_text())["format"] == 2
    assert load_scorer(tmp_path / "again").score(recordings[0]) == scorer.score(recordings[0])


def test_loading_does_not_change_the_random_state(saved: Path) -> None:
    before = torch.get_rng_state()
    load_scorer(saved)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change", [{"calibration": None}, {"plan": None}, {"encoders": []}, {"encoders": {"muq": {"kind": "muq"}}},
    {"calibration": {"raw": [0]}}, {"format": None}]
)  # fmt: skip
def test_an_incomplete_description_is_refused(copy: Path, change: dict[str, Any]) -> None:
    edit(copy, **change)
    with pytest.raises(ModelError, match=r"scorer\.json: .*\(\w+: .+\)"):
        load_scorer(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_description_that_is_not_a_json_object_is_refused(copy: Path, text: str) -> None:
    (copy / "scorer.json").write_text(text)
    with pytest.raises(ModelError, match=r"scorer\.json: "):
        load_scorer(copy)


def test_a_killed_write_changes_nothing(scorer: Scorer, tmp_path: Path, recordings: Any, monkeypatch: Any) -> None:
    save(scorer, tmp_path / "old")
    before = scorer.score(recordings[0])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", die)
    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            save(scorer, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert load_scorer(tmp_path / "old").score(recordings[0]) == before
