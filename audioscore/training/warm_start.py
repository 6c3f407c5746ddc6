"""Warm start: initialise a network with the parts of a scorer, or of a legacy model, that fit it.

The hybrid's head always starts from scratch, because a head trained on MuQ features does not fit the joint features.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioscore.encoders.features import EncoderReference
from audioscore.encoders.muq import MuQEncoder
from audioscore.errors import ModelError, shorten
from audioscore.scoring.checkpoint import DESCRIPTION, HEAD, MIX, MUQ, current_name, load_tuned_state, read_description
from audioscore.scoring.legacy.convert import differing_weights, native_adapters
from audioscore.scoring.legacy.folder import HEAD as LEGACY_HEAD
from audioscore.scoring.legacy.folder import TYPE, TensorDict, read_files
from audioscore.scoring.legacy.model import (
    DISCRIMINATOR_PREFIX,
    READ_LAYER,
    LegacyScoreHead,
    load_legacy_head,
    load_legacy_model,
)
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.scorer import Tuning
from audioscore.training.recipe import Recipe

HEAD_DEFAULTS = {"kind": "light", "pooled": False, "heads": 8, "layers": 4}
WEIGHTLESS = "dropout"  # the head's only argument that does not change its weights
PARTS = {"lora": "MuQ's adapters", "full": "MuQ's tuned layers", "frozen": "the mix of MuQ's layers"}


class NothingToLoadError(ModelError):
    """No part of a folder fits the network."""


@dataclass
class _Found:
    """The parts of a folder that fit, by our weight names, and the reason for each part that does not."""

    head: Mapping[str, Tensor] | None = None
    tuned: Mapping[str, Tensor] | None = None
    mix: Tensor | None = None
    rest: list[str] = field(default_factory=list)


def warm_start(
    network: ScoreNetwork, recipe: Recipe, muq: MuQEncoder | None, folder: Path, *,
    reference: EncoderReference | None = None,
) -> str:  # fmt: skip
    """Load the fitting parts of a scorer folder, or of a legacy model's folder, into a new network.

    A head fits if its sizes are the same; the tuned part of MuQ fits if its tuning is the same. A loaded head brings
    its normalisation statistics (`loads_head`). The adapters of a legacy model fit LoRA from layer 0 with the same rank
    and alpha; folders with a whole MuQ do not record alpha, so the recipe's is assumed.

    Args:
        reference: the MuQ of the features, if `muq` is None because the network contains none of its layers.
    Returns: a message that names the loaded parts, and the reason for each part that starts from scratch.
    Raises: ModelError if the folder is damaged, is of neither kind, or was trained with another MuQ, and
        NothingToLoadError if no part fits; the network is then unchanged.
    """
    reference = muq.reference if muq is not None else reference
    if (folder / TYPE).is_file():
        found = _from_legacy(recipe, muq, reference, folder)
    elif (folder / DESCRIPTION).is_file():
        found = _from_scorer(recipe, reference, folder)
    else:
        raise ModelError(
            f"{folder}: not a scorer or a legacy model, because {DESCRIPTION} and {TYPE} are missing. Correct "
            f"training.init."
        )
    loaded = _load(found, network, recipe, muq, folder)
    if not loaded:
        raise NothingToLoadError(
            f"{folder}: no part fits this training: {'; '.join(found.rest)}. Train with the same settings, or with "
            f"init: scratch."
        )
    unchecked = [] if reference is not None else ["whether it was trained with the same MuQ cannot be checked"]
    return "; ".join([f"{' and '.join(loaded)} from {folder}", *found.rest, *unchecked])


def loads_head(recipe: Recipe, folder: Path) -> bool:
    """Whether `warm_start` loads the head of a scorer folder, with the statistics of that scorer's training clips.

    New statistics would change the outputs of the head. The legacy head has none: False for legacy models.
    """
    return (folder / DESCRIPTION).is_file() and _head_mismatch(recipe, read_description(folder).head) is None


def _load(found: _Found, network: ScoreNetwork, recipe: Recipe, muq: MuQEncoder | None, folder: Path) -> list[str]:
    """Load the parts and return their names. If one cannot be loaded, the network is restored."""
    before = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("suffix.")}
    loaded: list[str] = []
    try:
        if found.head is not None:
            network.head.load_state_dict(dict(found.head), strict=True)
            loaded.append("the head")
        if found.mix is not None and network.mix is not None:
            network.mix.load_state_dict({"logits": found.mix}, strict=True)
            loaded.append(PARTS["frozen"])
        if found.tuned is not None and recipe.tuning is not None:
            load_tuned_state(recipe.tuning, muq, found.tuned)
            loaded.append(PARTS[recipe.tuning.mode])
    except (RuntimeError, ModelError) as error:
        network.load_state_dict(before, strict=False)
        reason = next(iter(str(error).splitlines()[-1:]), "").strip()
        raise ModelError(f"{folder}: weights do not match the description ({reason[:300]}). Copy it again.") from error
    return loaded


def _from_scorer(recipe: Recipe, reference: EncoderReference | None, folder: Path) -> _Found:
    description = read_description(folder)
    theirs = description.encoders.get("muq")
    if theirs is None:
        raise ModelError(f"{folder}: a {description.plan} scorer, which does not use MuQ. Start from another one.")
    if reference is not None and (theirs.sha256, theirs.layer) != (reference.sha256, reference.layer):
        raise ModelError(
            f"{folder}: it reads layer {theirs.layer} of MuQ {theirs.sha256[:12]}, and this training layer "
            f"{reference.layer} of MuQ {reference.sha256[:12]}. Train on the same MuQ (its folder encoders/muq, if "
            f"there is one), or with init: scratch."
        )
    state = {current_name(name): value for name, value in _read(folder / HEAD).items()}
    mix, found = state.pop(MIX, None), _Found()
    if mismatch := _head_mismatch(recipe, description.head):
        found.rest.append(f"the head from scratch ({mismatch})")
    else:
        found.head = state
    if recipe.tuning is not None and recipe.tuning == description.tuning:
        found.mix = mix
        if recipe.tuning.mode != "frozen":
            found.tuned = _read(folder / MUQ)
    else:
        found.rest += _tuning_mismatch(recipe.tuning, description.tuning)
    return found


def _from_legacy(recipe: Recipe, muq: MuQEncoder | None, reference: EncoderReference | None, folder: Path) -> _Found:
    if reference is not None and reference.layer != READ_LAYER:
        raise ModelError(
            f"{folder}: legacy models read layer {READ_LAYER} of MuQ, and this training layer {reference.layer}. "
            f"Set encoders.muq.layer to {READ_LAYER}, or train with init: scratch."
        )
    state, stored = read_files(folder)
    found = _Found()
    if muq is None:
        found.rest += _tuning_mismatch(None, Tuning("lora", 0))
    else:
        _find_adapters(found, recipe.tuning, muq, state, stored, folder)
    sizes = {"dim": _rows(state, "ffd.2.weight"), "hidden": _rows(state, "ffd.0.weight")}
    if mismatch := _head_mismatch(recipe, {"kind": "predecessor", **sizes}):
        found.rest.append(f"the head from scratch ({mismatch})")
    else:
        with torch.random.fork_rng(devices=[]):
            head = LegacyScoreHead(**sizes)
        load_legacy_head(head, state, str(folder / LEGACY_HEAD))
        found.head = head.state_dict()
    return found


def _find_adapters(
    found: _Found, ours: Tuning | None, muq: MuQEncoder, head: TensorDict, stored: TensorDict, folder: Path
) -> None:
    """Use the adapters up to the read layer, if their tuning is the recipe's.

    Raises ModelError if the folder is incomplete, does not fit this MuQ, or contains another MuQ.
    """
    rank = next((len(value) for name, value in stored.items() if ".lora_A" in name and value.ndim), 1)
    # Only folders with a whole MuQ do not record alpha; they are assumed to use the recipe's.
    alpha = ours.alpha if ours is not None and ours.alpha is not None else rank
    adversarial = any(name.startswith(DISCRIMINATOR_PREFIX) for name in head)
    with torch.random.fork_rng(devices=[]):  # the weights are random before they are loaded
        legacy = load_legacy_model(folder, str(muq.folder), use_grl=adversarial, rank=rank, alpha=alpha)
    base = legacy.weights.base
    if base is not None and (others := differing_weights(base, muq.module)):
        raise ModelError(
            f"{folder}: it contains another MuQ than this training uses; {len(others)} tensors differ "
            f"({shorten(others)}). Convert it (`audioscore convert`), train on the MuQ in the converted folder's "
            f"encoders/muq, and start from that folder."
        )
    theirs, state = native_adapters(legacy.weights.adapters)
    if ours is not None and replace(ours, mix=False) == theirs:
        found.tuned = state
        if ours.mix:
            found.rest.append(f"{PARTS['frozen']} from scratch (legacy models have none)")
    else:
        found.rest += _tuning_mismatch(ours, theirs)


def _head_mismatch(recipe: Recipe, theirs: Mapping[str, Any]) -> str | None:
    """Return why a head is not the recipe's; None if it is."""
    if "campplus" in recipe.head.get("dims", {}):
        return "as always for the hybrid"
    heads = [{**HEAD_DEFAULTS, **head} if "dims" in head else dict(head) for head in (theirs, recipe.head)]
    return _difference(*({**head, WEIGHTLESS: None} for head in heads), first="kind") or None


def _tuning_mismatch(ours: Tuning | None, theirs: Tuning | None) -> list[str]:
    """Return why the tuned part of MuQ is not loaded; nothing if neither side has one."""
    if ours is None:
        return [] if theirs is None else [f"not loaded: {PARTS[theirs.mode]} (MuQ is frozen in this training)"]
    why = "its MuQ was frozen" if theirs is None else _difference(asdict(theirs), asdict(ours), first="mode")
    return [f"{PARTS[ours.mode]} from scratch ({why})"]


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], *, first: str) -> str:
    """List the differences of two descriptions; only that of `first` if it differs, since the rest depends on it.

    >>> _difference({"mode": "lora", "rank": 4, "alpha": 6}, {"mode": "lora", "rank": 8, "alpha": 6}, first="mode")
    'rank 4 there, 8 here'
    """
    keys = [key for key in dict.fromkeys([*theirs, *ours]) if theirs.get(key) != ours.get(key)]
    keys = [first] if first in keys else keys
    return ", ".join(f"{key} {theirs.get(key)} there, {ours.get(key)} here" for key in keys)


def _rows(state: TensorDict, name: str) -> int:
    return len(state[name]) if name in state and state[name].ndim else 0


def _read(source: Path) -> dict[str, Tensor]:
    """Raises ModelError if the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(source)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{source}: missing or damaged. Copy the scorer folder again.") from error
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ModelError(f"{source}: {shorten(broken)} not finite. Start from another scorer.")
    return state
