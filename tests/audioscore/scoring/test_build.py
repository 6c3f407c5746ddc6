from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audioscore.encoders.adapters import PROJECTIONS
from audioscore.encoders.extract import WINDOWS, Features
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq_layers import prefix_frames
from audioscore.errors import ModelError
from audioscore.scoring.batch import collate
from audioscore.scoring.build import build_network, load_tuned_state, tuned_state
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.scorer import Tuning

MakeTuned = Callable[..., Any]
HEAD = {"dims": {"muq": 32}, "width": 8, "hidden": 8, "dropout": 0.3}
HEADS_OWN = {
    "head.fusion.projections.muq.weight", "head.fusion.projections.muq.bias",
    "head.attention.score.weight", "head.attention.score.bias",
    *(f"head.regressor.{place}.{leaf}" for place in (0, 2, 5) for leaf in ("weight", "bias")),
}  # fmt: skip
LORA, FULL, MIX = Tuning("lora", 1, 4, 6), Tuning("full", 1), Tuning("frozen", 1, mix=True)
LORA_MIX = Tuning("lora", 0, 4, 6, mix=True)
EVERY = [LORA, FULL, MIX, LORA_MIX, Tuning("full", 0, mix=True)]


def named(tuning: Tuning) -> str:
    return f"{tuning.mode}-{tuning.from_layer}" + ("-mix" if tuning.mix else "")


@pytest.fixture
def muq(tiny_encoders: Path) -> MuQEncoder:
    return load_muq(str(tiny_encoders / "muq-small"), layer=2)


def adapters(*layers: int) -> set[str]:
    return {
        f"model.conformer.layers.{layer}.self_attn.{projection}.lora_{half}.default.weight"
        for layer in layers
        for projection in PROJECTIONS
        for half in "AB"
    }


def in_network(names: set[str]) -> set[str]:
    """Names of MuQ's parameters as the network knows them."""
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
    """A copy of every parameter and every buffer, those that no state dict holds included."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def test_without_tuning_there_is_a_head_and_nothing_else(muq: MuQEncoder) -> None:
    for given in (None, muq):
        network = build_network(HEAD, None, given)
        assert (network.suffix, network.mix, network.windowed) == (None, None, False)
        assert {name for name, _ in network.named_parameters()} == trained(network) == HEADS_OWN


def test_what_is_trained_is_exactly_what_is_named(tiny_encoders: Path) -> None:
    def build(tuning: Tuning) -> tuple[ScoreNetwork, MuQEncoder]:
        muq = load_muq(str(tiny_encoders / "muq-small"), layer=2)
        return build_network(HEAD, tuning, muq), muq

    network, muq = build(LORA)
    assert trained(network) == HEADS_OWN | in_network(adapters(1))
    assert trained(muq.module) == adapters(1)
    network, muq = build(LORA_MIX)
    assert trained(network) == HEADS_OWN | in_network(adapters(0, 1)) | {"mix.logits"}
    assert trained(muq.module) == adapters(0, 1)
    network, muq = build(FULL)
    assert trained(network) == HEADS_OWN | in_network(layers_of(muq.module, 1))
    assert trained(muq.module) == layers_of(muq.module, 1)
    assert "model.conformer.layer_norm.weight" in trained(muq.module), "the model's own last layer is read"
    network, muq = build(MIX)
    assert trained(network) == HEADS_OWN | {"mix.logits"}
    assert trained(muq.module) == set()


@pytest.mark.parametrize("tuning", EVERY, ids=named)
def test_nothing_frozen_has_a_gradient_or_moves_and_all_that_is_trained_does(muq: MuQEncoder, tuning: Tuning) -> None:
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
        for _ in range(3):  # an adapter's A has no gradient until its B has moved
            optimizer.zero_grad()
            network(collate(features, windowed=True)).square().sum().backward()
            optimizer.step()
    assert {name for name, value in muq.module.named_parameters() if value.grad is not None} == names
    after = tensors_of(muq.module)
    assert after.keys() == module.keys()
    assert {name for name in module if not torch.equal(after[name], module[name])} == names
    assert any("running_var" in name for name in module), "BatchNorm's statistics are among what was compared"
    moved = {name for name, value in tensors_of(network).items() if not torch.equal(value, whole[name])}
    # Softmax takes no notice of a constant, so that only weight decay moves that one.
    assert moved | {"head.attention.score.bias"} == trained(network) | {"head.attention.score.bias"}


@pytest.mark.parametrize("tuning", EVERY, ids=named)
def test_frozen_parts_do_not_leave_eval_mode(muq: MuQEncoder, tuning: Tuning) -> None:
    network = build_network(HEAD, tuning, muq).train()
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
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
    assert network.suffix is not None
    assert network.suffix.layers["1"] is muq.module.model.conformer.layers[1]
    assert list(network.suffix.layers) == ["1"]
    assert network.suffix.checkpointing


def test_dropout_of_adapters_is_as_asked(muq: MuQEncoder) -> None:
    build_network(HEAD, LORA, muq, lora_dropout=0.25)
    dropped = [
        part.p for name, part in muq.module.named_modules() if "lora_dropout" in name and isinstance(part, nn.Dropout)
    ]
    assert dropped == [0.25] * 4


def test_adapters_count_by_alpha_over_rank(muq: MuQEncoder) -> None:
    build_network(HEAD, LORA, muq)
    assert muq.module.model.conformer.layers[1].self_attn.linear_q.scaling == {"default": 6 / 4}


@pytest.mark.parametrize("tuning", [None, *EVERY], ids=lambda one: "none" if one is None else named(one))
def test_the_same_chance_gives_the_same_network(tiny_encoders: Path, tuning: Tuning | None) -> None:
    def build(seed: int) -> dict[str, Tensor]:
        fresh = load_muq(str(tiny_encoders / "muq-small"), layer=2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_network(HEAD, tuning, fresh).state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        (Tuning("lora", 0, None, 2), r"neither rank nor alpha of its adapters\. Train the scorer again\.$"),
        (Tuning("lora", 0, 4, None), r"neither rank nor alpha of its adapters\. Train the scorer again\.$"),
        (Tuning("lora", 2, 4, 2), r"layer 2: .* are 0 to 1\. Choose one of these\.$"),
        (Tuning("full", 2), r"layer 2: .* are 0 to 1\. Choose one of these\.$"),
        (Tuning("frozen", 2, mix=True), r"layer 2: .* are 0 to 1\. Choose one of these\.$"),
        (Tuning("frozen", -1, mix=True), r"layer -1: .* are 0 to 1\. Choose one of these\.$"),
    ],
)
def test_layers_and_adapters_that_are_not_to_be_had_are_refused(muq: MuQEncoder, tuning: Tuning, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build_network(HEAD, tuning, muq)


def test_layers_of_no_muq_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^this network goes through MuQ's layers, and no MuQ was given\. Load the"):
        build_network(HEAD, LORA, None)


def test_a_head_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="the description's head cannot be built"):
        build_network({**HEAD, "kind": "deep"}, None, None)


def test_what_was_tuned_is_named_and_nothing_else_is_kept(make_tuned: MakeTuned) -> None:
    made = make_tuned(LORA)
    plain = {name.replace(".default", "") for name in adapters(1)}
    assert set(made.state) == plain
    made = make_tuned(FULL)
    assert set(made.state) == layers_of(made.muq.module, 1)
    assert set(make_tuned(LORA_MIX).state) == {name.replace(".default", "") for name in adapters(0, 1)}
    assert make_tuned(MIX).state == {}
    assert tuned_state(None, made.muq) == tuned_state(LORA, None) == {}


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=named)
def test_a_state_is_a_copy_that_training_does_not_move(make_tuned: MakeTuned, tuning: Tuning) -> None:
    made = make_tuned(tuning)
    before = {name: value.clone() for name, value in made.state.items()}
    with torch.no_grad():
        for parameter in made.muq.module.parameters():
            parameter += 1.0
    assert all(torch.equal(value, before[name]) for name, value in made.state.items())


@pytest.mark.parametrize("tuning", [LORA, FULL, LORA_MIX], ids=named)
def test_a_state_comes_back_into_a_network_that_was_built_alike(make_tuned: MakeTuned, tuning: Tuning) -> None:
    made, fresh = make_tuned(tuning), make_tuned(tuning, moved=False)
    wave = 0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    heard: list[Features] = [{"muq": prefix_frames(made.muq, wave, tuning.from_layer), WINDOWS: torch.tensor(1)}]
    wanted = raw_outputs(ScoreNetwork(made.network.head, made.network.suffix), heard)
    other = ScoreNetwork(made.network.head, fresh.network.suffix)
    assert abs(raw_outputs(other, heard) - wanted) > 1e-4
    load_tuned_state(tuning, fresh.muq, made.state)
    assert raw_outputs(other, heard) == wanted
    assert {name: value.tolist() for name, value in tuned_state(tuning, fresh.muq).items()} == {
        name: value.tolist() for name, value in made.state.items()
    }


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {one: value for one, value in state.items() if one != name}


DAMAGE: dict[str, Callable[[dict[str, Tensor], str], dict[str, Tensor]]] = {
    "missing": without,
    "left over": lambda state, name: {**state, f"{name}.more": state[name]},
    "of another shape": lambda state, name: {**state, name: state[name][:-1]},
    "not finite": lambda state, name: {**state, name: state[name].clone().index_fill_(0, torch.tensor([0]), torch.nan)},
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("tuning", [LORA, FULL], ids=named)
def test_a_state_that_does_not_fit_is_refused_whole_and_by_name(
    make_tuned: MakeTuned, tuning: Tuning, damage: str
) -> None:
    made, fresh = make_tuned(tuning), make_tuned(tuning, moved=False)
    before = tensors_of(fresh.muq.module)
    name = sorted(made.state)[3]
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_tuned_state(tuning, fresh.muq, DAMAGE[damage](made.state, name))
    assert all(torch.equal(value, before[one]) for one, value in tensors_of(fresh.muq.module).items())


@pytest.mark.parametrize("tuning", [None, MIX], ids=["none", "mix"])
def test_a_state_where_nothing_was_tuned_is_refused(
    make_tuned: MakeTuned, muq: MuQEncoder, tuning: Tuning | None
) -> None:
    given = make_tuned(MIX).muq if tuning else muq
    load_tuned_state(tuning, given, {})
    load_tuned_state(tuning, None, {})
    with pytest.raises(ModelError, match=r"does not fit: 1 tensors .* \(model\.conformer\.x\)\. Use the encoder and"):
        load_tuned_state(tuning, given, {"model.conformer.x": torch.ones(1)})


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=named)
def test_what_was_tuned_is_known_also_of_a_network_that_only_scores(make_tuned: MakeTuned, tuning: Tuning) -> None:
    """A scorer's parameters have no gradient; saved again, it must be saved whole."""
    made = make_tuned(tuning)
    made.network.requires_grad_(False)
    assert tuned_state(tuning, made.muq).keys() == made.state.keys()


def test_a_head_alone_is_plain(muq: MuQEncoder) -> None:
    assert isinstance(build_network(HEAD, None, muq).head, ScoreHead)
    assert trained(muq.module) == set(), "and MuQ is as it was"
