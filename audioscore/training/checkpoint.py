"""Checkpoints of a running fit, written atomically, from which a killed training continues.

Batches and random numbers depend only on the seed, the epoch and the step, so no generator state is stored. In fp16
the state of torch's GradScaler is stored too.
"""

import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioscore.errors import ModelError
from audioscore.files import atomic_path
from audioscore.scoring.trained_plan import OUT_OF_FOLD, PLAN_FILE

State = dict[str, Tensor]
FROZEN = "network.suffix."  # frozen weights of MuQ are not stored: they are loaded from the encoder again


@dataclass
class FitProgress:
    """Position of a fit. `batch` counts the finished batches of the current epoch; `losses` are theirs."""

    epoch: int = 1
    batch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0  # spent in the current epoch
    curve: list[dict[str, float]] = field(default_factory=list)
    best: float = float("-inf")
    best_epoch: int = 0
    best_state: State = field(default_factory=dict)


def trained_state(module: nn.Module) -> State:
    """Copy to the CPU everything that training changes or sets: all tensors except the frozen part of MuQ."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {
        name: value.detach().cpu().clone()
        for name, value in module.state_dict().items()
        if name in trained or not name.startswith(FROZEN)
    }


def restore(module: nn.Module, state: State) -> None:
    """Load what `trained_state` returned. Raises ModelError if the names are those of another network."""
    if trained_state(module).keys() != state.keys():
        raise ModelError("checkpoint: it was written for another network. Train from the start, without --resume.")
    module.load_state_dict(state, strict=False)  # the names were compared above


def write_checkpoint(
    path: Path, identity: str, module: nn.Module, optimizer: Any, progress: FitProgress, scaler: Any = None
) -> None:
    """Write the state of a fit.

    Args:
        identity: hash of the data, settings and seed, by which `read_checkpoint` recognises the same fit.
        scaler: the gradient scaler in fp16, else None.
    """
    state = {
        "identity": identity,
        "module": trained_state(module),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def read_checkpoint(
    path: Path, identity: str, module: nn.Module, optimizer: Any, scaler: Any = None
) -> FitProgress | None:
    """Load the state of a fit into the module, the optimizer and the scaler; None if there is no checkpoint.

    A stored scaler state is ignored without a `scaler`: fp32 and bf16 need none.

    Raises: ModelError if the file is damaged, if it is of another fit (data, settings, seed or encoders), or if a
        `scaler` is given and the file has no state for it.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        other = state["identity"] != identity
        progress = FitProgress(**state["progress"])
        states = (state["module"], state["optimizer"], state.get("scaler"))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path}: not a checkpoint, or damaged. Delete it, or train without --resume.") from error
    if other:
        raise ModelError(
            f"{path}: it belongs to a fit with other data, settings, seed or encoders. Use those, or train without "
            f"--resume."
        )
    if scaler is not None and not states[2]:
        raise ModelError(
            f"{path}: it has no gradient scale for fp16, because it was written on a CPU, which computes in fp32, or "
            f"by an earlier version. Continue where it was written, or train without --resume."
        )
    restore(module, states[0])
    optimizer.load_state_dict(states[1])
    if scaler is not None:
        scaler.load_state_dict(states[2])
    return progress


def clear(target: Path, resume: bool) -> None:
    """Delete what a killed process left half-written; without `resume` also the results of an earlier training.

    Otherwise, if the new training were stopped, the earlier results could be mistaken for its own.
    """
    for left in [*target.glob(".seed-*"), *target.glob(f".{PLAN_FILE}*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    for name in () if resume else (PLAN_FILE, OUT_OF_FOLD, "seed-*.json", "seed-*.checkpoint"):
        for left in target.glob(name):
            left.unlink()
