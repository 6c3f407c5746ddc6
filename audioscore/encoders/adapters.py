"""What of MuQ is trained: low-rank adapters beside its attention projections, whole layers, or nothing.

What is frozen has no gradient and stays in eval mode whatever `train()` is called on the model or a part of it: no
BatchNorm statistic moves, and no frozen part drops anything. Layers count from 0: layer j makes hidden state j + 1.

Source: LoRA, arXiv 2106.09685; package `peft`.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from audioscore.errors import ModelError, UsageError, shorten

if TYPE_CHECKING:
    from peft.tuners.lora import Linear
    from torch import Tensor, nn

PROJECTIONS = ("linear_q", "linear_k", "linear_v", "linear_out")  # of each conformer layer's self-attention
RANK, ALPHA = 128, 48  # a projection W x becomes W x + ALPHA / RANK * B A x


def freeze(module: "nn.Module") -> None:
    """Take every parameter's gradient away, and keep every part in eval mode until `tune_layers` releases it."""
    module.requires_grad_(False).eval()
    for part in module.modules():
        # As an attribute, not a subclass: MuQ's classes are other packages'. A partial of a named function, unlike a
        # lambda, follows the module into a deep copy.
        object.__setattr__(part, "train", partial(_stay_in_eval, part))


def _stay_in_eval(part: "nn.Module", mode: bool = True) -> "nn.Module":
    """In place of `part.train`: only what was added below it, such as an adapter's dropout, follows `mode`."""
    part.training = False
    for child in part.children():
        child.train(mode)
    return part


def add_lora(
    module: "nn.Module", *, rank: int = RANK, alpha: int = ALPHA, dropout: float = 0.0, from_layer: int = 0
) -> list[str]:
    """Freeze a MuQ and put adapters beside the attention projections of its kept layers from `from_layer` on.

    `module` is an encoder's (`MuQEncoder.module`), changed in place. B starts at zero, so the output is the same until
    the first step; A is drawn from torch's random state. Returns the names of the trainable parameters: no other has a
    gradient.

    Raises ModelError for a layer that is not there or a module with adapters, UsageError for settings out of range.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1 or alpha < 1 or not 0 <= dropout < 1:
        raise UsageError(
            "LoRA needs a rank and an alpha of at least 1 and a dropout from 0 to below 1; got rank "
            f"{rank}, alpha {alpha}, dropout {dropout}. Change them in the configuration."
        )
    layers = _layers_from(module, from_layer)
    freeze(module)
    targets = [f"{layer}.self_attn.{projection}" for layer in layers for projection in PROJECTIONS]
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none"), module
    )
    return trainable(module)


def tune_layers(module: "nn.Module", *, from_layer: int = 0) -> list[str]:
    """Freeze a MuQ but for its kept layers from `from_layer` on, which are trained whole, their dropout included.

    BatchNorm learns its scale and shift and keeps its statistics. Returns the names of the trainable parameters.
    Raises ModelError for a layer that is not there or a module with adapters.
    """
    from torch import nn

    layers = _layers_from(module, from_layer)
    freeze(module)
    # The norm behind the last layer is part of the last hidden state; a truncated MuQ has none.
    norm: Any = module.get_submodule("model.conformer.layer_norm")
    for tuned in [*map(module.get_submodule, layers), *([norm] if isinstance(norm, nn.LayerNorm) else [])]:
        tuned.requires_grad_(True)
        for part in tuned.modules():
            if not isinstance(part, nn.modules.batchnorm._BatchNorm):
                del part.__dict__["train"]
    return trainable(module)


def trainable(module: "nn.Module") -> list[str]:
    """Names of the parameters that have a gradient."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def adapter_state(module: "nn.Module") -> "dict[str, Tensor]":
    """A copy of the adapters alone, on the CPU, by the path of the projection that each stands beside.

    Shape: `<path>.lora_A.weight` [rank, D], `<path>.lora_B.weight` [D, rank]. Their alpha is not among the weights:
    keep it with them. Raises ModelError where there are none.
    """
    from peft import get_peft_model_state_dict

    _require_adapters(module)
    state = get_peft_model_state_dict(module, save_embedding_layers=False)
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def load_adapter_state(module: "nn.Module", state: "Mapping[str, Tensor]") -> None:
    """Put saved adapters into a module whose `add_lora` had the same rank and layers. All of it fits, or none is used.

    Raises ModelError naming what is missing, left over, of another shape or not finite.
    """
    from peft import set_peft_model_state_dict

    wanted = adapter_state(module)
    faults = {
        "missing": sorted(wanted.keys() - state.keys()),
        "not in the model": sorted(state.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(state[name].shape)} for {list(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
        "not finite": [name for name in wanted if name in state and not state[name].isfinite().all()],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {shorten(names)}" for fault, names in faults.items() if names)
        raise ModelError(f"adapters do not fit this MuQ: {listed}. Use the rank and layers they were trained with.")
    set_peft_model_state_dict(module, dict(state))


def merge(module: "nn.Module") -> None:
    """Add the adapters into the projections they stand beside and take them away; the output stays (to rounding).

    The weights are then no longer those that the encoder's reference names. Raises ModelError where there are no
    adapters, or one is not finite; the module is then as it was.
    """
    if broken := [name for name, value in adapter_state(module).items() if not value.isfinite().all()]:
        raise ModelError(f"adapters cannot be merged: {shorten(broken)} not finite. Go back to an earlier checkpoint.")
    merge_layers(module)
    del module.peft_config


def merge_layers(module: "nn.Module") -> None:
    """As `merge`, of a module that has some of a MuQ's layers, or that has none; nothing is checked."""
    for name, layer in _adapted(module):
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, layer.get_base_layer())


def _layers_from(module: Any, from_layer: int) -> list[str]:
    """Paths of the kept conformer layers from one on, of a MuQ without adapters."""
    if _adapted(module):
        raise ModelError("this MuQ has adapters already. Merge them first, or load the encoder again.")
    depth = len(module.model.conformer.layers)
    if not 0 <= from_layer < depth:
        raise ModelError(
            f"training MuQ from layer {from_layer}: the layers up to the one that is read are 0 to {depth - 1}. "
            "Choose one of these."
        )
    return [f"model.conformer.layers.{layer}" for layer in range(from_layer, depth)]


def _adapted(module: "nn.Module") -> "list[tuple[str, Linear]]":
    from peft.tuners.lora import Linear

    return [(name, part) for name, part in module.named_modules() if isinstance(part, Linear)]


def _require_adapters(module: "nn.Module") -> None:
    if not _adapted(module):
        raise ModelError("this MuQ has no adapters. Call add_lora first.")
