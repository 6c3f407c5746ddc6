"""The two schemes of training that the benchmarks beside this compare: see `training.py`.

The same weights, clips, head and loss, and AdamW with the same rates; they differ in what a step hears and compares.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioscore.config import DEMO, Config, TrainingSection, load_config
from audioscore.data.clips import Clip
from audioscore.data.gate.output import run_gate
from audioscore.data.split.sort import read_split, sort_folder
from audioscore.encoders.adapters import adapter_state, add_lora, freeze, load_adapter_state
from audioscore.encoders.features import EncoderReference
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import KEPT_BYTES, StoredFeatures
from audioscore.scoring.checkpoint import build_network
from audioscore.scoring.network import Batch, ScoreNetwork
from audioscore.training.batches import Rows, draw_batches
from audioscore.training.data import Fold, entries_of, fit_statistics
from audioscore.training.distributed import start
from audioscore.training.loop import validate
from audioscore.training.losses import pairwise_logistic
from audioscore.training.recipe import fit_settings, recipe_of
from audioscore.training.step import FitSettings, Stepper

DATA = Path(__file__).resolve().parents[1] / "data"
LORA = {"rank": 16, "alpha": 16}
DEPTH = 4  # layers of the small MuQ


@dataclass(frozen=True)
class Ground:
    """The corpus, split, where its features lie, how many layers MuQ has, and the head's sizes where not the usual."""

    config: Config
    train: list[Clip]
    val: list[Clip]
    store: FeatureStore
    depth: int = DEPTH
    sizes: Mapping[str, int] = field(default_factory=dict)

    def muq(self, layer: int | None = None) -> MuQEncoder:
        """MuQ up to the layer that is read, or another."""
        section = self.config.encoders.muq
        return load_muq(section.source, layer=layer or section.layer or 6)


@dataclass
class Ours:
    """A network and its folds, ready to be stepped; the predecessor's scheme starts at its weights."""

    network: ScoreNetwork
    muq: MuQEncoder
    train: Fold
    val: Fold
    settings: FitSettings
    stepper: Stepper


def prepare(folder: Path) -> Ground:
    """Check, sort and split the demo corpus as a run does; nothing is heard by an encoder yet."""
    config = load_config(DEMO)
    if not (folder / "index" / "train.json").is_file():
        run_gate(DATA, folder / "validated", folder / "validated" / "report.html", config)
        sort_folder(DATA, folder / "validated", folder, config.split)
    return Ground(config, read_split(folder, "train"), read_split(folder, "val"), FeatureStore(folder / "features"))


def training(mode: str, head: str, rate: float, **other: Any) -> TrainingSection:
    """The training of both schemes, but for how they step; no dropout, as in the predecessor's head."""
    rates = {"learning_rate": rate, "encoder_learning_rate": rate / 10, "epochs": 1000, "dropout": 0.0}
    return TrainingSection.model_validate({"tuning": mode, "head": head, "lora": LORA, **rates, **other})


def set_up(muq: MuQEncoder, folds: list[Fold], settings: TrainingSection, seed: int) -> Ours:
    """The baseline as `training.train` sets it up, at weights that the seed decides."""
    recipe = recipe_of("baseline", settings, {"muq": muq.dim})
    torch.manual_seed(seed)
    network = build_network(recipe.head, recipe.tuning, muq)
    fit_statistics(network, folds[0].features)
    used = fit_settings(settings, recipe)
    return Ours(network, muq, folds[0], folds[1], used, Stepper(start("cpu"), network, None, folds[0], used, seed))


def ours(ground: Ground, mode: str, head: str, rate: float, seed: int) -> Ours:
    """On the demo corpus."""
    settings, muq = training(mode, head, rate, **ground.sizes), ground.muq()
    folds = [fold_of(clips, ground.store, muq.reference, settings.prefix_layer) for clips in (ground.train, ground.val)]
    return set_up(muq, folds, settings, seed)


def head_alone(ground: Ground, made: Ours) -> Ours:
    """A copy of a network's head, on MuQ's output as it comes: what is trained before MuQ is tuned."""
    folds = [fold_of(clips, ground.store, made.muq.reference) for clips in (ground.train, ground.val)]
    network, settings = ScoreNetwork(copy.deepcopy(made.network.head)), made.settings
    stepper = Stepper(start("cpu"), network, None, folds[0], settings, made.stepper.seed)
    return Ours(network, made.muq, folds[0], folds[1], settings, stepper)


def fold_of(
    clips: Sequence[Clip],
    store: FeatureStore,
    reference: EncoderReference,
    layer: int | None = None,
    kept: int = KEPT_BYTES,
) -> Fold:
    """Clips in the order that training gives them, with features that are read when their turn comes."""
    own = [entry.clip for entry in entries_of(clips)]
    features = StoredFeatures(own, {"muq": reference}, ["muq"], store, prefix_layer=layer, kept_bytes=kept)
    scores, names = [float(clip.score or 0) for clip in own], [str(clip.sha256) for clip in own]
    return Fold(features, scores, [clip.source or "" for clip in own], names)


def all_pairs(made: Ours, epochs: int | None = None) -> Iterator[Rows]:
    """Our batches, epoch after epoch."""
    fold = made.train
    for epoch in itertools.count(1) if epochs is None else range(1, epochs + 1):
        yield from draw_batches(
            fold.scores, fold.sources, fold.groups,
            keys=fold.keys, batch_clips=made.settings.batch_clips, seed=made.stepper.seed, epoch=epoch,
        )  # fmt: skip


def random_pairs(made: Ours) -> Iterator[Rows]:
    """Two clips of different score at a time, for ever."""
    chance, scores = np.random.default_rng(made.stepper.seed), made.train.scores
    while True:
        pair = chance.choice(len(scores), 2, replace=False)
        if scores[pair[0]] != scores[pair[1]]:
            yield pair


class Predecessor:
    """The whole MuQ, heard at every step, and a head; AdamW with the same rates. It starts at the weights of `made`."""

    def __init__(self, muq: MuQEncoder, made: Ours, read: int, adapters: dict[str, Any] | None) -> None:
        self.muq, self.made, self.read, self.lora = muq, made, read, adapters is not None
        self.head = copy.deepcopy(made.network.head)
        groups: list[dict[str, Any]] = [{"params": [*self.head.parameters()], "lr": made.settings.learning_rate}]
        if adapters is None:
            freeze(muq.module)
        else:
            add_lora(muq.module, **adapters)
            load_adapter_state(muq.module, {**adapter_state(muq.module), **adapter_state(made.muq.module)})
            tuned = [one for one in muq.module.parameters() if one.requires_grad]
            groups.append({"params": tuned, "lr": made.settings.encoder_learning_rate})
        self.parameters = [one for group in groups for one in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=made.settings.weight_decay)

    def step(self, waves: Sequence[Callable[[], Tensor]], scores: Sequence[float]) -> None:
        """One pair: both recordings [T] at 24 kHz through all layers, one after the other, and a step."""
        self.head.train()
        raw = []
        for wave in waves:
            with torch.set_grad_enabled(self.lora):
                frames = self.muq.module(wave()[None]).hidden_states[self.read]
            raw.append(self.head(Batch(torch.tensor([frames.shape[1]]), frames)))
        margin = self.made.settings.objective.margin_per_point
        pairwise_logistic(torch.cat(raw), torch.tensor(scores), margin_per_point=margin).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.made.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def look(self) -> float:
        """Validation Spearman, by our network with these weights: the same outputs, sooner."""
        self.made.network.head.load_state_dict(self.head.state_dict())
        if self.lora:
            found = adapter_state(self.muq.module)
            load_adapter_state(
                self.made.muq.module, {name: found[name] for name in adapter_state(self.made.muq.module)}
            )
        return validate(self.made.network, self.made.val)["val_spearman"]
