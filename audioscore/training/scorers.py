"""A scorer before and after its training: the network, its description, and the check of what was written."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from audioscore.encoders.features import Features
from audioscore.encoders.muq import MuQEncoder
from audioscore.errors import ModelError
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.checkpoint import (
    DESCRIPTION,
    build_network,
    load_network,
    load_reference,
    read_description,
)
from audioscore.scoring.network import ScoreNetwork, raw_outputs
from audioscore.scoring.scorer import Description
from audioscore.training.adversary import SpeakerAdversary
from audioscore.training.data import TrainingSplit, fit_statistics
from audioscore.training.distributed import is_main, share
from audioscore.training.recipe import PlanData
from audioscore.training.warm_start import NothingToLoadError, loads_head, warm_start

log = logging.getLogger(__name__)

RELOAD_TOLERANCE = 1e-5  # relative difference allowed between a written scorer and the same one read back


class NewNetwork(NamedTuple):
    """A network before its first step, the MuQ that it contains layers of, its adversary, and whether any of its
    weights come from another model.
    """

    network: ScoreNetwork
    muq: MuQEncoder | None
    adversary: SpeakerAdversary | None
    warm_started: bool


def set_statistics(
    data: PlanData, made: NewNetwork, train: TrainingSplit, untuned: Callable[[], Sequence[Features]],
    device: torch.device,
) -> None:  # fmt: skip
    """Set the statistics of a new head, those of the training clips; `untuned` reads their untuned MuQ output.

    A head that a warm start loaded keeps the statistics that it was trained with; others would change its outputs.
    """
    if data.warm is not None and loads_head(data.recipe, data.warm):
        return
    # The output of an untuned MuQ is in the store; any other is computed here, once.
    if is_main():
        if data.recipe.tunes_encoder and not made.warm_started:
            fit_statistics(ScoreNetwork(made.network.head), untuned(), device, train.names)
        else:
            fit_statistics(made.network, train.features, device, train.names)
    share(made.network.head.buffers())


def new_network(data: PlanData, seed: int, device: torch.device) -> NewNetwork:
    """Build a seed's network, from scratch or from the model that training starts from."""
    settings, recipe = data.settings, data.recipe
    muq = None
    if recipe.tuning is not None:
        loaded = load_reference("muq", data.references["muq"], data.encoder_folders.get("muq"))
        assert isinstance(loaded, MuQEncoder)
        muq = loaded
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(
            recipe.head, recipe.tuning, muq,
            lora_dropout=settings.lora.dropout, checkpointing=settings.gradient_checkpointing,
        )  # fmt: skip
        adversary, targets = None, data.splits["train"].targets
        if targets is not None:
            adversary = SpeakerAdversary(
                network.head.representation_dim, settings.adversary.hidden, int(targets.shape[1])
            )
    warm_started = data.warm is not None
    if data.warm is not None:
        try:
            message = warm_start(network, recipe, muq, data.warm, reference=data.references.get("muq"))
        except NothingToLoadError:
            if data.plan == "baseline":
                raise
            warm_started = False
            message = f"no part of {data.warm} fits this plan; it starts from scratch"
        log.info("%s, seed %d: %s", data.plan, seed, message)
    return NewNetwork(network.to(device), muq, adversary, warm_started)


def describe(data: PlanData, seed: int, calibration: Calibration, figures: Mapping[str, Any]) -> Description:
    """Return the description of a trained scorer; `figures` are those of its selection."""
    settings = data.settings
    seen = {str(one.clip.sha256) for clips in data.clips.values() for one in clips}
    if data.warm is not None and (data.warm / DESCRIPTION).is_file():
        seen |= set(read_description(data.warm).seen_clips)  # the model that training started from was trained on them
    # Where a scorer was trained is not a property of the scorer.
    location: dict[str, Any] = {"launcher": True, "trainjob": True, "adversary": {"source"}}
    options = settings.model_dump(exclude={"plans": True, "seeds": True, "init": True, **location})
    training = {
        "settings": options, "init": data.origin, **figures,
        "train_clips": len(data.clips["train"]), "val_clips": len(data.clips["val"]),
    }  # fmt: skip
    return Description(
        plan=data.plan, seed=seed, encoders=data.references, head=data.recipe.head,
        calibration=calibration, seen_clips=tuple(sorted(seen)),
        data_digest=data.data_digest, code_revision=data.code_revision, training=training, tuning=data.recipe.tuning,
    )  # fmt: skip


def check_saved(
    folder: Path, features: Sequence[Features], raw: np.ndarray[Any, Any], device: str | torch.device = "cpu"
) -> None:
    """Read a scorer back and compare its raw outputs [N] with those of the network that was written.

    Raises: ModelError if they differ.
    """
    again = raw_outputs(load_network(folder, read_description(folder), device), features, device)
    worst = float(np.abs(again - raw).max(initial=0.0))
    if not worst <= RELOAD_TOLERANCE * max(1.0, float(np.abs(raw).max(initial=0.0))):
        raise ModelError(f"{folder}: read back, its outputs differ by up to {worst:.3g}. Do not use it.")
