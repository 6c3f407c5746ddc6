"""What a plan is trained on: read once, checked, and shared by all its seeds."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from audioscore.config import Plan
from audioscore.data.clips import Clip
from audioscore.data.split.sort import read_relative, read_split
from audioscore.encoders.extract import Extraction, read_extraction
from audioscore.encoders.features import EncoderReference, Kind
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import KEPT_BYTES, StoredFeatures
from audioscore.errors import DataError, ModelError, shorten
from audioscore.scoring.checkpoint import DESCRIPTION, ENCODERS, read_description
from audioscore.scoring.scorer import BRANCHES, CANDIDATES, Tuning
from audioscore.training.data import Entry, Fold, entries_of
from audioscore.training.losses import Objective
from audioscore.training.step import FitSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audioscore.config import TrainingSection
    from audioscore.encoders.features import Kind


@dataclass(frozen=True)
class Recipe:
    """Arguments of `build_head`, and what of MuQ goes with the head. `adversary`: whether a speaker is unlearned."""

    head: dict[str, Any]
    tuning: Tuning | None
    adversary: bool

    @property
    def tunes_what_is_heard(self) -> bool:
        """Whether MuQ is tuned, and the head hears its output: what a frozen MuQ makes is where training begins."""
        return self.tuning is not None and self.tuning.mode != "frozen" and not self.tuning.mix


def recipe_of(plan: Plan, settings: "TrainingSection", dims: "Mapping[Kind, int]") -> Recipe:
    """A plan's recipe; `dims` are the encoders' sizes. Controls are always light, on frozen encoders."""
    own: dict[str, int] = {kind: dims[kind] for kind in BRANCHES[plan]}
    sizes = settings.model_dump(include={"width", "hidden", "dropout"})
    if plan not in CANDIDATES:
        kind = "attention" if plan == "muq_frozen" else "light"
        return Recipe({"dims": own, **sizes, "kind": kind}, None, adversary=False)
    return Recipe(_head(plan, settings, own, sizes), _tuning(settings), settings.adversary.weight > 0)


def _head(plan: Plan, settings: "TrainingSection", dims: dict[str, int], sizes: dict[str, Any]) -> dict[str, Any]:
    if settings.head == "predecessor" and plan == "baseline":
        return {"kind": "predecessor", "dim": dims["muq"], "hidden": settings.hidden}
    if settings.head == "light":
        return {"dims": dims, **sizes, "kind": "light", "pooled": settings.fusion == "pooled"}
    # The predecessor's head hears MuQ alone: beside it, the hybrid's is its closest kin, trained from scratch.
    attention = {"heads": settings.attention_heads, "layers": settings.attention_layers}
    return {"dims": dims, **sizes, "kind": "songeval", "pooled": settings.fusion == "pooled", **attention}


def _tuning(settings: "TrainingSection") -> Tuning | None:
    if settings.prefix_layer is None:
        return None
    lora = settings.lora if settings.tuning == "lora" else None
    return Tuning(
        settings.tuning,
        settings.prefix_layer,
        None if lora is None else lora.rank,
        None if lora is None else lora.alpha,
        mix=settings.layers == "mix",
    )


def fit_settings(settings: "TrainingSection", recipe: Recipe) -> FitSettings:
    """What the loop needs of a configuration."""
    objective = settings.model_dump(
        include={"loss", "margin_per_point", "order_margin", "absolute_weight", "absolute_beta"}
    )
    options = settings.model_dump(include=set(FitSettings.__dataclass_fields__))
    return FitSettings(
        objective=Objective(**objective),
        **options,
        adversary_weight=settings.adversary.weight if recipe.adversary else 0.0,
    )


MIN_TRAIN, MIN_VAL = 8, 8


@dataclass(frozen=True)
class Ground:
    """What all seeds of a plan share: clips, features, encoders, and how the plan is trained."""

    plan: Plan
    recipe: Recipe
    settings: "TrainingSection"
    folds: dict[str, Fold]
    entries: dict[str, list[Entry]]
    store: FeatureStore
    references: dict[Kind, EncoderReference]
    encoder_folders: dict[Kind, Path]
    target: str | None  # SHA-256 of the speaker encoder that an adversary is to guess
    data_digest: str
    code_revision: str
    device: str

    @property
    def warm(self) -> Path | None:
        """The folder that training starts from; None where it starts from scratch, as controls always do."""
        init = self.settings.init
        if init == "scratch" or self.plan not in CANDIDATES:
            return None
        return Path(init.removeprefix("warm:")).expanduser()

    @property
    def origin(self) -> str:
        """What training starts from, in words that name no path."""
        if self.warm is None:
            return "scratch"
        known = (self.warm / DESCRIPTION).is_file()
        return f"warm: {self.warm.name}" + ("" if known else ", whose training clips are not known")

    def untuned(self, name: str, kept_bytes: int = KEPT_BYTES) -> Fold:
        """A fold as MuQ hears it before anything of it is tuned, with a memory of its own; no speakers to unlearn."""
        clips = [entry.clip for entry in self.entries[name]]
        heard = StoredFeatures(clips, self.references, BRANCHES[self.plan], self.store, kept_bytes=kept_bytes)
        return replace(self.folds[name], features=heard, targets=None)

    @property
    def identity(self) -> str:
        """Tells this training from any other: clips and scores, settings, encoders."""
        skipped = {"plans", "seeds", "processes", "checkpoint_steps", "launcher", "trainjob"}
        value = [
            self.plan,
            self.settings.model_dump(exclude=skipped),
            {kind: reference.to_json() for kind, reference in self.references.items()},
            self.target,
            {
                name: [[str(one.clip.sha256), one.score, one.group, one.clip.source] for one in entries]
                for name, entries in self.entries.items()
            },
        ]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def read_ground(
    plan: Plan, index: Path, features: Path, settings: "TrainingSection", digest: str, revision: str, device: str
) -> Ground:
    """What the steps before left, checked: enough clips of different scores, and features of them all.

    Raises DataError where a split is too small to learn from or to choose by, or where the model that training starts
    from has seen clips of the test split; ModelError where features are missing.
    """
    extraction = read_extraction(features)
    store, kinds = FeatureStore(extraction.store), BRANCHES[plan]
    scored = {name: read_split(index, name) for name in ("train", "val")}
    for name, least in (("train", MIN_TRAIN), ("val", MIN_VAL)):
        if len(scored[name]) < least:
            raise DataError(f"{name} split: {len(scored[name])} scored clips; at least {least} are needed. Add data.")
        if len({clip.score for clip in scored[name]}) < 2:
            raise DataError(
                f"{name} split: all {len(scored[name])} clips have one score; there is nothing to rank. Add data."
            )
    dims = {kind: _dim(store, extraction, kind, scored["val"][0]) for kind in kinds}
    recipe = recipe_of(plan, settings, dims)
    entries = {"train": entries_of(scored["train"], read_relative(index, "train")), "val": entries_of(scored["val"])}
    folds = {name: _fold(found, extraction, recipe, kinds, store, settings) for name, found in entries.items()}
    ground = Ground(
        plan,
        recipe,
        settings,
        folds,
        entries,
        store,
        {kind: extraction.encoders[kind] for kind in kinds},
        {kind: folder for kind in kinds if (folder := features / ENCODERS / kind).is_dir()},
        None if not recipe.adversary or extraction.speaker is None else extraction.speaker.sha256,
        digest,
        revision,
        device,
    )
    if ground.warm is not None and (ground.warm / DESCRIPTION).is_file():
        _check_unseen(ground.warm, read_split(index, "test"))
    return ground


def _check_unseen(warm: Path, test: Sequence[Clip]) -> None:
    """Refuse to start from a scorer that has seen test clips: every figure on them would flatter."""
    seen = set(read_description(warm).seen_clips)
    if known := sorted(clip.audio_file for clip in test if clip.sha256 in seen):
        raise DataError(
            f"{warm} was trained, chosen or calibrated on {len(known)} of the {len(test)} test clips "
            f"({shorten(known)}). Keep the splits it was trained with (splits.json), or start from scratch."
        )


def _dim(store: FeatureStore, extraction: Extraction, kind: Kind, clip: Clip) -> int:
    return int(StoredFeatures([clip], extraction.encoders, [kind], store)[0][kind].shape[-1])


def _fold(
    entries: Sequence[Entry],
    extraction: Extraction,
    recipe: Recipe,
    kinds: Sequence[Kind],
    store: FeatureStore,
    settings: "TrainingSection",
) -> Fold:
    clips = [entry.clip for entry in entries]
    layer = None if recipe.tuning is None else recipe.tuning.from_layer
    targets = None
    if recipe.adversary:
        own = settings.adversary.target == "campplus"
        reference = extraction.encoders["campplus"] if own else extraction.speaker
        if reference is None or reference.kind != settings.adversary.target:
            raise ModelError(f"{settings.adversary.target} features were not extracted. Run the extraction again.")
        store.fetch((reference, str(clip.sha256)) for clip in clips)
        targets = torch.stack([store.get(reference, str(clip.sha256)) for clip in clips])
    return Fold(
        StoredFeatures(clips, extraction.encoders, kinds, store, prefix_layer=layer),
        [entry.score for entry in entries],
        [clip.source or "" for clip in clips],
        [str(clip.sha256) for clip in clips],
        [entry.group for entry in entries],
        targets,
        [clip.audio_file for clip in clips],
    )
