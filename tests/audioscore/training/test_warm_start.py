import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audioscore.encoders.features import EncoderReference, Features
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_layers import prefix_frames
from audioscore.errors import ModelError
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.checkpoint import build_network, save_scorer, tuned_state
from audioscore.scoring.legacy.convert import convert
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.scorer import Description, Tuning
from audioscore.training.recipe import Recipe
from audioscore.training.warm_start import loads_head, warm_start

LIGHT = {"dims": {"muq": 32}, "width": 8, "hidden": 8, "dropout": 0.2, "kind": "light", "pooled": False}
HYBRID = {**LIGHT, "dims": {"muq": 32, "campplus": 64}}
LEGACY = {"kind": "predecessor", "dim": 32, "hidden": 48}
LORA, FULL, MIX = Tuning("lora", 0, 4, 6), Tuning("full", 1), Tuning("frozen", 1, mix=True)


def started(
    folder: Path, head: dict[str, Any], tuning: Tuning, seed: int, layer: int = 2
) -> tuple[ScoreNetwork, MuQEncoder]:
    """A network before its first step, and its MuQ."""
    muq = load_muq(str(folder), layer=layer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(head, tuning, muq)
    return network, muq


def changed(network: ScoreNetwork, seed: int) -> None:
    """Change what training changes: trainable parameters, and the statistics of the clips."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for value in network.head.buffers():
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))


def saved(folder: Path, target: Path, head: dict[str, Any], tuning: Tuning) -> ScoreNetwork:
    """A trained scorer in a folder."""
    network, muq = started(folder, head, tuning, seed=1)
    changed(network, 1)
    description = Description(
        "hybrid" if "campplus" in head.get("dims", {}) else "baseline", 1, {"muq": muq.reference}, head,
        Calibration((-1.0, 1.0), (60.0, 90.0), 5.0), (), "d.dir", "abc", tuning=tuning,
    )  # fmt: skip
    save_scorer(network, description, {"muq": folder}, target, tuned_state(tuning, muq))
    network.eval()
    return network


def prefixes(muq: MuQEncoder, layer: int) -> list[Features]:
    rng = np.random.default_rng(5)
    waves = [torch.from_numpy(rng.normal(size=24_000 + 4_800 * row).astype(np.float32)) * 0.1 for row in range(3)]
    return [{"muq": prefix_frames(muq, wave, layer), "windows": torch.tensor(1)} for wave in waves]


@pytest.fixture(scope="module")
def small(tiny_encoders: Path) -> Path:
    return tiny_encoders / "muq-small"


@pytest.mark.parametrize("tuning", [LORA, FULL, MIX, replace(LORA, mix=True)])
def test_a_scorer_with_the_same_settings_is_loaded_completely(small: Path, tmp_path: Path, tuning: Tuning) -> None:
    before = saved(small, tmp_path / "old", LIGHT, tuning)
    network, muq = started(small, LIGHT, tuning, seed=2)
    recipe = Recipe({**LIGHT, "dropout": 0.5}, tuning, adversary=False)
    features = prefixes(muq, tuning.from_layer)
    wanted = raw_outputs(before, features)
    assert np.abs(raw_outputs(network, features) - wanted).max() > 1e-3
    trainable = [name for name, value in network.named_parameters() if value.requires_grad]
    assert str(tmp_path / "old") in warm_start(network, recipe, muq, tmp_path / "old")
    assert raw_outputs(network, features) == pytest.approx(wanted, abs=1e-6)
    assert [name for name, value in network.named_parameters() if value.requires_grad] == trainable
    assert loads_head(recipe, tmp_path / "old")


def test_the_head_of_a_hybrid_always_starts_from_scratch(small: Path, tmp_path: Path) -> None:
    for head in (LIGHT, HYBRID):
        target = tmp_path / ("hybrid" if head is HYBRID else "baseline")
        saved(small, target, head, LORA)
        network, muq = started(small, HYBRID, LORA, seed=2)
        first = {name: value.clone() for name, value in network.head.state_dict().items()}
        recipe = Recipe(HYBRID, LORA, adversary=False)
        before = {name: value.clone() for name, value in tuned_state(LORA, muq).items()}
        warm_start(network, recipe, muq, target)
        assert any(not torch.equal(before[name], value) for name, value in tuned_state(LORA, muq).items())
        assert all(torch.equal(first[name], value) for name, value in network.head.state_dict().items())
        assert not loads_head(recipe, target)


@pytest.mark.parametrize(("head", "tuning", "why"), [
    ({**LIGHT, "hidden": 9}, LORA, r"hidden 8\b.*\b9\b"),
    ({**LEGACY, "hidden": 8}, LORA, rf"kind light .*{LEGACY['kind']}"),
    (LIGHT, replace(LORA, alpha=5), r"alpha 6\b.*\b5\b"),
    (LIGHT, FULL, "mode lora .*full"),
])  # fmt: skip
def test_only_the_fitting_part_is_loaded(
    small: Path, tmp_path: Path, head: dict[str, Any], tuning: Tuning, why: str
) -> None:
    saved(small, tmp_path / "old", LIGHT, LORA)
    network, muq = started(small, head, tuning, seed=2)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    assert re.search(why, warm_start(network, Recipe(head, tuning, adversary=False), muq, tmp_path / "old"))
    moved = {name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(first[name], value)}
    assert moved == ({"head"} if head == LIGHT else {"suffix"})


def test_a_frozen_muq_gets_no_adapters_and_is_compared_by_its_reference(small: Path, tmp_path: Path) -> None:
    before = saved(small, tmp_path / "old", LIGHT, LORA)
    recipe = Recipe(LIGHT, None, adversary=False)
    for reference in (load_muq(str(small), layer=2).reference, None):
        network = build_network(LIGHT, None, None)
        assert str(tmp_path / "old") in warm_start(network, recipe, None, tmp_path / "old", reference=reference)
        state = before.head.state_dict()
        assert all(torch.equal(state[name], value) for name, value in network.head.state_dict().items())
    other = EncoderReference("muq", None, None, "ab" * 32, 2)
    with pytest.raises(ModelError, match="layer 2 of MuQ abababababab"):
        warm_start(build_network(LIGHT, None, None), recipe, None, tmp_path / "old", reference=other)


def test_no_fitting_part_is_an_error_and_changes_nothing(small: Path, tmp_path: Path) -> None:
    saved(small, tmp_path / "old", LIGHT, LORA)
    head, tuning = {**LIGHT, "width": 16}, replace(LORA, rank=8)
    network, muq = started(small, head, tuning, seed=2)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    expected = rf"^{tmp_path / 'old'}: .*width 8\b.*\b16\b.*rank 4\b.*\b8\b.*init: scratch"
    with pytest.raises(ModelError, match=expected):
        warm_start(network, Recipe(head, tuning, adversary=False), muq, tmp_path / "old")
    assert all(torch.equal(first[name], value) for name, value in network.state_dict().items())


def test_other_folders_and_another_muq_are_refused(small: Path, legacy: Any, tmp_path: Path) -> None:
    saved(small, tmp_path / "old", LIGHT, LORA)
    network, muq = started(legacy.muq, LIGHT, LORA, seed=2)
    recipe = Recipe(LIGHT, LORA, adversary=False)
    with pytest.raises(ModelError, match=r"layer 2 of MuQ [0-9a-f]{12},.* layer 2 of MuQ [0-9a-f]{12}"):
        warm_start(network, recipe, muq, tmp_path / "old")
    with pytest.raises(ModelError, match=r"layer 6 of MuQ,.* layer 2\b"):
        warm_start(network, recipe, muq, legacy.adapters)
    with pytest.raises(ModelError, match=r"scorer\.json"):
        warm_start(network, recipe, muq, tmp_path)


def test_damaged_weights_are_refused_and_the_network_is_unchanged(small: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(small, tmp_path / "old", LIGHT, LORA)
    network, muq = started(small, LIGHT, LORA, seed=2)
    recipe = Recipe(LIGHT, LORA, adversary=False)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    adapters = load_file(tmp_path / "old" / "muq.safetensors")
    name = sorted(adapters)[0]
    wrong: list[tuple[dict[str, torch.Tensor], str]] = [
        ({key: value for key, value in adapters.items() if key != name}, r"1 missing: .*lora_A"),
        ({**adapters, name: torch.full_like(adapters[name], float("nan"))}, r"muq\.safetensors: .* not finite"),
    ]
    for state, description in wrong:
        save_file(state, tmp_path / "old" / "muq.safetensors")
        with pytest.raises(ModelError, match=description):
            warm_start(network, recipe, muq, tmp_path / "old")
    (tmp_path / "old" / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"head\.safetensors: "):
        warm_start(network, recipe, muq, tmp_path / "old")
    assert all(torch.equal(first[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_a_legacy_head_and_its_adapters_give_the_legacy_tags(legacy: Any, variant: str) -> None:
    folder = getattr(legacy, variant)
    network, muq = started(legacy.muq, LEGACY, LORA, seed=2, layer=6)
    wave = torch.from_numpy(np.random.default_rng(2).normal(size=36_000).astype(np.float32)) * 0.2
    features = [{"muq": prefix_frames(muq, wave, 0), "windows": torch.tensor(1)}]
    state = torch.random.get_rng_state()
    assert str(folder) in warm_start(network, Recipe(LEGACY, LORA, adversary=False), muq, folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    raw = float(raw_outputs(network, features)[0])
    assert 2 + 2 * np.tanh(raw) == pytest.approx(5 - legacy.tag(wave.numpy()), abs=1e-5)


def test_legacy_adapters_fit_any_head(legacy: Any) -> None:
    for head in (LIGHT, HYBRID):
        network, muq = started(legacy.muq, head, LORA, seed=2, layer=6)
        first = {name: value.clone() for name, value in network.head.state_dict().items()}
        warm_start(network, Recipe(head, LORA, adversary=False), muq, legacy.adapters)
        assert all(torch.equal(first[name], value) for name, value in network.head.state_dict().items())
        assert tuned_state(LORA, muq)["model.conformer.layers.5.self_attn.linear_q.lora_B.weight"].any()


@pytest.mark.parametrize(("tuning", "why"), [
    (replace(LORA, rank=8), r"rank 4\b.*\b8\b"),
    (replace(LORA, from_layer=2), r"from_layer 0\b.*\b2\b"),
])  # fmt: skip
@pytest.mark.parametrize("variant", ["adapters", "full"])
def test_a_legacy_head_is_loaded_without_its_adapters(legacy: Any, variant: str, tuning: Tuning, why: str) -> None:
    network, muq = started(legacy.muq, LEGACY, tuning, seed=2, layer=6)
    folder = getattr(legacy, variant)
    adapters = {name: value.clone() for name, value in tuned_state(tuning, muq).items()}
    first = {name: value.clone() for name, value in network.head.state_dict().items()}
    assert re.search(why, warm_start(network, Recipe(LEGACY, tuning, adversary=False), muq, folder))
    assert all(torch.equal(adapters[name], value) for name, value in tuned_state(tuning, muq).items())
    assert any(not torch.equal(first[name], value) for name, value in network.head.state_dict().items())
    assert not loads_head(Recipe(LEGACY, tuning, adversary=False), folder)


def test_adapters_with_another_alpha_are_not_loaded(legacy: Any) -> None:
    tuning = replace(LORA, alpha=7)
    network, muq = started(legacy.muq, LIGHT, tuning, seed=2, layer=6)
    with pytest.raises(ModelError, match=r"alpha 6\b.*\b7\b"):
        warm_start(network, Recipe(LIGHT, tuning, adversary=False), muq, legacy.adapters)


def test_a_legacy_model_with_another_muq_must_be_converted(legacy: Any, tmp_path: Path) -> None:
    shutil.copytree(legacy.full, tmp_path / "old")
    state = torch.load(tmp_path / "old" / "muq_lora.pt", weights_only=True)
    state["model.conformer.layers.3.ffn1.output_dense.bias"] += 0.1
    torch.save(state, tmp_path / "old" / "muq_lora.pt")
    recipe = Recipe(LEGACY, LORA, adversary=False)
    network, muq = started(legacy.muq, LEGACY, LORA, seed=2, layer=6)
    with pytest.raises(ModelError, match=r"\b1 tensors? .*\(.*3\.ffn1"):
        warm_start(network, recipe, muq, tmp_path / "old")
    convert(tmp_path / "old", tmp_path / "new", str(legacy.muq), rank=4, alpha=6)
    network, muq = started(tmp_path / "new" / "encoders" / "muq", LEGACY, LORA, seed=2, layer=6)
    assert str(tmp_path / "new") in warm_start(network, recipe, muq, tmp_path / "new")
