"""The legacy model (QwenFeat-Vocal-Score) at small width, as an independent reference, and its model folders."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class LegacyReference:
    """`muq`: folder of the bare MuQ. `adapters`, `full`: model folders in both variants.

    `tag` and `hidden`: outputs of the whole model for a wave [T].
    """

    muq: Path
    adapters: Path
    full: Path
    head: dict[str, Any]
    tag: Callable[[Any], float]
    hidden: Callable[[Any], Any]


@pytest.fixture(scope="session")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> LegacyReference:
    """A reference of 32 channels and 8 layers; rank 4, alpha 6."""
    from audioscore.demo.pretrain import muq_config

    config = muq_config(dim=32, depth=8, conv_dim=8, codebook=64)
    return make_legacy_reference(tmp_path_factory.mktemp("legacy"), config, hidden=48, rank=4, alpha=6)


@pytest.fixture
def published_width_reference(tmp_path: Path) -> LegacyReference:
    """A reference with the sizes of MuQ large and random weights; rank 128, alpha 48."""
    from audioscore.demo.pretrain import muq_config

    config = muq_config(dim=1024, depth=12, conv_dim=512, codebook=8192)
    config["w2v2_config"] |= {"num_attention_heads": 16, "intermediate_size": 4096}
    return make_legacy_reference(tmp_path, config, hidden=4096, rank=128, alpha=48)


def make_legacy_reference(root: Path, config: dict[str, Any], *, hidden: int, rank: int, alpha: int) -> LegacyReference:
    """Run all layers, wrap adapters by peft, and write every matrix product of the head out."""
    import peft
    import torch
    from muq import MuQ
    from peft.tuners.lora import LoraLayer

    from audioscore.demo.pretrain import build_muq, save_muq

    with torch.random.fork_rng(devices=[]):
        bare = build_muq(config, seed=5)
        for module in bare.modules():
            if isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        save_muq(bare, config, root / "muq")
        wrapped = MuQ.from_pretrained(str(root / "muq")).eval()
        settings = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules=["linear_q", "linear_k", "linear_v", "linear_out"],
        )
        peft.inject_adapter_in_model(settings, wrapped, adapter_name="audio_lora")
        stored: dict[str, torch.Tensor] = {}
        for name, module in wrapped.named_modules():
            if isinstance(module, LoraLayer):
                torch.nn.init.normal_(module.lora_B["audio_lora"].weight, std=0.5 / rank**0.5)
                stored[f"{name}.audio_lora.lora_A"] = module.lora_A["audio_lora"].weight.detach().clone()
                stored[f"{name}.audio_lora.lora_B"] = module.lora_B["audio_lora"].weight.detach().clone()
                stored[f"{name}.audio_lora.scaling"] = torch.tensor(module.scaling["audio_lora"])
        head = random_head(config["encoder_dim"], hidden)
    for name, state in (("adapters", stored), ("full", wrapped.state_dict())):
        (root / name).mkdir()
        torch.save(head, root / name / "weights.pt")
        torch.save(state, root / name / "muq_lora.pt")
        (root / name / "type.txt").write_text("SongEvalGenerator_audio_lora")

    def states(wave: Any) -> torch.Tensor:
        with torch.inference_mode():
            state: torch.Tensor = wrapped(torch.as_tensor(wave).view(1, -1)).hidden_states[6][0]
        return state

    return LegacyReference(
        root / "muq", root / "adapters", root / "full", head, lambda wave: slow_head(head, states(wave)), states
    )


def random_head(dim: int, hidden: int) -> dict[str, Any]:
    """Random weights of the head, by their legacy names."""
    import torch

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns) * columns**-0.5

    state = {}
    for layer in range(4):
        state[f"attn.{layer}.in_proj_weight"] = 2 * matrix(3 * dim, dim)
        state[f"attn.{layer}.in_proj_bias"] = torch.randn(3 * dim)
        state[f"attn.{layer}.out_proj.weight"] = matrix(dim, dim)
        state[f"attn.{layer}.out_proj.bias"] = torch.randn(dim)
    for name, rows, columns in (("ffd.0", hidden, dim), ("ffd.2", dim, hidden), ("fc", 5, 2 * dim)):
        state[f"{name}.weight"], state[f"{name}.bias"] = matrix(rows, columns), torch.randn(rows) * 0.1
    state["fc.weight"] *= 0.1  # keeps the tanh out of saturation
    return state


def slow_head(state: dict[str, Any], frames: Any) -> float:
    """The tag of frames [F, D] in float64, one attention head at a time."""
    import torch

    w = {name: value.double() for name, value in state.items()}
    x, dim = frames.double(), frames.shape[1]
    fed = torch.relu(x @ w["ffd.0.weight"].T + w["ffd.0.bias"]) @ w["ffd.2.weight"].T + w["ffd.2.bias"]
    states, size = fed, dim // 8
    for layer in range(4):
        q, k, v = (states @ w[f"attn.{layer}.in_proj_weight"].T + w[f"attn.{layer}.in_proj_bias"]).split(dim, dim=1)
        heads = []
        for head in range(8):
            part = slice(head * size, (head + 1) * size)
            heads.append(torch.softmax(q[:, part] @ k[:, part].T / size**0.5, dim=1) @ v[:, part])
        states = torch.cat(heads, dim=1) @ w[f"attn.{layer}.out_proj.weight"].T + w[f"attn.{layer}.out_proj.bias"]
    pooled = torch.cat([states.mean(0), fed.max(0).values])
    return float(2 * torch.tanh(pooled @ w["fc.weight"].T + w["fc.bias"])[1] + 3)


DROPOUT_MUQ_DEPTH = 4


@pytest.fixture(scope="session")
def randomize_norms() -> Callable[[Any], None]:
    """Return a function that gives norms random weights, and BatchNorm random statistics."""
    import torch

    norms = torch.nn.LayerNorm | torch.nn.BatchNorm1d | torch.nn.BatchNorm2d

    def randomize(model: torch.nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, norms) and module.weight is not None:
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)

    return randomize


@pytest.fixture(scope="session")
def dropout_muq(tmp_path_factory: pytest.TempPathFactory, randomize_norms: Callable[[Any], None]) -> Path:
    """A small MuQ of four layers with random norms and statistics; in train mode, no two forward passes agree."""
    import torch

    from audioscore.demo.pretrain import build_muq, muq_config, save_muq

    target = tmp_path_factory.mktemp("dropout-muq") / "weights"
    config = muq_config(dim=32, depth=DROPOUT_MUQ_DEPTH, conv_dim=8, codebook=64)
    dropouts = ("activation_dropout", "hidden_dropout", "attention_dropout", "conformer_conv_dropout")
    config["w2v2_config"] |= dict.fromkeys(dropouts, 0.3) | {"layerdrop": 0.3}
    with torch.random.fork_rng(devices=[]):
        model = build_muq(config, seed=3)
        randomize_norms(model)
    save_muq(model, config, target)
    return target


@pytest.fixture(scope="session")
def full_muq(dropout_muq: Path) -> Callable[[Any], tuple[Any, ...]]:
    """Return every hidden state of `dropout_muq` by the package's own model, loaded by its own loader."""
    import torch
    from muq import MuQ

    model = MuQ.from_pretrained(str(dropout_muq)).eval()

    def hidden_states(wave: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            return tuple(state[0] for state in model(wave[None]).hidden_states)

    return hidden_states
