"""How a plan is trained (`Recipe`), and on what (`PlanData`, read and checked once for all its seeds)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from audioscore.config import Plan
from audioscore.data.clips import Clip
from audioscore.data.split.sort import read_split, read_unscored_groups
from audioscore.encoders.extract import Extraction, read_extraction
from audioscore.encoders.features import EncoderReference, Kind
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import KEPT_BYTES, JoinedFeatures, StoredFeatures
from audioscore.errors import DataError, ModelError, shorten
from audioscore.scoring.checkpoint import DESCRIPTION, ENCODERS, read_description
from audioscore.scoring.scorer import BRANCHES, CANDIDATES, Tuning
from audioscore.training.data import TrainingClip, TrainingSplit, training_clips
from audioscore.training.losses import Objective
from audioscore.training.step import FitSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audioscore.config import TrainingSection

MIN_CLIPS = {"train": 8, "val": 8}


@dataclass(frozen=True)
class Recipe:
    """Arguments of `build_head`, which part of MuQ belongs to the network, and whether there is an adversary."""

    head: dict[str, Any]
    tuning: Tuning | None
    adversary: bool

    @property
    def tunes_encoder(self) -> bool:
        """Whether MuQ is tuned and the head reads its output: then training can start from the untuned features."""
        return self.tuning is not None and self.tuning.mode != "frozen" and not self.tuning.mix


def recipe_of(plan: Plan, settings: "TrainingSection", dims: "Mapping[Kind, int]") -> Recipe:
    """Return a plan's recipe; `dims` are the encoders' sizes. Controls always have a light head on frozen encoders."""
    own: dict[str, int] = {kind: dims[kind] for kind in BRANCHES[plan]}
    sizes = settings.model_dump(include={"width", "hidden", "dropout"})
    if plan not in CANDIDATES:
        kind = "attention" if plan == "muq_frozen" else "light"
        return Recipe({"dims": own, **sizes, "kind": kind}, None, adversary=False)
    return Recipe(_head(plan, settings, own, sizes), _tuning(settings), settings.adversary.weight > 0)


def _head(plan: Plan, settings: "TrainingSection", dims: dict[str, int], sizes: dict[str, Any]) -> dict[str, Any]:
    if settings.head == "legacy" and plan == "baseline":
        return {"kind": "predecessor", "dim": dims["muq"], "hidden": settings.hidden}
    if settings.head == "light":
        return {"dims": dims, **sizes, "kind": "light", "pooled": settings.fusion == "pooled"}
    # The legacy head reads MuQ only, so the hybrid gets the most similar head, trained from scratch.
    attention = {"heads": settings.attention_heads, "layers": settings.attention_layers}
    return {"dims": dims, **sizes, "kind": "songeval", "pooled": settings.fusion == "pooled", **attention}


def _tuning(settings: "TrainingSection") -> Tuning | None:
    if settings.prefix_layer is None:
        return None
    rank, alpha = (settings.lora.rank, settings.lora.alpha) if settings.tuning == "lora" else (None, None)
    return Tuning(settings.tuning, settings.prefix_layer, rank, alpha, mix=settings.layers == "mix")


def fit_settings(settings: "TrainingSection", recipe: Recipe) -> FitSettings:
    """Select the settings that the training loop needs."""
    objective = settings.model_dump(include=set(Objective.__dataclass_fields__))
    options = settings.model_dump(include=set(FitSettings.__dataclass_fields__))
    weight = settings.adversary.weight if recipe.adversary else 0.0
    return FitSettings(objective=Objective(**objective), **options, adversary_weight=weight)


@dataclass(frozen=True)
class PlanData:
    """What all seeds of a plan share: clips, features, encoders and settings."""

    plan: Plan
    recipe: Recipe
    settings: "TrainingSection"
    splits: dict[str, TrainingSplit]
    clips: dict[str, list[TrainingClip]]
    store: FeatureStore
    references: dict[Kind, EncoderReference]
    encoder_folders: dict[Kind, Path]
    target: str | None  # SHA-256 of the speaker encoder whose embeddings an adversary predicts
    data_digest: str
    code_revision: str
    device: str

    @property
    def warm(self) -> Path | None:
        """The folder that training starts from; None from scratch, which controls always are."""
        init = self.settings.init
        if init == "scratch" or self.plan not in CANDIDATES:
            return None
        return Path(init.removeprefix("warm:")).expanduser()

    @property
    def origin(self) -> str:
        """What training starts from, for scorer.json; without paths."""
        if self.warm is None:
            return "scratch"
        described = (self.warm / DESCRIPTION).is_file()
        return f"warm: {self.warm.name}" + ("" if described else ", whose training clips are not recorded")

    def untuned(self, name: str, kept_bytes: int = KEPT_BYTES) -> TrainingSplit:
        """Return a split with the output of the untuned MuQ as features, without adversary targets."""
        clips = [one.clip for one in self.clips[name]]
        features = StoredFeatures(clips, self.references, BRANCHES[self.plan], self.store, kept_bytes=kept_bytes)
        return replace(self.splits[name], features=features, targets=None)

    def joined(self, *, untuned: bool = False) -> tuple[TrainingSplit, list[Clip]]:
        """Return the clips of train and val as one split, in the order of `training_clips`.

        Args:
            untuned: with the features of `PlanData.untuned`.
        """
        names = ("train", "val")
        parts = [self.untuned(name) if untuned else self.splits[name] for name in names]
        clips = [one.clip for name in names for one in self.clips[name]]
        order = sorted(range(len(clips)), key=lambda row: (str(clips[row].sha256), clips[row].audio_file))
        features = JoinedFeatures([part.features for part in parts])
        targets = [part.targets for part in parts if part.targets is not None]
        joined = TrainingSplit(
            features,
            [score for part in parts for score in part.scores],
            [source for part in parts for source in part.sources],
            [key for part in parts for key in part.keys],
            [group for part in parts for group in part.groups],
            torch.cat(targets) if targets else None,
            [clip.audio_file for clip in clips],
        )
        return joined.part(order), [clips[row] for row in order]

    @property
    def identity(self) -> str:
        """Hash of the clips, scores, settings and encoders, by which a checkpoint or a finished seed is recognised."""
        skipped = {"plans", "seeds", "processes", "checkpoint_steps", "launcher", "trainjob"}
        settings = self.settings.model_dump(exclude=skipped)
        # The names that these settings had when the first checkpoints were written: their identities stay the same.
        settings["head_epochs"] = settings.pop("head_warmup_epochs")
        settings["head"] = "predecessor" if self.settings.head == "legacy" else self.settings.head
        value = [
            self.plan,
            settings,
            {kind: reference.to_json() for kind, reference in self.references.items()},
            self.target,
            {
                name: [[str(one.clip.sha256), one.score, one.group, one.clip.source] for one in clips]
                for name, clips in self.clips.items()
            },
        ]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def load_plan_data(
    plan: Plan, index: Path, features: Path, settings: "TrainingSection", digest: str, revision: str, device: str
) -> PlanData:
    """Read what the sort and extraction steps wrote, and check that a plan can be trained on it.

    Raises: DataError if a split is too small, if all of its scores are equal, or if the model that training starts from
        was trained on clips of the test split; ModelError if features are missing.
    """
    extraction = read_extraction(features)
    store, kinds = FeatureStore(extraction.store), BRANCHES[plan]
    scored = {name: read_split(index, name) for name in ("train", "val")}
    for name, least in MIN_CLIPS.items():
        if len(scored[name]) < least:
            raise DataError(f"{name} split: {len(scored[name])} scored clips; at least {least} are needed. Add data.")
        if len({clip.score for clip in scored[name]}) < 2:
            raise DataError(
                f"{name} split: all {len(scored[name])} clips have the same score, so they cannot be ranked. Add data."
            )
    first = StoredFeatures(scored["val"][:1], extraction.encoders, kinds, store)[0]
    recipe = recipe_of(plan, settings, {kind: int(first[kind].shape[-1]) for kind in kinds})
    clips = {"train": training_clips(scored["train"], read_unscored_groups(index, "train"))}
    clips["val"] = training_clips(scored["val"])
    splits = {name: _split(found, extraction, recipe, kinds, store, settings) for name, found in clips.items()}
    references = {kind: extraction.encoders[kind] for kind in kinds}
    folders = {kind: folder for kind in kinds if (folder := features / ENCODERS / kind).is_dir()}
    target = None if not recipe.adversary or extraction.speaker is None else extraction.speaker.sha256
    data = PlanData(
        plan, recipe, settings, splits, clips, store, references, folders, target, digest, revision, device
    )  # fmt: skip
    if data.warm is not None and (data.warm / DESCRIPTION).is_file():
        _check_unseen(data.warm, read_split(index, "test"))
    return data


def _check_unseen(warm: Path, test: Sequence[Clip]) -> None:
    """Refuse to start from a scorer that was trained on test clips: the test figures would be too high."""
    seen = set(read_description(warm).seen_clips)
    if names := sorted(clip.audio_file for clip in test if clip.sha256 in seen):
        raise DataError(
            f"{warm}: trained, selected or calibrated on {len(names)} of the {len(test)} test clips "
            f"({shorten(names)}). Keep the splits it was trained with (splits.json), or start from scratch."
        )


def _split(
    clips: Sequence[TrainingClip], extraction: Extraction, recipe: Recipe, kinds: Sequence[Kind], store: FeatureStore,
    settings: "TrainingSection",
) -> TrainingSplit:  # fmt: skip
    recordings = [one.clip for one in clips]
    layer = None if recipe.tuning is None else recipe.tuning.from_layer
    targets = None
    if recipe.adversary:
        own = settings.adversary.target == "campplus"
        reference = extraction.encoders["campplus"] if own else extraction.speaker
        if reference is None or reference.kind != settings.adversary.target:
            raise ModelError(f"{settings.adversary.target} features: not extracted. Run the extraction again.")
        store.fetch((reference, str(clip.sha256)) for clip in recordings)
        targets = torch.stack([store.get(reference, str(clip.sha256)) for clip in recordings])
    return TrainingSplit(
        StoredFeatures(recordings, extraction.encoders, kinds, store, prefix_layer=layer),
        [one.score for one in clips], [clip.source or "" for clip in recordings],
        [str(clip.sha256) for clip in recordings], [one.group for one in clips], targets,
        [clip.audio_file for clip in recordings],
    )  # fmt: skip
