"""A scorer as a folder: head.safetensors, muq.safetensors where MuQ was tuned, scorer.json, and embedded encoders.

Encoders that no hub holds are always embedded, the others where the whole weights were asked for.

Nothing in it is a path or a pickle, loading is strict, and what comes back scores the same.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from audioscore.encoders.adapters import (
    adapter_state,
    add_lora,
    freeze,
    load_adapter_state,
    tune_layers,
)
from audioscore.encoders.campplus import CampplusEncoder, load_campplus
from audioscore.encoders.campplus import encoder_files as campplus_files
from audioscore.encoders.features import EncoderReference, Kind
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq import encoder_files as muq_files
from audioscore.encoders.muq_layers import LayerMix, MuQSuffix
from audioscore.errors import ModelError, shorten
from audioscore.files import atomic_folder, place, read_json, sha256_of, write_json
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.head import build_head
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.scorer import Description, Scorer, Tuning
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE, SCORE_MAX, SCORE_MIN

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def build_network(
    head: Mapping[str, Any],
    tuning: Tuning | None,
    muq: MuQEncoder | None,
    *,
    lora_dropout: float = 0.0,
    checkpointing: bool = False,
) -> ScoreNetwork:
    """A network with a new head; only what is to be trained has gradients.

    With `tuning`, `muq` is changed in place: its upper layers are the network's from here on. Random weights are drawn
    from torch's random state. Raises ModelError where the head or the layers are not to be had.
    """
    if tuning is None:
        return ScoreNetwork(build_head(head))
    if muq is None:
        raise ModelError("this network goes through MuQ's layers, and no MuQ was given. Load the encoder first.")
    if tuning.mode == "lora":
        if tuning.rank is None or tuning.alpha is None:
            raise ModelError("the description says neither rank nor alpha of its adapters. Train the scorer again.")
        add_lora(
            muq.module, rank=tuning.rank, alpha=tuning.alpha, dropout=lora_dropout, from_layer=tuning.from_layer
        )  # fmt: skip
    elif tuning.mode == "full":
        tune_layers(muq.module, from_layer=tuning.from_layer)
    else:
        freeze(muq.module)
    suffix = MuQSuffix(muq, tuning.from_layer, checkpointing=checkpointing)
    mix = LayerMix(muq.layer - tuning.from_layer + 1) if tuning.mix else None
    return ScoreNetwork(build_head(head), suffix, mix)


def tuned_state(tuning: Tuning | None, muq: MuQEncoder | None) -> dict[str, Tensor]:
    """A copy, on the CPU, of what was trained of MuQ: its adapters, or its layers; empty where nothing was."""
    if tuning is None or muq is None or tuning.mode == "frozen":
        return {}
    if tuning.mode == "lora":
        return adapter_state(muq.module)
    # By name, not by gradient: a scorer that was loaded has none. The norm exists where the last layer is read.
    layers = (f"model.conformer.layers.{layer}." for layer in range(tuning.from_layer, muq.layer))
    begins = (*layers, "model.conformer.layer_norm.")
    parameters = muq.module.named_parameters()
    return {name: value.detach().cpu().clone() for name, value in parameters if name.startswith(begins)}


def load_tuned_state(tuning: Tuning | None, muq: MuQEncoder | None, state: Mapping[str, Tensor]) -> None:
    """Put back what `tuned_state` gave, into a MuQ that `build_network` prepared alike: all of it, or nothing.

    Raises ModelError naming what is missing, left over or of another shape.
    """
    if tuning is not None and tuning.mode == "lora" and muq is not None:
        load_adapter_state(muq.module, state)
        return
    wanted = {name: tuple(value.shape) for name, value in tuned_state(tuning, muq).items()}
    faults = sorted(wanted.keys() ^ state.keys()) or [
        name for name in wanted if tuple(state[name].shape) != wanted[name] or not state[name].isfinite().all()
    ]
    if faults:
        raise ModelError(
            f"what was trained of MuQ does not fit: {len(faults)} tensors missing, left over, of another shape or not "
            f"finite ({shorten(faults)}). Use the encoder and layers they were trained with."
        )
    if muq is not None and state:
        muq.module.load_state_dict(dict(state), strict=False)  # the names were compared above


FORMAT = 2
READ = (1, 2)  # 1 knew light heads alone
DESCRIPTION, HEAD, MUQ, ENCODERS = "scorer.json", "head.safetensors", "muq.safetensors", "encoders"
MIX = "mix.logits"  # beside the head's weights, where layers are mixed
# Names of format 1's weights, by their beginnings.
RENAMED = {"norms.": "fusion.norms.", "projections.": "fusion.projections.", "mlp.": "regressor."}


def save_scorer(
    network: ScoreNetwork,
    description: Description,
    encoder_folders: Mapping[Kind, Path],
    folder: Path,
    tuned: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Write a scorer as a folder, whole or not at all.

    `encoder_folders` holds the folders of the encoders that are embedded: all without a hub id, at least. `tuned` is
    what was trained of MuQ (`build.tuned_state`). Raises ModelError where an encoder without a hub id has no folder.
    """
    from safetensors.torch import save_file

    lost = [kind for kind, reference in description.encoders.items() if reference.id is None]
    if lost := [kind for kind in lost if kind not in encoder_folders]:
        raise ModelError(f"{' and '.join(lost)}: no hub holds these weights, and no folder to embed was given.")
    for kind in description.encoders.keys() & encoder_folders.keys():
        _check_embedded(kind, description.encoders[kind], encoder_folders[kind])
    with atomic_folder(folder) as target:
        save_file(_on_cpu(_head_state(network)), target / HEAD)
        if tuned:
            save_file(_on_cpu(tuned), target / MUQ)
        for kind in description.encoders.keys() & encoder_folders.keys():
            for source in _files(kind, encoder_folders[kind]):
                place(source.resolve(), target / ENCODERS / kind / source.name)  # a hub's cache holds links
        write_json(target / DESCRIPTION, _to_json(description))


def _files(kind: Kind, folder: Path) -> list[Path]:
    return muq_files(folder) if kind == "muq" else campplus_files(folder)


def _check_embedded(kind: Kind, reference: EncoderReference, folder: Path) -> None:
    """Refuse to embed an encoder that is not the one a scorer names: it could never be loaded again."""
    hashed = _files(kind, folder)[0 if kind == "muq" else 1 :]  # of CAM++, the weights alone
    if sha256_of(*hashed) != reference.sha256:
        raise ModelError(f"{folder}: holds another {kind} than the features are of. Extract them again, and train.")


def load_scorer(folder: Path, *, device: str = "cpu", fast: bool = False, needs_voice: bool = False) -> Scorer:
    """Read a scorer folder; encoders that are not embedded come from the hub's cache or the hub.

    `fast` and `needs_voice`: see `Scorer`.

    Raises ModelError where something is missing, does not fit, or is not the encoder the scorer was trained with.
    """
    description, encoders = read_description(folder), load_encoders_of(folder, device=device)
    network = _load_network(folder, description, encoders.get("muq"))
    return Scorer(network, description, encoders, device=device, fast=fast, needs_voice=needs_voice)


def load_encoders_of(folder: Path, *, device: str = "cpu") -> dict[Kind, MuQEncoder | CampplusEncoder]:
    """A scorer's encoders as they were before anything was tuned, as its features were extracted."""
    return {
        kind: load_reference(kind, reference, folder / ENCODERS / kind, device)
        for kind, reference in read_description(folder).encoders.items()
    }


def read_description(folder: Path) -> Description:
    """Only what a scorer says of itself: no weights are read."""
    source = folder / DESCRIPTION
    if not source.is_file():
        raise ModelError(
            f"{folder}: not a scorer folder, {DESCRIPTION} missing. Give the folder that a run registered."
        )
    try:
        value = read_json(source)
        if value["format"] not in READ:
            raise ModelError(f"{source}: format {value['format']}; this version reads {READ}. Update audioscore.")
        return Description(
            plan=value["plan"],
            seed=value["seed"],
            encoders={kind: EncoderReference(**reference) for kind, reference in value["encoders"].items()},
            head=value["head"],
            calibration=Calibration.from_json(value["calibration"]),
            seen_clips=tuple(value["seen_clips"]),
            data_digest=value["data_digest"],
            code_revision=value["code_revision"],
            training=value["training"],
            tuning=None if value.get("tuning") is None else Tuning(**value["tuning"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise ModelError(f"{source}: damaged or incomplete ({type(fault).__name__}: {fault}).") from fault


def load_network(folder: Path, description: Description, device: "str | torch.device" = "cpu") -> ScoreNetwork:
    """The network alone, for clips whose features are already known; MuQ is loaded only where its layers are tuned.

    Raises ModelError as `load_scorer` does.
    """
    muq = None
    if description.tuning is not None and "muq" in description.encoders:
        muq = load_reference("muq", description.encoders["muq"], folder / ENCODERS / "muq", str(device))
    network = _load_network(folder, description, muq)
    return network.eval().requires_grad_(False).to(device)


def load_reference(
    kind: Kind, reference: EncoderReference, embedded: Path | None = None, device: str = "cpu"
) -> MuQEncoder | CampplusEncoder:
    """The encoder that a reference names, from the folder where it is embedded or else by its hub id.

    Raises ModelError where it cannot be had, or is not the one.
    """
    if embedded is not None and (embedded.is_dir() or reference.id is None):
        source = str(embedded.resolve())
    elif reference.id is not None:
        source = reference.id
    else:
        raise ModelError(f"{kind}: no hub holds these weights, and no folder with them was given. Train again.")
    encoder: MuQEncoder | CampplusEncoder
    if kind == "muq":
        encoder = load_muq(
            source, layer=reference.layer or 1, revision=reference.revision, device=device,
            precision=reference.precision, window_seconds=reference.window,
        )  # fmt: skip
    else:
        encoder = load_campplus(source, revision=reference.revision, device=device, precision=reference.precision)
    if encoder.reference.sha256 != reference.sha256:
        raise ModelError(
            f"{kind}: weights {encoder.reference.sha256[:12]} are not the {reference.sha256[:12]} this scorer was "
            f"trained with. Fetch {reference.id or 'the scorer folder'} again."
        )
    return encoder


def _load_network(folder: Path, description: Description, muq: Any) -> ScoreNetwork:
    """The network with its weights; a tuned MuQ's upper layers become its own."""
    import torch

    with torch.random.fork_rng(devices=[]):  # the first weights are random, and replaced
        network = build_network(description.head, description.tuning, muq)
    state = {renamed(name): value for name, value in _tensors(folder / HEAD).items()}
    wanted = _head_state(network)
    faults = sorted(state.keys() ^ wanted.keys()) or [
        name for name in wanted if state[name].shape != wanted[name].shape or not state[name].isfinite().all()
    ]
    if faults:
        raise ModelError(
            f"{folder / HEAD}: not the weights that {DESCRIPTION} describes; {len(faults)} tensors missing, left over, "
            f"of another shape or not finite ({shorten(faults)})."
        )
    network.head.load_state_dict({name: state[name] for name in network.head.state_dict()}, strict=True)
    if network.mix is not None:
        network.mix.load_state_dict({"logits": state[MIX]}, strict=True)
    load_tuned_state(description.tuning, muq, _tensors(folder / MUQ) if (folder / MUQ).is_file() else {})
    return network


def _tensors(source: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(source))
    except (OSError, SafetensorError) as fault:
        raise ModelError(f"{source}: missing, damaged, or not the weights that {DESCRIPTION} describes.") from fault


def _head_state(network: ScoreNetwork) -> "dict[str, Tensor]":
    """The weights beside MuQ's: of the head, and of the mix of layers."""
    state: dict[str, Tensor] = dict(network.head.state_dict())
    return state if network.mix is None else {**state, MIX: network.mix.logits}


def renamed(name: str) -> str:
    """A weight's name today, from its name in format 1."""
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _on_cpu(state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _to_json(description: Description) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "plan": description.plan,
        "seed": description.seed,
        "encoders": {kind: reference.to_json() for kind, reference in description.encoders.items()},
        "head": description.head,
        "sample_rates": {"muq": MUQ_RATE, "campplus": CAMPPLUS_RATE},
        "score": {"min": SCORE_MIN, "max": SCORE_MAX, "direction": "higher is better"},
        "calibration": description.calibration.to_json(),
        "seen_clips": list(description.seen_clips),
        "data_digest": description.data_digest,
        "code_revision": description.code_revision,
        "licence_of_weights": description.licence,
        "training": description.training,
        "tuning": None if description.tuning is None else asdict(description.tuning),
    }
