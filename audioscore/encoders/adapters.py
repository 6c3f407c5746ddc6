"""Choose what of MuQ is trained: low-rank adapters beside its attention projections, whole layers, or nothing.

Frozen parts have no gradient and stay in eval mode, even if `train()` is called on the model or a part of it: no
BatchNorm statistic changes, and no frozen part applies dropout. Layers count from 0: layer j's output is hidden state
j + 1.

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
    """Disable all gradients and keep every part in eval mode, until `tune_layers` releases it."""
    module.requires_grad_(False).eval()
    for part in module.modules():
        # An attribute, not a subclass, since MuQ's classes are in other packages. Unlike a lambda, a partial of a named
        # function is copied with the module.
        object.__setattr__(part, "train", partial(_stay_in_eval, part))


def _stay_in_eval(part: "nn.Module", mode: bool = True) -> "nn.Module":
    """Replaces `part.train`: only parts added below it, such as an adapter's dropout, follow `mode`."""
    part.training = False
    for child in part.children():
        child.train(mode)
    return part


def add_lora(
    module: "nn.Module", *, rank: int = RANK, alpha: int = ALPHA, dropout: float = 0.0, from_layer: int = 0
) -> list[str]:
    """Freeze a MuQ and add adapters to the attention projections of its loaded layers from `from_layer` on.

    `module` (`MuQEncoder.module`) is changed in place. B starts at zero, so the output is unchanged until the first
    step; A is drawn from torch's random state.

    Returns: the names of the trainable parameters; no other parameter has a gradient.
    Raises: ModelError for a missing layer or a module with adapters, UsageError for settings out of range.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1 or alpha < 1 or not 0 <= dropout < 1:
        raise UsageError(
            "LoRA: needs a rank and an alpha of at least 1 and a dropout from 0 to below 1; got rank "
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
    """Freeze a MuQ except its loaded layers from `from_layer` on, which are trained with their dropout.

    BatchNorm's scale and shift are trained; its statistics stay.

    Returns: the names of the trainable parameters.
    Raises: ModelError for a missing layer or a module with adapters.
    """
    from torch import nn

    layers = _layers_from(module, from_layer)
    freeze(module)
    # The norm after the last layer belongs to the last hidden state; a truncated MuQ has no such norm.
    norm: Any = module.get_submodule("model.conformer.layer_norm")
    for tuned in [*map(module.get_submodule, layers), *([norm] if isinstance(norm, nn.LayerNorm) else [])]:
        tuned.requires_grad_(True)
        for part in tuned.modules():
            if not isinstance(part, nn.modules.batchnorm._BatchNorm):
                del part.__dict__["train"]
    return trainable(module)


def trainable(module: "nn.Module") -> list[str]:
    """Return the names of the parameters with a gradient."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def adapter_state(module: "nn.Module") -> "dict[str, Tensor]":
    """Copy the adapters alone, on the CPU, by the path of their projection.

    Alpha is not part of the weights: save it with them.
    Shape: `<path>.lora_A.weight` [rank, D], `<path>.lora_B.weight` [D, rank].
    Raises: ModelError where the module has no adapters.
    """
    from peft import get_peft_model_state_dict

    _require_adapters(module)
    state = get_peft_model_state_dict(module, save_embedding_layers=False)
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def load_adapter_state(module: "nn.Module", state: "Mapping[str, Tensor]") -> None:
    """Load saved adapters into a module with adapters of the same rank and layers; all of them, or none.

    Raises: ModelError naming the weights that are missing, surplus, of another shape or not finite.
    """
    from peft import set_peft_model_state_dict

    wanted = adapter_state(module)
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "not in the model": sorted(state.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(state[name].shape)} for {list(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
        "not finite": [name for name in wanted if name in state and not state[name].isfinite().all()],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind}: {shorten(names)}" for kind, names in problems.items() if names)
        raise ModelError(f"adapters: do not fit this MuQ, {listed}. Use the rank and layers they were trained with.")
    set_peft_model_state_dict(module, dict(state))


def merge(module: "nn.Module") -> None:
    """Merge the adapters into their projections and remove them; the output is unchanged but for rounding.

    The weights then differ from those that the encoder's reference names.

    Raises: ModelError where there are no adapters, or one is not finite; the module is then unchanged.
    """
    if broken := [name for name, value in adapter_state(module).items() if not value.isfinite().all()]:
        raise ModelError(f"adapters: cannot be merged, {shorten(broken)} not finite. Use an earlier checkpoint.")
    merge_layers(module)
    del module.peft_config


def merge_layers(module: "nn.Module") -> None:
    """Merge as `merge` does, without checks, in any module with layers of a MuQ."""
    for name, layer in _adapted(module):
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, layer.get_base_layer())


def _layers_from(module: Any, from_layer: int) -> list[str]:
    """Paths of the loaded conformer layers from `from_layer` on, in a MuQ without adapters."""
    if _adapted(module):
        raise ModelError("MuQ: already has adapters. Merge them first, or load the encoder again.")
    depth = len(module.model.conformer.layers)
    if not 0 <= from_layer < depth:
        raise ModelError(
            f"training MuQ from layer {from_layer}: the loaded layers are 0 to {depth - 1}. Use one of these."
        )
    return [f"model.conformer.layers.{layer}" for layer in range(from_layer, depth)]


def _adapted(module: "nn.Module") -> "list[tuple[str, Linear]]":
    from peft.tuners.lora import Linear

    return [(name, part) for name, part in module.named_modules() if isinstance(part, Linear)]


def _require_adapters(module: "nn.Module") -> None:
    if not _adapted(module):
        raise ModelError("MuQ: has no adapters. Call add_lora first.")
