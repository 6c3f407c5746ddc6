"""Where training starts other than at random: with what fits of a scorer, or of a folder of the predecessor.

The hybrid's head always starts from scratch: what a head learned of MuQ alone says nothing of the joint features.
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
from audioscore.scoring.checkpoint import DESCRIPTION, HEAD, MIX, MUQ, load_tuned_state, read_description, renamed
from audioscore.scoring.legacy.convert import differing, native_adapters
from audioscore.scoring.legacy.folder import HEAD as PREDECESSOR_HEAD
from audioscore.scoring.legacy.folder import TYPE, State, read_files
from audioscore.scoring.legacy.model import (
    DISCRIMINATOR_PREFIX,
    READ_LAYER,
    PredecessorScoreHead,
    load_predecessor,
    load_predecessor_head,
)
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.scorer import Tuning
from audioscore.training.recipe import Recipe

HEAD_DEFAULTS = {"kind": "light", "pooled": False, "heads": 8, "layers": 4}
WEIGHTLESS = "dropout"  # the argument of a head that none of its weights depends on
PARTS = {"lora": "MuQ's adapters", "full": "MuQ's tuned layers", "frozen": "the mix of MuQ's layers"}


class NothingFitsError(ModelError):
    """A folder holds nothing that the network has a place for."""


@dataclass
class _Found:
    """What of a folder fits, by the names of our weights, and a clause for each part that does not."""

    head: Mapping[str, Tensor] | None = None
    tuned: Mapping[str, Tensor] | None = None
    mix: Tensor | None = None
    rest: list[str] = field(default_factory=list)


def warm_start(
    network: ScoreNetwork,
    recipe: Recipe,
    muq: MuQEncoder | None,
    folder: Path,
    *,
    reference: EncoderReference | None = None,
) -> str:
    """Put what fits of a scorer folder, or of the predecessor's, into a network that `build_network` just made.

    `reference` is of the MuQ that the features come from, where `muq` is not given because none of its layers is in the
    network. Returns a sentence that says what was taken, and what starts from scratch and why.

    A head fits where its sizes are the same, what was trained of MuQ where its tuning is; a head that is taken brings
    the statistics it normalises by (`takes_head`). The predecessor's adapters fit LoRA from layer 0 on with their rank
    and factor; those of a whole MuQ do not say their factor, which is taken to be the recipe's.

    Raises ModelError where the folder is neither, or damaged, where it was made with another MuQ, and where nothing of
    it fits; the network is then as it was.
    """
    reference = muq.reference if muq is not None else reference
    if (folder / TYPE).is_file():
        found = _of_predecessor(recipe, muq, reference, folder)
    elif (folder / DESCRIPTION).is_file():
        found = _of_scorer(recipe, reference, folder)
    else:
        raise ModelError(
            f"{folder}: neither a scorer folder nor one of the predecessor, {DESCRIPTION} and {TYPE} missing. Correct "
            f"training.init."
        )
    taken = _apply(found, network, recipe, muq, folder)
    if not taken:
        raise NothingFitsError(
            f"{folder}: nothing of it fits this training: {'; '.join(found.rest)}. Train with the same settings, or "
            f"with init: scratch."
        )
    unseen = [] if reference is not None else ["whether it heard the same MuQ is not known"]
    return "; ".join([f"{' and '.join(taken)} from {folder}", *found.rest, *unseen])


def takes_head(recipe: Recipe, folder: Path) -> bool:
    """Whether `warm_start` takes the head of a scorer folder, and with it the statistics of that scorer's clips.

    Fitting statistics anew would change what the head computes. The predecessor's has none: of its folders, False.
    """
    return (folder / DESCRIPTION).is_file() and _head_fault(recipe, read_description(folder).head) is None


def _apply(found: _Found, network: ScoreNetwork, recipe: Recipe, muq: MuQEncoder | None, folder: Path) -> list[str]:
    """Fill the network; the names of what was filled. Where something does not fit after all, nothing is."""
    before = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("suffix.")}
    taken: list[str] = []
    try:
        if found.head is not None:
            network.head.load_state_dict(dict(found.head), strict=True)
            taken.append("the head")
        if found.mix is not None and network.mix is not None:
            network.mix.load_state_dict({"logits": found.mix}, strict=True)
            taken.append(PARTS["frozen"])
        if found.tuned is not None and recipe.tuning is not None:
            load_tuned_state(recipe.tuning, muq, found.tuned)
            taken.append(PARTS[recipe.tuning.mode])
    except (RuntimeError, ModelError) as fault:
        network.load_state_dict(before, strict=False)
        reason = next(iter(str(fault).splitlines()[-1:]), "").strip()
        raise ModelError(f"{folder}: does not hold the weights that it describes ({reason[:300]}).") from fault
    return taken


def _of_scorer(recipe: Recipe, reference: EncoderReference | None, folder: Path) -> _Found:
    description = read_description(folder)
    theirs = description.encoders.get("muq")
    if theirs is None:
        raise ModelError(f"{folder}: a {description.plan} scorer, which hears no MuQ. Begin with another.")
    if reference is not None and (theirs.sha256, theirs.layer) != (reference.sha256, reference.layer):
        raise ModelError(
            f"{folder}: hears layer {theirs.layer} of MuQ {theirs.sha256[:12]}, and this training layer "
            f"{reference.layer} of MuQ {reference.sha256[:12]}. Train on the same (an embedded one lies under "
            f"encoders/muq), or with init: scratch."
        )
    state = {renamed(name): value for name, value in _read(folder / HEAD).items()}
    mix, found = state.pop(MIX, None), _Found()
    if fault := _head_fault(recipe, description.head):
        found.rest.append(f"the head from scratch ({fault})")
    else:
        found.head = state
    if recipe.tuning is not None and recipe.tuning == description.tuning:
        found.mix = mix
        if recipe.tuning.mode != "frozen":
            found.tuned = _read(folder / MUQ)
    else:
        found.rest += _tuning_fault(recipe.tuning, description.tuning)
    return found


def _of_predecessor(recipe: Recipe, muq: MuQEncoder | None, reference: EncoderReference | None, folder: Path) -> _Found:
    if reference is not None and reference.layer != READ_LAYER:
        raise ModelError(
            f"{folder}: the predecessor hears layer {READ_LAYER} of MuQ, and this training layer {reference.layer}. "
            f"Set encoders.muq.layer to {READ_LAYER}, or train with init: scratch."
        )
    state, stored = read_files(folder)
    found = _Found()
    if muq is None:
        found.rest += _tuning_fault(None, Tuning("lora", 0))
    else:
        _take_adapters(found, recipe.tuning, muq, state, stored, folder)
    sizes = {"dim": _rows(state, "ffd.2.weight"), "hidden": _rows(state, "ffd.0.weight")}
    if fault := _head_fault(recipe, {"kind": "predecessor", **sizes}):
        found.rest.append(f"the head from scratch ({fault})")
    else:
        with torch.random.fork_rng(devices=[]):
            head = PredecessorScoreHead(**sizes)
        load_predecessor_head(head, state, str(folder / PREDECESSOR_HEAD))
        found.head = head.state_dict()
    return found


def _take_adapters(
    found: _Found, ours: Tuning | None, muq: MuQEncoder, head: State, stored: State, folder: Path
) -> None:
    """The adapters of the layers that are read, where they are of the recipe's kind.

    Raises ModelError where the folder is not whole, does not fit this MuQ, or holds another.
    """
    rank = next((len(value) for name, value in stored.items() if ".lora_A" in name and value.ndim), 1)
    # Read by whole MuQs alone, whose adapters are taken to count as the recipe's do.
    alpha = ours.alpha if ours is not None and ours.alpha is not None else rank
    adversarial = any(name.startswith(DISCRIMINATOR_PREFIX) for name in head)
    with torch.random.fork_rng(devices=[]):  # what is loaded is random first
        judge = load_predecessor(folder, str(muq.folder), use_grl=adversarial, rank=rank, alpha=alpha)
    base = judge.weights.base
    if base is not None and (others := differing(base, muq.module)):
        raise ModelError(
            f"{folder}: holds another MuQ than this training's; {len(others)} tensors differ ({shorten(others)}). "
            f"Convert it (`audioscore convert`), train on the MuQ in the converted folder's encoders/muq, and begin "
            f"with that folder."
        )
    theirs, state = native_adapters(judge.weights.adapters)
    if ours is not None and replace(ours, mix=False) == theirs:
        found.tuned = state
        if ours.mix:
            found.rest.append(f"{PARTS['frozen']} from scratch (the predecessor has none)")
    else:
        found.rest += _tuning_fault(ours, theirs)


def _head_fault(recipe: Recipe, theirs: Mapping[str, Any]) -> str | None:
    """Why a head is not the one that the recipe asks for; None where it is."""
    if "campplus" in recipe.head.get("dims", {}):
        return "the hybrid's always is"
    heads = [{**HEAD_DEFAULTS, **head} if "dims" in head else dict(head) for head in (theirs, recipe.head)]
    return _difference(*({**head, WEIGHTLESS: None} for head in heads), first="kind") or None


def _tuning_fault(ours: Tuning | None, theirs: Tuning | None) -> list[str]:
    """A clause that says why what was trained of MuQ is not taken; none where neither side has anything."""
    if ours is None:
        return [] if theirs is None else [f"left behind: {PARTS[theirs.mode]} (MuQ is frozen here)"]
    why = "its MuQ was frozen" if theirs is None else _difference(asdict(theirs), asdict(ours), first="mode")
    return [f"{PARTS[ours.mode]} from scratch ({why})"]


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], *, first: str) -> str:
    """What differs between two descriptions; where `first` does, that alone: the rest means something else then.

    >>> _difference({"mode": "lora", "rank": 4, "alpha": 6}, {"mode": "lora", "rank": 8, "alpha": 6}, first="mode")
    'rank 4 there, 8 here'
    """
    keys = [key for key in dict.fromkeys([*theirs, *ours]) if theirs.get(key) != ours.get(key)]
    keys = [first] if first in keys else keys
    return ", ".join(f"{key} {theirs.get(key)} there, {ours.get(key)} here" for key in keys)


def _rows(state: State, name: str) -> int:
    return len(state[name]) if name in state and state[name].ndim else 0


def _read(source: Path) -> dict[str, Tensor]:
    """Raises ModelError where the file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(source)
    except (OSError, SafetensorError) as fault:
        raise ModelError(f"{source}: missing or damaged. Copy the scorer folder again.") from fault
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ModelError(f"{source}: {shorten(broken)} not finite. Begin with another.")
    return state
