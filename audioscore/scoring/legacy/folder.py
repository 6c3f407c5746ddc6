"""The predecessor's folders, read and written: `type.txt`, `weights.pt` (the head) and `muq_lora.pt`, one of two:

- adapters alone: `<projection>.audio_lora.{lora_A,lora_B,scaling}`;
- the whole LoRA-wrapped MuQ: `<projection>.base_layer.{weight,bias}`, `<projection>.lora_{A,B}.audio_lora.weight`, and
  MuQ's other tensors under their own names. The factor of the adapters is not in it: it is lora_alpha / lora_r.

A projection is `model.conformer.layers.<i>.self_attn.linear_{q,k,v,out}`, in every layer of MuQ.
"""

import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audioscore.errors import ModelError, UsageError, shorten
from audioscore.files import atomic_folder

TYPE, HEAD, MUQ = "type.txt", "weights.pt", "muq_lora.pt"
KIND = "SongEvalGenerator_audio_lora"  # what type.txt says
ADAPTER = "audio_lora"
ADAPTED = tuple(f".self_attn.{projection}.weight" for projection in ("linear_q", "linear_k", "linear_v", "linear_out"))

State = Mapping[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """What LoRA adds to one projection's weight: scaling * b @ a. Shape: a [r, D], b [D, r]."""

    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True)
class Weights:
    """All that a folder holds, as it was stored: `head` by its own names, `adapters` by projection, of every layer.

    `base` is MuQ under its own names, without adapters, where the folder holds it.
    """

    head: State
    adapters: Mapping[str, Adapter]
    base: State | None


def read_files(folder: Path) -> tuple[State, State]:
    """The head's tensors and those of muq_lora.pt, on the CPU, not yet compared with any network.

    Raises ModelError where a file is missing, damaged, of another type, or holds more than named tensors.
    """
    missing = [name for name in (TYPE, HEAD, MUQ) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: {' and '.join(missing)} missing. Give a folder with {TYPE}, {HEAD} and {MUQ}.")
    kind = (folder / TYPE).read_text(encoding="utf-8", errors="replace").strip()
    if kind != KIND:
        raise ModelError(f"{folder / TYPE}: says {kind[:80]!r}; only {KIND} can be read. Give a folder of that type.")
    return _read(folder / HEAD), _read(folder / MUQ)


def write_folder(weights: Weights, folder: Path, *, base: State | None) -> None:
    """Write a folder, whole or not at all: the whole MuQ with `base`, else the adapters alone.

    Raises UsageError where the folder holds files that are not the model's.
    """
    if folder.is_dir() and (others := sorted({entry.name for entry in folder.iterdir()} - {TYPE, HEAD, MUQ})):
        raise UsageError(f"{folder}: holds {shorten(others)}, which saving would delete. Name a folder of its own.")
    stored = join_adapters(weights.adapters) if base is None else join_full(base, weights.adapters)
    with atomic_folder(folder) as target:
        torch.save(dict(weights.head), target / HEAD)
        torch.save(stored, target / MUQ)
        (target / TYPE).write_text(KIND, encoding="utf-8")


def join_adapters(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Content of an adapter-only muq_lora.pt."""
    stored = {}
    for path, adapter in adapters.items():
        stored[f"{path}.{ADAPTER}.lora_A"] = adapter.a
        stored[f"{path}.{ADAPTER}.lora_B"] = adapter.b
        stored[f"{path}.{ADAPTER}.scaling"] = torch.tensor(adapter.scaling)
    return stored


def join_full(base: State, adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Content of a muq_lora.pt with the whole MuQ."""
    stored = {_wrapped(name, adapters): value for name, value in base.items()}
    for path, adapter in adapters.items():
        stored[f"{path}.lora_A.{ADAPTER}.weight"] = adapter.a
        stored[f"{path}.lora_B.{ADAPTER}.weight"] = adapter.b
    return stored


def split_muq(
    stored: State, base: Mapping[str, Shape], source: str, *, rank: int, alpha: float
) -> tuple[dict[str, Adapter], dict[str, Tensor] | None]:
    """Adapters by projection, and MuQ under its own names where `stored` holds it.

    `base` has the shapes of all of MuQ's tensors, `rank` and `alpha` are lora_r and lora_alpha: they say by what
    factor the adapters of a whole MuQ count. Raises ModelError naming the keys that do not fit.
    """
    paths = {name.removesuffix(".weight"): base[name] for name in base if name.endswith(ADAPTED)}
    full = any(".base_layer." in name for name in stored)
    a, b, factor = f".{ADAPTER}.lora_A", f".{ADAPTER}.lora_B", f".{ADAPTER}.scaling"
    if full:
        a, b = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"
    found = next((len(stored[path + a]) for path in paths if path + a in stored and stored[path + a].ndim), rank)
    wanted: dict[str, Shape] = {_wrapped(name, paths): shape for name, shape in base.items()} if full else {}
    for path, (out, into) in paths.items():
        wanted |= {path + a: (found, into), path + b: (out, found)}
        if not full:
            wanted[path + factor] = ()
    check_keys(stored, wanted, source, "Save the folder again, or name the MuQ that it was trained with.")
    if full and found != rank:
        raise ModelError(
            f"{source}: its adapters have rank {found}, and lora_r is {rank}; a whole MuQ does not say by what factor "
            f"they count. Pass lora_r={found} and the lora_alpha it was trained with."
        )
    adapters = {
        path: Adapter(stored[path + a], stored[path + b], alpha / rank if full else float(stored[path + factor]))
        for path in paths
    }
    return adapters, {name: stored[_wrapped(name, paths)] for name in base} if full else None


def check_keys(state: State, wanted: Mapping[str, Shape], source: str, hint: str) -> None:
    """Raise ModelError naming the keys that are missing or too many, or else of another shape."""
    faults = []
    for what, names in (("missing", wanted.keys() - state.keys()), ("too many", state.keys() - wanted.keys())):
        if names:
            faults.append(f"{len(names)} {'key' if len(names) == 1 else 'keys'} {what} ({shorten(sorted(names))})")
    if not faults:
        bad = [
            f"{name} {list(state[name].shape)} and not {list(shape)}"
            for name, shape in wanted.items()
            if tuple(state[name].shape) != shape
        ]
        faults = [f"{len(bad)} of another shape ({shorten(bad)})"] if bad else []
    if faults:
        raise ModelError(f"{source}: {', '.join(faults)}. {hint}")


def check_factor(adapters: Mapping[str, Adapter], rank: int, alpha: float) -> None:
    """Raise ModelError where adapters count by another factor than `alpha / rank`, which a whole MuQ is read with."""
    wrong = {one.scaling for one in adapters.values() if not math.isclose(one.scaling, alpha / rank, rel_tol=1e-6)}
    if wrong:
        raise ModelError(
            f"the adapters count by {shorten([f'{value:g}' for value in sorted(wrong)])}, and lora_alpha / lora_r is "
            f"{alpha / rank:g}, which a whole MuQ would be read with. Pass the lora_r and lora_alpha they were made "
            f"with, or save with full=False."
        )


def _wrapped(name: str, projections: Mapping[str, Any]) -> str:
    """A tensor's name once the projections are wrapped.

    >>> _wrapped("q.bias", {"q": None}), _wrapped("norm.bias", {"q": None})
    ('q.base_layer.bias', 'norm.bias')
    """
    path, _, leaf = name.rpartition(".")
    return f"{path}.base_layer.{leaf}" if path in projections else name


def _read(source: Path) -> State:
    """A stored dict of tensors; no code that a pickle may carry is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces what it is about to refuse
            state = torch.load(source, map_location="cpu", weights_only=True)
    except (
        RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError
    ) as fault:  # fmt: skip
        reason = next(iter(str(fault).splitlines()), type(fault).__name__)[:200]
        raise ModelError(f"{source}: damaged, or holds more than tensors ({reason}). Copy it again.") from fault
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{source}: holds something else than named tensors. Give a state dict.")
    return dict(state)
