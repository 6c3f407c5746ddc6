"""Checkpoints of a fit that is under way: written whole or not at all, so that a killed run goes on from one.

Batches and random numbers depend on the seed, the epoch and the step alone: where a fit stands is all of their state.
What fp16 has beside that is the scale of its gradients, and how long it has held: torch's GradScaler, kept as it is.
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
from audioscore.scoring.trained_plan import PLAN_FILE

State = dict[str, Tensor]
FROZEN = "network.suffix."  # what is frozen of MuQ is not kept: it is loaded again


@dataclass
class Progress:
    """Where a fit stands. `batch` counts the batches of the epoch under way that are done, `losses` are theirs."""

    epoch: int = 1
    batch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0  # spent in the epoch under way
    curve: list[dict[str, float]] = field(default_factory=list)
    best: float = float("-inf")
    best_epoch: int = 0
    best_state: State = field(default_factory=dict)


def moving_state(module: nn.Module) -> State:
    """A copy, on the CPU, of all that training moves or has set: everything but the frozen part of MuQ."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {
        name: value.detach().cpu().clone()
        for name, value in module.state_dict().items()
        if name in trained or not name.startswith(FROZEN)
    }


def restore(module: nn.Module, state: State) -> None:
    """Put back what `moving_state` gave. Raises ModelError where it is of another network."""
    if moving_state(module).keys() != state.keys():
        raise ModelError("the checkpoint is of another network. Train from the start, without --resume.")
    module.load_state_dict(state, strict=False)  # the names were compared above


def write_checkpoint(
    path: Path, identity: str, module: nn.Module, optimizer: Any, progress: Progress, scaler: Any = None
) -> None:
    """Write where a fit stands. `identity` says which fit it is: data, settings, seed; `scaler` is fp16's, if any."""
    state = {
        "identity": identity,
        "module": moving_state(module),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def read_checkpoint(
    path: Path, identity: str, module: nn.Module, optimizer: Any, scaler: Any = None
) -> Progress | None:
    """Go on where a fit stood; None where there is no checkpoint.

    A scale that is kept and not needed is left: who has no `scaler` computes in fp32 or bf16. Raises ModelError for a
    file that is damaged or of another fit (other data, settings, seed or encoders), and where the scale is missing.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        other = state["identity"] != identity
        progress = Progress(**state["progress"])
        states = (state["module"], state["optimizer"], state.get("scaler"))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as fault:
        raise ModelError(f"{path}: is no checkpoint, or damaged. Delete it, or train without --resume.") from fault
    if other:
        raise ModelError(
            f"{path}: is of a fit with other data, settings, seed or encoders. Use those, or train without --resume."
        )
    if scaler is not None and not states[2]:
        raise ModelError(
            f"{path}: has no scale of fp16's gradients. It was written on a CPU, which computes in fp32, or by an "
            f"earlier version. Go on where it was written, or train without --resume."
        )
    restore(module, states[0])
    optimizer.load_state_dict(states[1])
    if scaler is not None:
        scaler.load_state_dict(states[2])
    return progress


def clear(target: Path, resume: bool) -> None:
    """Take away what a kill left half written of a plan; and, unless resumed, an earlier training's claims to be this.

    Should this one be cut short, nothing shall take what another left for its own.
    """
    for left in [*target.glob(".seed-*"), *target.glob(f".{PLAN_FILE}*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    for name in () if resume else (PLAN_FILE, "seed-*.json", "seed-*.checkpoint"):
        for left in target.glob(name):
            left.unlink()
