import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from audioscore.data.audio import decode
from audioscore.encoders.features import Features, Kind
from audioscore.encoders.inference import encode_recording
from audioscore.errors import ModelError
from audioscore.scoring import checkpoint
from audioscore.scoring.checkpoint import load_network, load_scorer, read_description, save_scorer
from audioscore.scoring.network import raw_outputs
from audioscore.scoring.scorer import Scorer, Tuning

MakeTuned = Callable[..., Any]
LORA, FULL, MIX = Tuning("lora", 1, 4, 6), Tuning("full", 1), Tuning("frozen", 0, mix=True)
EVERY = [LORA, FULL, MIX, Tuning("lora", 0, 4, 6, mix=True), Tuning("full", 0, mix=True)]
PROJECTIONS = ("linear_k", "linear_out", "linear_q", "linear_v")


def encode(made: Any, recordings: list[Path], tuning: Tuning) -> list[Features]:
    return [encode_recording(decode(path), made.encoders, tuning.from_layer) for path in recordings]


def relative(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(make_tuned: MakeTuned, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each mode, made once."""
    folder = tmp_path_factory.mktemp("tuned")
    return {tuning.mode: make_tuned(tuning).save(folder / tuning.mode) for tuning in (LORA, FULL, MIX)}


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy to damage, of the mode in the test's parameter."""
    return Path(shutil.copytree(saved[request.param], tmp_path / "scorer"))


def edit(folder: Path, **changes: Any) -> None:
    value = json.loads((folder / "scorer.json").read_text())
    (folder / "scorer.json").write_text(json.dumps({**value, **changes}))


@pytest.mark.parametrize("plan", ["baseline", "hybrid"])
@pytest.mark.parametrize("tuning", EVERY, ids=str)
def test_a_loaded_scorer_gives_the_same_outputs(
    make_tuned: MakeTuned, recordings: list[Path], tmp_path: Path, tuning: Tuning, plan: str
) -> None:
    made = make_tuned(tuning, plan=plan)
    features = encode(made, recordings, tuning)
    wanted = raw_outputs(made.network, features)
    assert np.ptp(wanted) > 1e-4
    folder = made.save(tmp_path / "scorer")
    description = read_description(folder)
    assert (description, description.prefix_layer) == (made.description, tuning.from_layer)
    assert np.array_equal(raw_outputs(load_network(folder, description), features), wanted)
    scorer = load_scorer(folder)
    assert np.array_equal(scorer.raw(features), wanted)
    np.testing.assert_allclose([scorer.score(path).raw for path in recordings], wanted, rtol=0, atol=1e-5)
    # The trained weights make the difference: without them the outputs differ.
    untrained = make_tuned(tuning, plan=plan, moved=False)
    assert (np.abs(raw_outputs(untrained.network, features) - wanted) > 1e-4).all()


def test_the_muq_file_contains_exactly_the_tuned_weights(make_tuned: MakeTuned, saved: dict[str, Path]) -> None:
    attention = "model.conformer.layers.1.self_attn"
    wanted = [f"{attention}.{one}.lora_{half}.weight" for one in PROJECTIONS for half in "AB"]
    assert sorted(load_file(saved["lora"] / "muq.safetensors")) == wanted
    full = load_file(saved["full"] / "muq.safetensors")
    made = make_tuned(FULL)
    begins = ("model.conformer.layers.1.", "model.conformer.layer_norm.")
    assert set(full) == {name for name, _ in made.muq.module.named_parameters() if name.startswith(begins)}
    assert "model.conformer.layer_norm.bias" in full
    assert not [name for name in full if "running" in name or "lora" in name]
    heads = {mode: set(load_file(folder / "head.safetensors")) for mode, folder in saved.items()}
    assert heads["lora"] == heads["full"] == heads["frozen"] - {"mix.logits"}
    assert "mix.logits" in heads["frozen"]
    assert not [name for name in heads["lora"] if "conformer" in name or "suffix" in name]


def test_no_file_is_a_pickle_or_contains_a_path(saved: dict[str, Path], tiny_encoders: Path) -> None:
    embedded = ["encoders/muq/config.json", "encoders/muq/model.safetensors"]
    beside = ["head.safetensors", "muq.safetensors", "scorer.json"]
    assert relative(saved["lora"]) == relative(saved["full"]) == [*embedded, *beside]
    assert relative(saved["frozen"]) == [*embedded, "head.safetensors", "scorer.json"]
    for folder in saved.values():
        for name in relative(folder):
            content = (folder / name).read_bytes()
            for path in (tiny_encoders, folder, Path.cwd(), Path.home()):
                assert str(path).encode() not in content, name
            if name.endswith(".safetensors") and "/" not in name:
                with safe_open(folder / name, framework="pt") as handle:
                    assert not handle.metadata()
        assert "/" not in (folder / "scorer.json").read_text()
        tuning = json.loads((folder / "scorer.json").read_text())["tuning"]
        assert set(tuning) == {"mode", "from_layer", "rank", "alpha", "mix"}


def of_a_hub(made: Any) -> Any:
    """The same description, as if its encoders were on a hub."""
    known = {kind: replace(one, id=f"owner/{kind}", revision="v1") for kind, one in made.description.encoders.items()}
    return replace(made.description, encoders=known)


@pytest.fixture
def hub(tiny_encoders: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub with the tiny encoders: the ids it was asked for."""
    asked: list[str] = []

    def from_hub(load: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def found(source: str, **settings: Any) -> Any:
            if source != f"owner/{kind}":
                return load(source, **settings)
            assert settings.pop("revision") == "v1"
            asked.append(source)
            return load(str(tiny_encoders / f"{kind}-small"), **settings)

        return found

    for kind in ("muq", "campplus"):
        monkeypatch.setattr(checkpoint, f"load_{kind}", from_hub(getattr(checkpoint, f"load_{kind}"), kind))
    return asked


@pytest.mark.parametrize("tuning", [LORA, FULL, MIX], ids=str)
def test_hub_encoders_are_embedded_on_request(
    make_tuned: MakeTuned, recordings: list[Path], hub: list[str], tmp_path: Path, tuning: Tuning
) -> None:
    made = make_tuned(tuning, plan="hybrid")
    features, description = encode(made, recordings, tuning), of_a_hub(made)
    wanted = raw_outputs(made.network, features)
    folders = {kind: encoder.folder for kind, encoder in made.encoders.items()}
    some: dict[Kind, Path] = {"campplus": folders["campplus"]}
    for name, embedded in (("whole", folders), ("some", some), ("small", {})):
        save_scorer(made.network, description, embedded, tmp_path / name, made.state)
        held = tmp_path / name / "encoders"
        assert sorted(path.name for path in held.glob("*")) == sorted(embedded)
        assert read_description(tmp_path / name) == description
        scorer = load_scorer(tmp_path / name)
        assert np.array_equal(scorer.raw(features), wanted)
        assert scorer.score(recordings[0]).raw == pytest.approx(wanted[0], abs=1e-5)
        assert sorted(hub) == sorted(f"owner/{kind}" for kind in folders if kind not in embedded)
        hub.clear()


def test_an_encoder_without_a_hub_id_must_be_embedded(make_tuned: MakeTuned, tmp_path: Path) -> None:
    made = make_tuned(LORA, plan="hybrid")
    with pytest.raises(ModelError, match=r"^campplus: "):
        save_scorer(made.network, made.description, {"muq": made.muq.folder}, tmp_path / "scorer", made.state)
    with pytest.raises(ModelError, match=r"^muq and campplus: "):
        save_scorer(made.network, made.description, {}, tmp_path / "scorer", made.state)
    assert not (tmp_path / "scorer").exists()


def test_a_snapshot_in_a_hubs_cache_is_embedded_by_its_content(make_tuned: MakeTuned, tmp_path: Path) -> None:
    made = make_tuned(LORA)
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "v1"
    for folder in (blobs, snapshot / "examples"):
        folder.mkdir(parents=True)
    for number, source in enumerate(sorted(made.muq.folder.iterdir())):
        shutil.copyfile(source, blobs / str(number))
        (snapshot / source.name).symlink_to(Path("../../blobs") / str(number))
    (snapshot / "examples" / "a.wav").write_bytes(b"RIFF")
    (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs")
    save_scorer(made.network, of_a_hub(made), {"muq": snapshot}, tmp_path / "scorer", made.state)
    shutil.rmtree(tmp_path / "cache")
    embedded = tmp_path / "scorer" / "encoders" / "muq"
    assert sorted(path.name for path in embedded.iterdir()) == ["config.json", "model.safetensors"]
    assert load_scorer(tmp_path / "scorer").description.tuning == LORA


@pytest.mark.parametrize("copy", ["lora", "full"], indirect=True)
def test_an_invalid_tuned_tensor_is_refused_by_name(copy: Path, damage: Callable[..., Any]) -> None:
    state = load_file(copy / "muq.safetensors")
    name = sorted(state)[5]
    save_file(damage(state, name), copy / "muq.safetensors")
    for load in (load_scorer, lambda folder: load_network(folder, read_description(folder))):
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            load(copy)


@pytest.mark.parametrize("copy", ["frozen"], indirect=True)
def test_an_invalid_mix_is_refused_by_name(copy: Path, damage: Callable[..., Any]) -> None:
    state = load_file(copy / "head.safetensors")
    save_file(damage(state, "mix.logits"), copy / "head.safetensors")
    with pytest.raises(ModelError, match=r"head\.safetensors: .*mix\.logits"):
        load_scorer(copy)


@pytest.mark.parametrize("copy", ["lora", "full"], indirect=True)
def test_missing_tuned_weights_are_an_error(copy: Path) -> None:
    (copy / "muq.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.conformer\.layers\.1\."):
        load_scorer(copy)


@pytest.mark.parametrize("keep", [0, 20, -1])
@pytest.mark.parametrize("copy", ["lora"], indirect=True)
def test_a_damaged_file_is_refused_by_its_own_name(copy: Path, keep: int) -> None:
    (copy / "muq.safetensors").write_bytes((copy / "muq.safetensors").read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"muq\.safetensors: "):
        load_scorer(copy)


@pytest.mark.parametrize("copy", ["frozen"], indirect=True)
def test_tuned_weights_of_another_scorer_are_refused(copy: Path, saved: dict[str, Path]) -> None:
    shutil.copyfile(saved["lora"] / "muq.safetensors", copy / "muq.safetensors")
    with pytest.raises(ModelError, match=r"\b8 tensors .*lora_A"):
        load_scorer(copy)


@pytest.mark.parametrize("copy", ["lora", "full", "frozen"], indirect=True)
def test_other_weights_below_the_tuned_layers_are_refused(copy: Path) -> None:
    weights = copy / "encoders" / "muq" / "model.safetensors"
    state = load_file(weights)
    weights.unlink()  # a new file: `link_or_copy` may have linked it to others
    save_file({name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()}, weights)
    for load in (load_scorer, lambda folder: load_network(folder, read_description(folder))):
        with pytest.raises(ModelError, match=r"^muq: .*\b[0-9a-f]{12} .*\b[0-9a-f]{12}\b"):
            load(copy)


@pytest.mark.parametrize(
    "tuning", [{"mode": "lora"}, {"mode": "lora", "from_layer": 1, "rank": None, "alpha": 6},
    {"mode": "lora", "from_layer": 1, "rank": 8, "alpha": 6}, {"mode": "lora", "from_layer": 0, "rank": 4, "alpha": 6},
    {"mode": "lora", "from_layer": 2, "rank": 4, "alpha": 6},
    {"mode": "lora", "from_layer": "1", "rank": 4, "alpha": 6},
    {"mode": "lora", "from_layer": 1, "rank": 4, "alpha": 6, "mix": True},
    {"mode": "lora", "from_layer": 1, "rank": 4, "alpha": 6, "dropout": 0.1}, {"mode": "full", "from_layer": 1},
    {"mode": "frozen", "from_layer": 1}, {"mode": "dora", "from_layer": 1, "rank": 4, "alpha": 6}, "lora", None]
)  # fmt: skip
@pytest.mark.parametrize("copy", ["lora"], indirect=True)
def test_another_tuning_than_the_saved_one_is_refused(copy: Path, tuning: Any) -> None:
    edit(copy, tuning=tuning)
    with pytest.raises(ModelError):
        load_scorer(copy)


@pytest.mark.parametrize("copy", ["frozen"], indirect=True)
def test_an_unknown_mode_is_an_error(copy: Path) -> None:
    edit(copy, tuning={"mode": "dora", "from_layer": 0, "mix": True})
    with pytest.raises(ModelError, match="dora"):
        load_scorer(copy)


@pytest.mark.parametrize("copy", ["lora"], indirect=True)
def test_tuned_layers_without_an_encoder_are_an_error(copy: Path) -> None:
    edit(copy, encoders={})
    for load in (load_scorer, lambda folder: load_network(folder, read_description(folder))):
        with pytest.raises(ModelError):
            load(copy)


@pytest.mark.parametrize("mode", ["lora", "full", "frozen"])
def test_two_loads_share_nothing(saved: dict[str, Path], recordings: list[Path], mode: str) -> None:
    first, second = load_scorer(saved[mode]), load_scorer(saved[mode])

    def held(scorer: Scorer) -> set[int]:
        modules = [scorer.network, *(encoder.module for encoder in scorer.encoders.values())]
        tensors = [value for module in modules for value in [*module.parameters(), *module.buffers()]]
        return {value.untyped_storage().data_ptr() for value in tensors if value.numel()}

    assert not held(first) & held(second)
    before = second.score(recordings[0])
    with torch.no_grad():
        for value in first.network.parameters():
            value.zero_()
    assert second.score(recordings[0]) == before


@pytest.mark.parametrize("mode", ["lora", "full", "frozen"])
def test_a_loaded_network_has_no_gradients_and_stays_in_eval_mode(saved: dict[str, Path], mode: str) -> None:
    scorer = load_scorer(saved[mode])
    for module in (scorer.network, scorer.encoders["muq"].module):
        assert not any(value.requires_grad for value in module.parameters())
        assert not any(part.training for part in module.modules())


def test_a_loaded_scorer_keeps_its_window(make_tuned: MakeTuned, recordings: list[Path], tmp_path: Path) -> None:
    made = make_tuned(LORA, window=1.0)
    features = encode(made, recordings, LORA)
    assert max(int(clip["windows"]) for clip in features) > 1
    scorer = load_scorer(made.save(tmp_path / "scorer"))
    assert scorer.encoders["muq"].reference == made.muq.reference
    wanted = raw_outputs(made.network, features)
    np.testing.assert_allclose([scorer.score(path).raw for path in recordings], wanted, rtol=0, atol=1e-5)
