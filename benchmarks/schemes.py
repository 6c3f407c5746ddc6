"""The two training schemes that `training.py` and `training_size.py` compare.

They have the same weights, clips, head and loss, and AdamW with the same rates; they differ in what a step encodes and
compares.
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
from audioscore.training.data import TrainingSplit, fit_statistics, training_clips
from audioscore.training.distributed import start
from audioscore.training.loop import validate
from audioscore.training.losses import pairwise_logistic
from audioscore.training.recipe import fit_settings, recipe_of
from audioscore.training.step import FitSettings, Stepper

DATA = Path(__file__).resolve().parents[1] / "data"
LORA = {"rank": 16, "alpha": 16}
DEPTH = 4  # layers of the small MuQ


@dataclass(frozen=True)
class DemoSplits:
    """The demo corpus with its splits and feature store, the number of MuQ's layers, and sizes of the head."""

    config: Config
    train: list[Clip]
    val: list[Clip]
    store: FeatureStore
    depth: int = DEPTH
    sizes: Mapping[str, int] = field(default_factory=dict)

    def muq(self, layer: int | None = None) -> MuQEncoder:
        """Load MuQ up to the read layer, or another one."""
        section = self.config.encoders.muq
        return load_muq(section.source, layer=layer or section.layer or 6)


@dataclass
class Setup:
    """A network with its splits and optimizer; the legacy scheme starts from its weights."""

    network: ScoreNetwork
    muq: MuQEncoder
    train: TrainingSplit
    val: TrainingSplit
    settings: FitSettings
    stepper: Stepper


def prepare(folder: Path) -> DemoSplits:
    """Validate, sort and split the demo corpus like a pipeline run; no features are extracted yet."""
    config = load_config(DEMO)
    if not (folder / "index" / "train.json").is_file():
        run_gate(DATA, folder / "validated", folder / "validated" / "report.html", config)
        sort_folder(DATA, folder / "validated", folder, config.split)
    return DemoSplits(config, read_split(folder, "train"), read_split(folder, "val"), FeatureStore(folder / "features"))


def training(mode: str, head: str, rate: float, **other: Any) -> TrainingSection:
    """Return the settings that both schemes share; without dropout, like the legacy head."""
    rates = {"learning_rate": rate, "encoder_learning_rate": rate / 10, "epochs": 1000, "dropout": 0.0}
    return TrainingSection.model_validate({"tuning": mode, "head": head, "lora": LORA, **rates, **other})


def set_up(muq: MuQEncoder, splits: list[TrainingSplit], settings: TrainingSection, seed: int) -> Setup:
    """Set up the baseline like `training.train`; the seed decides its weights."""
    recipe = recipe_of("baseline", settings, {"muq": muq.dim})
    torch.manual_seed(seed)
    network = build_network(recipe.head, recipe.tuning, muq)
    fit_statistics(network, splits[0].features)
    used = fit_settings(settings, recipe)
    return Setup(network, muq, splits[0], splits[1], used, Stepper(start("cpu"), network, None, splits[0], used, seed))


def new_setup(data: DemoSplits, mode: str, head: str, rate: float, seed: int) -> Setup:
    """Set up a training on the demo corpus."""
    settings, muq = training(mode, head, rate, **data.sizes), data.muq()
    splits = [split_of(clips, data.store, muq.reference, settings.prefix_layer) for clips in (data.train, data.val)]
    return set_up(muq, splits, settings, seed)


def warmup_setup(data: DemoSplits, made: Setup) -> Setup:
    """Set up the head warm-up: a copy of the head on the output of the untuned MuQ."""
    splits = [split_of(clips, data.store, made.muq.reference) for clips in (data.train, data.val)]
    network, settings = ScoreNetwork(copy.deepcopy(made.network.head)), made.settings
    stepper = Stepper(start("cpu"), network, None, splits[0], settings, made.stepper.seed)
    return Setup(network, made.muq, splits[0], splits[1], settings, stepper)


def split_of(
    clips: Sequence[Clip],
    store: FeatureStore,
    reference: EncoderReference,
    layer: int | None = None,
    kept: int = KEPT_BYTES,
) -> TrainingSplit:
    """Return clips in training order, with features that are read when they are used."""
    own = [one.clip for one in training_clips(clips)]
    features = StoredFeatures(own, {"muq": reference}, ["muq"], store, prefix_layer=layer, kept_bytes=kept)
    scores, names = [float(clip.score or 0) for clip in own], [str(clip.sha256) for clip in own]
    return TrainingSplit(features, scores, [clip.source or "" for clip in own], names)


def all_pairs(made: Setup, epochs: int | None = None) -> Iterator[Rows]:
    """Yield the batches of `draw_batches`, epoch after epoch."""
    split = made.train
    for epoch in itertools.count(1) if epochs is None else range(1, epochs + 1):
        yield from draw_batches(
            split.scores, split.sources, split.groups,
            keys=split.keys, batch_clips=made.settings.batch_clips, seed=made.stepper.seed, epoch=epoch,
        )  # fmt: skip


def random_pairs(made: Setup) -> Iterator[Rows]:
    """Yield random pairs of clips with different scores, without end."""
    generator, scores = np.random.default_rng(made.stepper.seed), made.train.scores
    while True:
        pair = generator.choice(len(scores), 2, replace=False)
        if scores[pair[0]] != scores[pair[1]]:
            yield pair


class LegacyScheme:
    """The legacy scheme: each step runs the whole MuQ and a head, from the weights of `made`, with AdamW."""

    def __init__(self, muq: MuQEncoder, made: Setup, read: int, adapters: dict[str, Any] | None) -> None:
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
        """Run both recordings of a pair, [T] at 24 kHz, through all layers, and step."""
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

    def validation(self) -> float:
        """Return the validation Spearman, computed with the faster network, which gives the same outputs."""
        self.made.network.head.load_state_dict(self.head.state_dict())
        if self.lora:
            found = adapter_state(self.muq.module)
            load_adapter_state(
                self.made.muq.module, {name: found[name] for name in adapter_state(self.made.muq.module)}
            )
        return validate(self.made.network, self.made.val)["val_spearman"]
