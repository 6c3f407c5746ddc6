"""A network as a description or a configuration asks for it, and the weights of MuQ that are trained with it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from audioscore.encoders.adapters import (
    adapter_state,
    add_lora,
    freeze,
    load_adapter_state,
    tune_layers,
)
from audioscore.encoders.muq import MuQEncoder
from audioscore.encoders.muq_layers import LayerMix, MuQSuffix
from audioscore.errors import ModelError, shorten
from audioscore.scoring.head import build_head
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.scorer import Tuning


def build_network(
    head: Mapping[str, Any],
    tuning: Tuning | None,
    muq: MuQEncoder | None,
    *,
    lora_dropout: float = 0.0,
    checkpointing: bool = False,
) -> ScoreNetwork:
    """A network with a new head; only what is to be trained has gradients.

    With `tuning`, `muq` is changed in place: its upper layers are the network's from here on. Random weights are drawn
    from torch's random state. Raises ModelError where the head or the layers are not to be had.
    """
    if tuning is None:
        return ScoreNetwork(build_head(head))
    if muq is None:
        raise ModelError("this network goes through MuQ's layers, and no MuQ was given. Load the encoder first.")
    if tuning.mode == "lora":
        if tuning.rank is None or tuning.alpha is None:
            raise ModelError("the description says neither rank nor alpha of its adapters. Train the scorer again.")
        add_lora(
            muq.module, rank=tuning.rank, alpha=tuning.alpha, dropout=lora_dropout, from_layer=tuning.from_layer
        )  # fmt: skip
    elif tuning.mode == "full":
        tune_layers(muq.module, from_layer=tuning.from_layer)
    else:
        freeze(muq.module)
    suffix = MuQSuffix(muq, tuning.from_layer, checkpointing=checkpointing)
    mix = LayerMix(muq.layer - tuning.from_layer + 1) if tuning.mix else None
    return ScoreNetwork(build_head(head), suffix, mix)


def tuned_state(tuning: Tuning | None, muq: MuQEncoder | None) -> dict[str, Tensor]:
    """A copy, on the CPU, of what was trained of MuQ: its adapters, or its layers; empty where nothing was."""
    if tuning is None or muq is None or tuning.mode == "frozen":
        return {}
    if tuning.mode == "lora":
        return adapter_state(muq.module)
    # By name, not by gradient: a scorer that was loaded has none. The norm exists where the last layer is read.
    layers = (f"model.conformer.layers.{layer}." for layer in range(tuning.from_layer, muq.layer))
    begins = (*layers, "model.conformer.layer_norm.")
    parameters = muq.module.named_parameters()
    return {name: value.detach().cpu().clone() for name, value in parameters if name.startswith(begins)}


def load_tuned_state(tuning: Tuning | None, muq: MuQEncoder | None, state: Mapping[str, Tensor]) -> None:
    """Put back what `tuned_state` gave, into a MuQ that `build_network` prepared alike: all of it, or nothing.

    Raises ModelError naming what is missing, left over or of another shape.
    """
    if tuning is not None and tuning.mode == "lora" and muq is not None:
        load_adapter_state(muq.module, state)
        return
    wanted = {name: tuple(value.shape) for name, value in tuned_state(tuning, muq).items()}
    faults = sorted(wanted.keys() ^ state.keys()) or [
        name for name in wanted if tuple(state[name].shape) != wanted[name] or not state[name].isfinite().all()
    ]
    if faults:
        raise ModelError(
            f"what was trained of MuQ does not fit: {len(faults)} tensors missing, left over, of another shape or not "
            f"finite ({shorten(faults)}). Use the encoder and layers they were trained with."
        )
    if muq is not None and state:
        muq.module.load_state_dict(dict(state), strict=False)  # the names were compared above
