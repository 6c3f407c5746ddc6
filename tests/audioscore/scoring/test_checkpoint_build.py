from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioscore.encoders.adapters import PROJECTIONS
from audioscore.encoders.features import WINDOWS, Features
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_layers import prefix_frames
from audioscore.errors import ModelError
from audioscore.scoring.checkpoint import build_network, load_tuned_state, tuned_state
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import ScoreNetwork, collate, raw_outputs
from audioscore.scoring.scorer import Tuning

MakeTuned = Callable[..., Any]
Damage = Callable[[dict[str, Tensor], str], dict[str, Tensor]]
HEAD = {"dims": {"muq": 32}, "width": 8, "hidden": 8, "dropout": 0.3}
HEADS_OWN = {
    "head.fusion.projections.muq.weight", "head.fusion.projections.muq.bias", "head.attention.score.weight",
    "head.attention.score.bias", *(f"head.regressor.{index}.{leaf}" for index in (0, 2, 5)
    for leaf in ("weight", "bias"))
}  # fmt: skip
LORA, FULL, MIX = Tuning("lora", 1, 4, 6), Tuning("full", 1), Tuning("frozen", 1, mix=True)
LORA_MIX = Tuning("lora", 0, 4, 6, mix=True)
EVERY = [LORA, FULL, MIX, LORA_MIX, Tuning("full", 0, mix=True)]


@pytest.fixture
def muq(tiny_encoders: Path) -> MuQEncoder:
    return load_muq(str(tiny_encoders / "muq-small"), layer=2)


def adapters(*layers: int) -> set[str]:
    return {
        f"model.conformer.layers.{layer}.self_attn.{projection}.lora_{half}.default.weight" for layer in layers
        for projection in PROJECTIONS for half in "AB"
    }  # fmt: skip


def in_network(names: set[str]) -> set[str]:
    """Names of MuQ's parameters in the network."""
    return {
        name.replace("model.conformer.layers", "suffix.layers").replace("model.conformer.layer_norm", "suffix.norm")
        for name in names
    }


def layers_of(module: nn.Module, *layers: int) -> set[str]:
    """Names of every parameter of these layers, and of the norm behind the last one."""
    begins = (*(f"model.conformer.layers.{layer}." for layer in layers), "model.conformer.layer_norm.")
    return {name for name, _ in module.named_parameters() if name.startswith(begins)}


def trained(network: nn.Module) -> set[str]:
    return {name for name, value in network.named_parameters() if value.requires_grad}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, including non-persistent ones."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def test_without_tuning_the_network_is_only_a_head(muq: MuQEncoder) -> None:
    for given in (None, muq):
        network = build_network(HEAD, None, given)
        assert (network.suffix, network.mix, network.windowed) == (None, None, False)
        assert {name for name, _ in network.named_parameters()} == trained(network) == HEADS_OWN
        assert isinstance(network.head, ScoreHead)
    assert trained(muq.module) == set()


def test_trainable_parameters(tiny_encoders: Path) -> None:
    cases = [(LORA, adapters(1)), (LORA_MIX, adapters(0, 1)), (FULL, None), (MIX, set())]
    for tuning, names in cases:
        muq = load_muq(str(tiny_encoders / "muq-small"), layer=2)
        network = build_network(HEAD, tuning, muq)
        names = layers_of(muq.module, 1) if names is None else names
        assert trained(muq.module) == names
        assert trained(network) == HEADS_OWN | in_network(names) | ({"mix.logits"} if tuning.mix else set())
        assert ("model.conformer.layer_norm.weight" in names) is (tuning is FULL)


@pytest.mark.parametrize("tuning", EVERY, ids=str)
def test_training_changes_exactly_the_trainable_parameters(muq: MuQEncoder, tuning: Tuning) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build_network(HEAD, tuning, muq)
        features: list[Features] = [
            {"muq": prefix_frames(muq, 0.1 * torch.randn(samples), tuning.from_layer), WINDOWS: torch.tensor(1)}
            for samples in (12_000, 20_000, 9_000)
        ]
        module, whole, names = tensors_of(muq.module), tensors_of(network), trained(muq.module)
        network.train()
        optimizer = torch.optim.AdamW(
            [value for value in network.parameters() if value.requires_grad], lr=1e-2, weight_decay=0.1
        )
        for _ in range(3):  # an adapter's A has no gradient until its B has changed
            optimizer.zero_grad()
            network(collate(features, windowed=True)).square().sum().backward()
            optimizer.step()
    assert {name for name, value in muq.module.named_parameters() if value.grad is not None} == names
    after = tensors_of(muq.module)
    assert after.keys() == module.keys()
    assert {name for name in module if not torch.equal(after[name], module[name])} == names
    assert any("running_var" in name for name in module)
    moved = {name for name, value in tensors_of(network).items() if not torch.equal(value, whole[name])}
    # Softmax ignores a constant, so only weight decay changes that one.
    assert moved | {"head.attention.score.bias"} == trained(network) | {"head.attention.score.bias"}


@pytest.mark.parametrize("tuning", EVERY, ids=str)
def test_frozen_parts_do_not_leave_eval_mode(muq: MuQEncoder, tuning: Tuning) -> None:
    network = build_network(HEAD, tuning, muq).train()
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 2 - tuning.from_layer
    assert not any(part.training for part in norms)
    leaves = {name: part for name, part in muq.module.named_modules() if not [*part.children()]}
    training = {name for name, part in leaves.items() if part.training and "lora_" not in name}
    assert bool(training) is (tuning.mode == "full")
    assert {
        name for name in training if not name.startswith(("model.conformer.layers", "model.conformer.layer_norm"))
    } == set()


def test_the_suffix_is_the_encoders_own_layers(muq: MuQEncoder) -> None:
    network = build_network(HEAD, LORA, muq, checkpointing=True)
    assert network.suffix.layers["1"] is muq.module.model.conformer.layers[1]
    assert list(network.suffix.layers) == ["1"]
    assert network.suffix.checkpointing


def test_dropout_and_scaling_of_adapters(muq: MuQEncoder) -> None:
    build_network(HEAD, LORA, muq, lora_dropout=0.25)
    dropped = [
        part.p for name, part in muq.module.named_modules() if "lora_dropout" in name and isinstance(part, nn.Dropout)
    ]
    assert dropped == [0.25] * 4
    assert muq.module.model.conformer.layers[1].self_attn.linear_q.scaling == {"default": 6 / 4}


@pytest.mark.parametrize("tuning", [None, *EVERY], ids=str)
def test_the_same_seed_gives_the_same_network(tiny_encoders: Path, tuning: Tuning | None) -> None:
    def build(seed: int) -> dict[str, Tensor]:
        fresh = load_muq(str(tiny_encoders / "muq-small"), layer=2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_network(HEAD, tuning, fresh).state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize(("tuning", "match"), [
    (Tuning("lora", 0, None, 2), "rank .*alpha"), (Tuning("lora", 0, 4, None), "rank .*alpha"),
    (Tuning("lora", 2, 4, 2), r"layer 2\b.* 0 to 1\b"), (Tuning("full", 2), r"layer 2\b.* 0 to 1\b"),
    (Tuning("frozen", 2, mix=True), r"layer 2\b.* 0 to 1\b"),
    (Tuning("frozen", -1, mix=True), r"layer -1\b.* 0 to 1\b"),
])  # fmt: skip
def test_unknown_layers_and_adapters_without_sizes_are_errors(muq: MuQEncoder, tuning: Tuning, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        build_network(HEAD, tuning, muq)


def test_a_tuned_network_without_muq_is_an_error() -> None:
    with pytest.raises(ModelError, match="MuQ"):
        build_network(HEAD, LORA, None)


def test_the_tuned_state_has_exactly_the_tuned_weights(make_tuned: MakeTuned) -> None:
    made = make_tuned(LORA)
    plain = {name.replace(".default", "") for name in adapters(1)}
    assert set(made.state) == plain
    made = make_tuned(FULL)
    assert set(made.state) == layers_of(made.muq.module, 1)
    assert set(make_tuned(LORA_MIX).state) == {name.replace(".default", "") for name in adapters(0, 1)}
    assert make_tuned(MIX).state == {}
    assert tuned_state(None, made.muq) == tuned_state(LORA, None) == {}


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=str)
def test_a_tuned_state_is_a_copy(make_tuned: MakeTuned, tuning: Tuning) -> None:
    made = make_tuned(tuning)
    before = {name: value.clone() for name, value in made.state.items()}
    with torch.no_grad():
        for parameter in made.muq.module.parameters():
            parameter += 1.0
    assert all(torch.equal(value, before[name]) for name, value in made.state.items())


@pytest.mark.parametrize("tuning", [LORA, FULL, LORA_MIX], ids=str)
def test_a_tuned_state_loads_into_an_equal_network(make_tuned: MakeTuned, tuning: Tuning) -> None:
    made, fresh = make_tuned(tuning), make_tuned(tuning, moved=False)
    wave = 0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    features: list[Features] = [{"muq": prefix_frames(made.muq, wave, tuning.from_layer), WINDOWS: torch.tensor(1)}]
    wanted = raw_outputs(ScoreNetwork(made.network.head, made.network.suffix), features)
    other = ScoreNetwork(made.network.head, fresh.network.suffix)
    assert abs(raw_outputs(other, features) - wanted) > 1e-4
    load_tuned_state(tuning, fresh.muq, made.state)
    assert raw_outputs(other, features) == wanted
    assert {name: value.tolist() for name, value in tuned_state(tuning, fresh.muq).items()} == {
        name: value.tolist() for name, value in made.state.items()
    }


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=str)
def test_an_invalid_tuned_state_changes_nothing(make_tuned: MakeTuned, tuning: Tuning, damage: Damage) -> None:
    made, fresh = make_tuned(tuning), make_tuned(tuning, moved=False)
    before = tensors_of(fresh.muq.module)
    name = sorted(made.state)[3]
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_tuned_state(tuning, fresh.muq, damage(made.state, name))
    assert all(torch.equal(value, before[one]) for one, value in tensors_of(fresh.muq.module).items())


@pytest.mark.parametrize("tuning", [None, MIX], ids=["none", "mix"])
def test_a_state_without_tuned_layers(make_tuned: MakeTuned, muq: MuQEncoder, tuning: Tuning | None) -> None:
    given = make_tuned(MIX).muq if tuning else muq
    load_tuned_state(tuning, given, {})
    load_tuned_state(tuning, None, {})
    with pytest.raises(ModelError, match=r"\b1 tensors .*\(model\.conformer\.x\)"):
        load_tuned_state(tuning, given, {"model.conformer.x": torch.ones(1)})


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=str)
def test_a_state_does_not_depend_on_requires_grad(make_tuned: MakeTuned, tuning: Tuning) -> None:
    made = make_tuned(tuning)
    made.network.requires_grad_(False)
    assert tuned_state(tuning, made.muq).keys() == made.state.keys()
