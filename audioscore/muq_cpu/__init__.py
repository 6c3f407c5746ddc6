"""Optimized CPU kernels for MuQ and for the linear layers of a scorer's head. See README.md in this folder.

Only `audioscore.encoders.inference` imports this package, lazily: without it, plain torch computes the same.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from audioscore.encoders.muq_layers import run_layers
from audioscore.muq_cpu.conformer import Conformer
from audioscore.muq_cpu.front_end import FrontEnd
from audioscore.muq_cpu.matmul import FastDtype, Int16Linear, fast_dtype, optimize_module

if TYPE_CHECKING:
    from audioscore.encoders.muq import MuQEncoder

__all__ = [
    "FastDtype", "OptimizedMuQ", "can_optimize", "fast_dtype", "has_int16_layers", "optimize", "optimize_module",
]  # fmt: skip


class OptimizedMuQ:
    """The front-end and the conformer of a MuQ on optimized kernels, with the weights it has when this is built.

    A part that would not be faster stays the encoder's own. Threads may share one.
    """

    def __init__(self, encoder: "MuQEncoder", dtype: FastDtype) -> None:
        model, device = encoder.module.model, encoder.device
        self.front_end = FrontEnd(model.conv, dtype) if FrontEnd.suits(model.conv, device) else None
        self.conformer = Conformer(model.conformer, dtype) if Conformer.suits(model.conformer, device) else None
        self._model = model

    def hidden_state(self, mel: Tensor, layer: int) -> Tensor:
        """Run the front-end and the layers below `layer`. Shape: mel [B, bands, M] -> [B, F, dim]."""
        states = self._model.conv(mel) if self.front_end is None else self.front_end(mel)
        if self.conformer is None:
            return run_layers(self._model.conformer, states, layer)
        return self.conformer(states, layer)

    def release_memory(self) -> None:
        """Free the memory that is kept for the next call."""
        if self.front_end is not None:
            self.front_end.release_memory()


def can_optimize(encoder: "MuQEncoder") -> bool:
    """Whether `optimize` gains anything: on a CPU, for many channels."""
    model, device = encoder.module.model, encoder.device
    return FrontEnd.suits(model.conv, device) or Conformer.suits(model.conformer, device)


def optimize(encoder: "MuQEncoder", dtype: FastDtype = "float32") -> OptimizedMuQ | None:
    """Build a faster form of a MuQ, equal but for rounding (relative error 6e-7 in float32).

    The encoder itself is not changed. Returns None where nothing is gained.
    """
    return OptimizedMuQ(encoder, dtype) if can_optimize(encoder) else None


def has_int16_layers(module: nn.Module) -> bool:
    """Whether `optimize_module` made a layer that multiplies integers."""
    return any(isinstance(part, Int16Linear) for part in module.modules())
