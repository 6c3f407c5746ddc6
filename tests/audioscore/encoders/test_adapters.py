import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audioscore.encoders.adapters import (
    PROJECTIONS,
    adapter_state,
    add_lora,
    freeze,
    load_adapter_state,
    merge,
    trainable,
    tune_layers,
)
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.errors import ModelError, UsageError

LAYER = 3
WAVES = 0.1 * torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder(dropout_muq: Path) -> MuQEncoder:
    return load_muq(str(dropout_muq), layer=LAYER)


def forward(encoder: MuQEncoder) -> Tensor:
    """Run the package's own forward, with gradients. Shape: -> [2, F, dim]."""
    states: Tensor = encoder.module(WAVES).hidden_states[LAYER]
    return states


def train_a_little(encoder: MuQEncoder, steps: int = 3) -> None:
    encoder.module.train()
    parameters = [parameter for parameter in encoder.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        forward(encoder)[..., 0].square().mean().backward()
        optimizer.step()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_only_the_requested_adapters_are_trained(encoder: MuQEncoder) -> None:
    names = add_lora(encoder.module, rank=4, alpha=2, from_layer=1)
    wanted = {
        f"model.conformer.layers.{layer}.self_attn.{projection}.lora_{half}.default.weight"
        for layer in (1, 2)
        for projection in PROJECTIONS
        for half in "AB"
    }
    assert set(names) == wanted
    assert len(names) == len(wanted) == 2 * 4 * 2
    assert {name for name, parameter in encoder.module.named_parameters() if parameter.requires_grad} == wanted


def test_the_default_rank_and_scaling(encoder: MuQEncoder) -> None:
    before = encoder.frames(WAVES[0])
    names = add_lora(encoder.module)
    assert torch.equal(encoder.frames(WAVES[0]), before), "new adapters change nothing"
    parameters = dict(encoder.module.named_parameters())
    assert sum(parameters[name].numel() for name in names) == LAYER * 4 * 2 * 128 * 32
    assert encoder.module.model.conformer.layers[0].self_attn.linear_q.scaling == {"default": 48 / 128}


def test_an_adapter_adds_its_scaled_product(encoder: MuQEncoder) -> None:
    add_lora(encoder.module, rank=4, alpha=6, from_layer=2)
    projection = encoder.module.model.conformer.layers[2].self_attn.linear_v
    low, high = projection.lora_A["default"].weight, projection.lora_B["default"].weight
    generator = torch.Generator().manual_seed(1)
    nn.init.normal_(high, generator=generator)
    x = torch.randn(5, 32, generator=generator)
    wanted = projection.base_layer(x) + 6 / 4 * x @ low.T @ high.T
    assert torch.allclose(projection(x), wanted, atol=1e-6)


@pytest.mark.parametrize("every_part", [False, True])
def test_frozen_parts_do_not_change_in_train_mode(encoder: MuQEncoder, every_part: bool) -> None:
    names = add_lora(encoder.module, rank=4, alpha=2)
    before = state_of(encoder.module)
    for part in encoder.module.modules() if every_part else [encoder.module]:
        part.train(True)
    frozen = [part for part in encoder.module.modules() if isinstance(part, nn.Dropout | nn.BatchNorm1d)]
    assert len(frozen) > 4 * LAYER
    assert not any(part.training for part in frozen)
    assert torch.equal(forward(encoder), forward(encoder))
    train_a_little(encoder)
    after = encoder.module.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(names)


def test_adapter_dropout_follows_train_mode(encoder: MuQEncoder) -> None:
    add_lora(encoder.module, rank=4, alpha=2, dropout=0.5)
    train_a_little(encoder)
    assert not torch.equal(forward(encoder), forward(encoder))
    encoder.module.eval()
    assert torch.equal(forward(encoder), forward(encoder))


def test_a_frozen_module_stays_so_in_a_deep_copy(encoder: MuQEncoder) -> None:
    freeze(encoder.module.model.conformer)
    other = copy.deepcopy(encoder.module.model.conformer)
    other.layers[0].conv_module.batch_norm.training = True
    assert not encoder.module.model.conformer.layers[0].conv_module.batch_norm.training
    other.eval()
    assert other.train() is other
    assert not any(part.training for part in other.modules())
    assert trainable(other) == []


def test_saved_adapters_load_into_a_new_encoder(dropout_muq: Path, encoder: MuQEncoder) -> None:
    add_lora(encoder.module, rank=4, alpha=2, from_layer=1)
    train_a_little(encoder)
    state = adapter_state(encoder.module)
    kept = {name: value.clone() for name, value in state.items()}
    path = "model.conformer.layers.2.self_attn.linear_out"
    assert state[f"{path}.lora_A.weight"].shape == (4, 32)
    assert state[f"{path}.lora_B.weight"].shape == (32, 4)
    assert len(state) == 16
    fresh = load_muq(str(dropout_muq), layer=LAYER)
    add_lora(fresh.module, rank=4, alpha=2, from_layer=1)
    untrained = fresh.frames(WAVES[0])
    load_adapter_state(fresh.module, state)
    assert torch.equal(fresh.frames(WAVES[0]), encoder.frames(WAVES[0]))
    assert not torch.allclose(fresh.frames(WAVES[0]), untrained, atol=1e-2)
    train_a_little(encoder)
    assert all(torch.equal(state[name], kept[name]) for name in kept), "the state is a copy"


def test_adapters_that_do_not_fit_are_not_loaded(encoder: MuQEncoder) -> None:
    add_lora(encoder.module, rank=4, alpha=2)
    state = adapter_state(encoder.module)
    head = "model.conformer.layers.0.self_attn"
    del state[f"{head}.linear_q.lora_A.weight"]
    state["model.conformer.layers.9.self_attn.linear_q.lora_A.weight"] = torch.zeros(4, 32)
    state[f"{head}.linear_k.lora_A.weight"] = torch.zeros(8, 32)
    state[f"{head}.linear_v.lora_A.weight"] = torch.full((4, 32), torch.nan)
    before = adapter_state(encoder.module)
    with pytest.raises(ModelError) as caught:
        load_adapter_state(encoder.module, state)
    for shown in (
        f"1 missing: {head}.linear_q.lora_A.weight", "model.conformer.layers.9.self_attn.linear_q.lora_A.weight",
        f"{head}.linear_k.lora_A.weight [8, 32] for [4, 32]", f"{head}.linear_v.lora_A.weight",
    ):  # fmt: skip
        assert shown in str(caught.value)
    after = adapter_state(encoder.module)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_merged_adapters_give_the_same_frames(dropout_muq: Path, encoder: MuQEncoder) -> None:
    add_lora(encoder.module, rank=4, alpha=2)
    train_a_little(encoder)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    attention = encoder.module.model.conformer.layers[0].self_attn
    before, projected = encoder.frames(WAVES[0]), attention.linear_q(x)
    merge(encoder.module)
    assert torch.allclose(attention.linear_q(x), projected, rtol=0, atol=1e-6)
    assert (encoder.frames(WAVES[0]) - before).norm() < 1e-6 * before.norm()
    assert trainable(encoder.module) == []
    assert encoder.module.state_dict().keys() == load_muq(str(dropout_muq), layer=LAYER).module.state_dict().keys()
    assert len(add_lora(encoder.module, rank=2, alpha=1)) == 8 * LAYER


def test_broken_adapters_are_not_merged(encoder: MuQEncoder) -> None:
    add_lora(encoder.module, rank=4, alpha=2)
    before = state_of(encoder.module)
    with torch.no_grad():
        encoder.module.model.conformer.layers[1].self_attn.linear_q.lora_B["default"].weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"\bmodel\.conformer\.layers\.1\.self_attn\.linear_q\.lora_B\.weight "):
        merge(encoder.module)
    after = encoder.module.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "model.conformer.layers.1.self_attn.linear_q.lora_B.default.weight"
    ]


def test_whole_layers_are_tuned_without_batch_statistics(dropout_muq: Path, encoder: MuQEncoder) -> None:
    names = tune_layers(encoder.module, from_layer=2)
    layer = "model.conformer.layers.2."
    assert set(names) == {name for name, _ in encoder.module.named_parameters() if name.startswith(layer)}
    before = state_of(encoder.module)
    train_a_little(encoder)
    after = encoder.module.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(names)
    parts = {name for name, part in encoder.module.named_modules() if part.training}
    assert f"{layer}ffn1.output_dropout" in parts
    assert f"{layer}conv_module.batch_norm" not in parts
    assert {name for name in parts if not f"{name}.".startswith(layer)} == set()
    encoder.module.eval()
    assert torch.equal(forward(encoder), forward(encoder))
    names = tune_layers(load_muq(str(dropout_muq), layer=4).module, from_layer=3)
    last = {f"model.conformer.layer_norm.{name}" for name in ("weight", "bias")}
    assert {name for name in names if "layers.3." not in name} == last


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"rank": 0}, r"\brank 0, alpha 48, dropout 0\.0"),
        ({"alpha": 0}, r"\brank 128, alpha 0, dropout 0\.0"),
        ({"dropout": 1.0}, r"\brank 128, alpha 48, dropout 1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(encoder: MuQEncoder, settings: dict[str, int], shown: str) -> None:
    with pytest.raises(UsageError, match=shown):
        add_lora(encoder.module, **settings)


def test_missing_layers_and_missing_or_repeated_adapters_are_refused(encoder: MuQEncoder) -> None:
    for use in (adapter_state, merge, lambda module: load_adapter_state(module, {})):
        with pytest.raises(ModelError, match="add_lora"):
            use(encoder.module)
    for prepare in (add_lora, tune_layers):
        for layer in (-1, LAYER):
            with pytest.raises(ModelError, match=rf"layer {layer}: .*\b0 to 2\."):
                prepare(encoder.module, from_layer=layer)
    add_lora(encoder.module, rank=2, alpha=2)
    for prepare in (add_lora, tune_layers):
        with pytest.raises(ModelError, match="already"):
            prepare(encoder.module)
