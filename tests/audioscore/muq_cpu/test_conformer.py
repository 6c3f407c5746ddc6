from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audioscore.encoders.adapters import add_lora
from audioscore.encoders.muq import load_muq
from audioscore.encoders.muq_layers import run_layers
from audioscore.muq_cpu.conformer import Conformer


@pytest.fixture
def conformer(tiny_encoders: Path, randomize_norms: Callable[[Any], None]) -> Any:
    """Two layers whose norms are not trivial."""
    loaded = load_muq(str(tiny_encoders / "muq-small"), layer=2).module.model.conformer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        randomize_norms(loaded)
    return loaded


def states(conformer: Any, frames: int = 50) -> torch.Tensor:
    return torch.randn(2, frames, conformer.config.hidden_size, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 2, 14, 15, 50])
def test_hidden_states_equal_transformers(conformer: Any, frames: int) -> None:
    optimized, given = Conformer(conformer), states(conformer, frames)
    before = given.clone()
    for layer in range(3):
        torch.testing.assert_close(optimized(given, layer), run_layers(conformer, given, layer), rtol=0, atol=1e-5)
    assert torch.equal(given, before)


@torch.inference_mode()
def test_int16_is_close(conformer: Any) -> None:
    wanted = run_layers(conformer, states(conformer), 2)
    apart = Conformer(conformer, "int16")(states(conformer), 2) - wanted
    assert 1e-6 < apart.std() / wanted.std() < 2e-3


@torch.inference_mode()
def test_adapters_are_computed(conformer: Any, tiny_encoders: Path) -> None:
    encoder = load_muq(str(tiny_encoders / "muq-small"), layer=2)
    plain = Conformer(encoder.module.model.conformer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)  # adapters start from torch's random state
        add_lora(encoder.module, rank=4, alpha=6, from_layer=1)
    for name, value in encoder.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(len(name)))
    conformer = encoder.module.model.conformer
    optimized = Conformer(conformer)
    wanted = run_layers(conformer, states(conformer), 2)
    torch.testing.assert_close(optimized(states(conformer), 2), wanted, rtol=0, atol=5e-5)
    assert (plain(states(conformer), 2) - wanted).abs().max() > 1e-3


def test_suits_wide_models_with_rotary_positions_on_a_cpu(conformer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Conformer.suits(conformer, "cpu")
    monkeypatch.setattr(conformer.config, "hidden_size", 1024)
    assert Conformer.suits(conformer, "cpu")
    assert not Conformer.suits(conformer, "cuda:0")
    monkeypatch.setattr(conformer.config, "position_embeddings_type", "relative")
    assert not Conformer.suits(conformer, "cpu")
