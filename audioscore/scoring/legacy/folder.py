"""Read and write legacy model folders: `type.txt`, `weights.pt` (the head) and `muq_lora.pt` in one of two variants:

- adapters only: `<projection>.audio_lora.{lora_A,lora_B,scaling}`;
- the full LoRA-wrapped MuQ: `<projection>.base_layer.{weight,bias}`, `<projection>.lora_{A,B}.audio_lora.weight`, and
  MuQ's other tensors under their own names. The scale of the adapters is not stored: it is lora_alpha / lora_r.

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
KIND = "SongEvalGenerator_audio_lora"  # content of type.txt
ADAPTER = "audio_lora"
ADAPTED = tuple(f".self_attn.{projection}.weight" for projection in ("linear_q", "linear_k", "linear_v", "linear_out"))

TensorDict = Mapping[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LegacyAdapter:
    """LoRA adapter of one projection, which adds scaling * b @ a to its weight. Shape: a [r, D], b [D, r]."""

    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True)
class LegacyWeights:
    """Content of a legacy folder, unchanged: `head` by legacy names, `adapters` of all layers by projection.

    `base` is MuQ without adapters under its own names, if the folder contains it.
    """

    head: TensorDict
    adapters: Mapping[str, LegacyAdapter]
    base: TensorDict | None


def read_files(folder: Path) -> tuple[TensorDict, TensorDict]:
    """Read the tensors of the head and of muq_lora.pt to the CPU; their keys and shapes are not checked.

    Raises ModelError if a file is missing, damaged, of another type, or contains more than named tensors.
    """
    missing = [name for name in (TYPE, HEAD, MUQ) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: {' and '.join(missing)} missing. Pass a folder with {TYPE}, {HEAD} and {MUQ}.")
    kind = (folder / TYPE).read_text(encoding="utf-8", errors="replace").strip()
    if kind != KIND:
        raise ModelError(f"{folder / TYPE}: is {kind[:80]!r}; only {KIND} is supported. Pass a folder of that type.")
    return _read(folder / HEAD), _read(folder / MUQ)


def write_folder(weights: LegacyWeights, folder: Path, *, base: TensorDict | None) -> None:
    """Write a folder, completely or not at all: with the full MuQ if `base` is given, else only the adapters.

    Raises UsageError if the folder contains other files.
    """
    if folder.is_dir() and (others := sorted({entry.name for entry in folder.iterdir()} - {TYPE, HEAD, MUQ})):
        raise UsageError(f"{folder}: contains {shorten(others)}, which saving would delete. Choose an empty folder.")
    stored = join_adapters(weights.adapters) if base is None else join_full(base, weights.adapters)
    with atomic_folder(folder) as target:
        torch.save(dict(weights.head), target / HEAD)
        torch.save(stored, target / MUQ)
        (target / TYPE).write_text(KIND, encoding="utf-8")


def join_adapters(adapters: Mapping[str, LegacyAdapter]) -> dict[str, Tensor]:
    """Build the content of a muq_lora.pt with adapters only."""
    stored = {}
    for path, adapter in adapters.items():
        stored[f"{path}.{ADAPTER}.lora_A"] = adapter.a
        stored[f"{path}.{ADAPTER}.lora_B"] = adapter.b
        stored[f"{path}.{ADAPTER}.scaling"] = torch.tensor(adapter.scaling)
    return stored


def join_full(base: TensorDict, adapters: Mapping[str, LegacyAdapter]) -> dict[str, Tensor]:
    """Build the content of a muq_lora.pt with the full MuQ."""
    stored = {_wrapped(name, adapters): value for name, value in base.items()}
    for path, adapter in adapters.items():
        stored[f"{path}.lora_A.{ADAPTER}.weight"] = adapter.a
        stored[f"{path}.lora_B.{ADAPTER}.weight"] = adapter.b
    return stored


def split_muq(
    stored: TensorDict, base: Mapping[str, Shape], source: str, *, rank: int, alpha: float
) -> tuple[dict[str, LegacyAdapter], dict[str, Tensor] | None]:
    """Split the content of muq_lora.pt: adapters by projection, and MuQ under its own names if `stored` contains it.

    Args:
        base: Shapes of all tensors of MuQ.
        rank, alpha: lora_r and lora_alpha; alpha / rank is the scale of the adapters of a full MuQ.
    Raises: ModelError with the keys that do not match.
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
    check_keys(stored, wanted, source, "Save the folder again, or pass the MuQ that it was trained with.")
    if full and found != rank:
        raise ModelError(
            f"{source}: the adapters have rank {found}, but lora_r is {rank}, and a full MuQ does not store "
            f"their scale. Pass lora_r={found} and the lora_alpha of the training."
        )
    adapters = {
        path: LegacyAdapter(stored[path + a], stored[path + b], alpha / rank if full else float(stored[path + factor]))
        for path in paths
    }
    return adapters, {name: stored[_wrapped(name, paths)] for name in base} if full else None


def check_keys(state: TensorDict, wanted: Mapping[str, Shape], source: str, hint: str) -> None:
    """Raise ModelError with the keys that are missing or too many, or that have another shape."""
    problems = []
    for what, names in (("missing", wanted.keys() - state.keys()), ("too many", state.keys() - wanted.keys())):
        if names:
            problems.append(f"{len(names)} {'key' if len(names) == 1 else 'keys'} {what} ({shorten(sorted(names))})")
    if not problems:
        bad = [
            f"{name} {list(state[name].shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if tuple(state[name].shape) != shape
        ]
        problems = [f"{len(bad)} of another shape ({shorten(bad)})"] if bad else []
    if problems:
        raise ModelError(f"{source}: {', '.join(problems)}. {hint}")


def check_factor(adapters: Mapping[str, LegacyAdapter], rank: int, alpha: float) -> None:
    """Raise ModelError if the scale of an adapter is not `alpha / rank`: a file with a full MuQ does not store it."""
    wrong = {one.scaling for one in adapters.values() if not math.isclose(one.scaling, alpha / rank, rel_tol=1e-6)}
    if wrong:
        raise ModelError(
            f"adapters: the scale is {shorten([f'{value:g}' for value in sorted(wrong)])}, but lora_alpha / lora_r is "
            f"{alpha / rank:g}, and a full MuQ does not store the scale. Pass the lora_r and lora_alpha of the "
            f"training, or save with full=False."
        )


def _wrapped(name: str, projections: Mapping[str, Any]) -> str:
    """Name of a tensor in a LoRA-wrapped MuQ.

    >>> _wrapped("q.bias", {"q": None}), _wrapped("norm.bias", {"q": None})
    ('q.base_layer.bias', 'norm.bias')
    """
    path, _, leaf = name.rpartition(".")
    return f"{path}.base_layer.{leaf}" if path in projections else name


def _read(source: Path) -> TensorDict:
    """Read a dict of tensors without executing code of a pickle."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns before it refuses a file
            state = torch.load(source, map_location="cpu", weights_only=True)
    except (
        RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError
    ) as error:  # fmt: skip
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ModelError(f"{source}: is damaged, or contains more than tensors ({reason}). Copy it again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{source}: does not contain a dict of named tensors. Save a state dict.")
    return dict(state)
