"""Save and load a scorer as a folder: head.safetensors, muq.safetensors (if MuQ was tuned), scorer.json, encoders.

Encoders that are not on a hub are always embedded, others only for a self-contained folder. A folder contains no
absolute path, loading is strict, and a loaded scorer gives the same scores.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from audioscore.encoders.adapters import adapter_state, add_lora, freeze, load_adapter_state, tune_layers
from audioscore.encoders.campplus import CampplusEncoder, load_campplus
from audioscore.encoders.campplus import encoder_files as campplus_files
from audioscore.encoders.features import EncoderReference, Kind
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.muq import encoder_files as muq_files
from audioscore.encoders.muq_layers import LayerMix, MuQSuffix
from audioscore.errors import ModelError, shorten
from audioscore.files import atomic_folder, link_or_copy, read_json, sha256_of, write_json
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.head import build_head
from audioscore.scoring.network import ScoreNetwork
from audioscore.scoring.scorer import Description, Scorer, Tuning
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE, SCORE_MAX, SCORE_MIN

FORMAT = 2
READ = (1, 2)  # format 1 has only light heads
DESCRIPTION, HEAD, MUQ, ENCODERS = "scorer.json", "head.safetensors", "muq.safetensors", "encoders"
MIX = "mix.logits"  # in the file of the head, if layers are mixed
# Fields of a description that scorer.json has unchanged.
UNCHANGED = ("plan", "seed", "head", "data_digest", "code_revision", "training")
# Prefixes of the weights in format 1, and their current names.
RENAMED = {"norms.": "fusion.norms.", "projections.": "fusion.projections.", "mlp.": "regressor."}


def build_network(
    head: Mapping[str, Any],
    tuning: Tuning | None,
    muq: MuQEncoder | None,
    *,
    lora_dropout: float = 0.0,
    checkpointing: bool = False,
) -> ScoreNetwork:
    """Build a network with a new head; only the parameters that will be trained require gradients.

    With `tuning`, `muq` is modified: its upper layers become part of the network. Random weights use torch's global
    random state. Raises ModelError for an invalid head or layer.
    """
    if tuning is None:
        return ScoreNetwork(build_head(head))
    if muq is None:
        raise ModelError("network: needs the layers of MuQ, but no MuQ was given. Load the encoder first.")
    if tuning.mode == "lora":
        if tuning.rank is None or tuning.alpha is None:
            raise ModelError("tuning of the description: rank or alpha of the adapters is missing. Train again.")
        add_lora(muq.module, rank=tuning.rank, alpha=tuning.alpha, dropout=lora_dropout, from_layer=tuning.from_layer)
    elif tuning.mode == "full":
        tune_layers(muq.module, from_layer=tuning.from_layer)
    else:
        freeze(muq.module)
    suffix = MuQSuffix(muq, tuning.from_layer, checkpointing=checkpointing)
    mix = LayerMix(muq.layer - tuning.from_layer + 1) if tuning.mix else None
    return ScoreNetwork(build_head(head), suffix, mix)


def tuned_state(tuning: Tuning | None, muq: MuQEncoder | None) -> dict[str, Tensor]:
    """Copy the trained weights of MuQ to the CPU: its adapters or its layers; empty if nothing was trained."""
    if tuning is None or muq is None or tuning.mode == "frozen":
        return {}
    if tuning.mode == "lora":
        return adapter_state(muq.module)
    # By name, because a loaded scorer has no gradients. The norm exists only if the last layer is read.
    layers = (f"model.conformer.layers.{layer}." for layer in range(tuning.from_layer, muq.layer))
    prefixes = (*layers, "model.conformer.layer_norm.")
    parameters = muq.module.named_parameters()
    return {name: value.detach().cpu().clone() for name, value in parameters if name.startswith(prefixes)}


def load_tuned_state(tuning: Tuning | None, muq: MuQEncoder | None, state: Mapping[str, Tensor]) -> None:
    """Load the result of `tuned_state` into a MuQ that `build_network` prepared in the same way: all of it, or nothing.

    Raises ModelError with the tensors that are missing, unexpected, of another shape or not finite.
    """
    if tuning is not None and tuning.mode == "lora" and muq is not None:
        load_adapter_state(muq.module, state)
        return
    wanted = {name: tuple(value.shape) for name, value in tuned_state(tuning, muq).items()}
    problems = sorted(wanted.keys() ^ state.keys()) or [
        name for name in wanted if tuple(state[name].shape) != wanted[name] or not state[name].isfinite().all()
    ]
    if problems:
        raise ModelError(
            f"trained weights of MuQ: {len(problems)} tensors are missing, unexpected, of another shape or not finite "
            f"({shorten(problems)}). Use the encoder and the layers that they were trained with."
        )
    if muq is not None and state:
        muq.module.load_state_dict(dict(state), strict=False)  # the names were compared above


def save_scorer(
    network: ScoreNetwork,
    description: Description,
    encoder_folders: Mapping[Kind, Path],
    folder: Path,
    tuned: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a scorer as a folder, completely or not at all.

    Args:
        encoder_folders: Folders of the encoders to embed: at least of those without a hub id.
        tuned: Trained weights of MuQ (`tuned_state`).
    Raises: ModelError if an encoder without a hub id has no folder.
    """
    missing = [
        kind for kind, reference in description.encoders.items() if reference.id is None and kind not in encoder_folders
    ]
    if missing:
        raise ModelError(f"{' and '.join(missing)}: has no hub id, and no folder to embed was given. Give its folder.")
    for kind in description.encoders.keys() & encoder_folders.keys():
        _check_embedded(kind, description.encoders[kind], encoder_folders[kind])
    with atomic_folder(folder) as target:
        save_file(_on_cpu(_head_state(network)), target / HEAD)
        if tuned:
            save_file(_on_cpu(tuned), target / MUQ)
        for kind in description.encoders.keys() & encoder_folders.keys():
            for source in _files(kind, encoder_folders[kind]):
                link_or_copy(source.resolve(), target / ENCODERS / kind / source.name)  # the hub's cache contains links
        write_json(target / DESCRIPTION, _to_json(description))


def _files(kind: Kind, folder: Path) -> list[Path]:
    return muq_files(folder) if kind == "muq" else campplus_files(folder)


def _check_embedded(kind: Kind, reference: EncoderReference, folder: Path) -> None:
    """Refuse to embed an encoder other than the referenced one: the scorer could not be loaded."""
    hashed = _files(kind, folder)[0 if kind == "muq" else 1 :]  # of CAM++ only the weights
    if sha256_of(*hashed) != reference.sha256:
        raise ModelError(f"{folder}: is not the {kind} that the features were extracted with. Extract and train again.")


def load_scorer(folder: Path, *, device: str = "cpu", fast: bool = False, needs_voice: bool = False) -> Scorer:
    """Load a scorer folder; encoders that are not embedded come from the hub's cache or the hub.

    `fast` and `needs_voice`: see `Scorer`. Raises ModelError if something is missing or does not match, or if an
    encoder is not the one that the scorer was trained with.
    """
    description, encoders = read_description(folder), load_encoders_of(folder, device=device)
    network = _load_network(folder, description, encoders.get("muq"))
    return Scorer(network, description, encoders, device=device, fast=fast, needs_voice=needs_voice)


def load_encoders_of(folder: Path, *, device: str = "cpu") -> dict[Kind, MuQEncoder | CampplusEncoder]:
    """Load the encoders of a scorer without tuned weights, as its features were extracted."""
    return {
        kind: load_reference(kind, reference, folder / ENCODERS / kind, device)
        for kind, reference in read_description(folder).encoders.items()
    }


def read_description(folder: Path) -> Description:
    """Read the description of a scorer, without weights."""
    source = folder / DESCRIPTION
    if not source.is_file():
        raise ModelError(
            f"{folder}: is not a scorer folder, {DESCRIPTION} missing. Pass the folder that a run registered."
        )
    try:
        value = read_json(source)
        if value["format"] not in READ:
            raise ModelError(f"{source}: format {value['format']}; this version reads {READ}. Update audioscore.")
        return Description(
            **{name: value[name] for name in UNCHANGED},
            encoders={kind: EncoderReference(**reference) for kind, reference in value["encoders"].items()},
            calibration=Calibration.from_json(value["calibration"]),
            seen_clips=tuple(value["seen_clips"]),
            tuning=None if value.get("tuning") is None else Tuning(**value["tuning"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{source}: is damaged or incomplete ({type(error).__name__}: {error}). Copy the folder again."
        ) from error


def load_network(folder: Path, description: Description, device: str | torch.device = "cpu") -> ScoreNetwork:
    """Load only the network, for extracted features; MuQ is loaded only if its layers are tuned.

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
    """Load the referenced encoder, from the folder where it is embedded or else by its hub id.

    Raises ModelError if it is not available or its weights are not the referenced ones.
    """
    if embedded is not None and (embedded.is_dir() or reference.id is None):
        source = str(embedded.resolve())
    elif reference.id is not None:
        source = reference.id
    else:
        raise ModelError(f"{kind}: has no hub id, and is not embedded in the scorer folder. Train the scorer again.")
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
            f"{kind}: the weights {encoder.reference.sha256[:12]} are not the weights {reference.sha256[:12]} that the "
            f"scorer was trained with. Fetch {reference.id or 'the scorer folder'} again."
        )
    return encoder


def _load_network(folder: Path, description: Description, muq: Any) -> ScoreNetwork:
    """Build the network and load its weights; the upper layers of a tuned MuQ become part of it."""
    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced
        network = build_network(description.head, description.tuning, muq)
    state = {current_name(name): value for name, value in _tensors(folder / HEAD).items()}
    wanted = _head_state(network)
    problems = sorted(state.keys() ^ wanted.keys()) or [
        name for name in wanted if state[name].shape != wanted[name].shape or not state[name].isfinite().all()
    ]
    if problems:
        raise ModelError(
            f"{folder / HEAD}: does not match {DESCRIPTION}; {len(problems)} tensors are missing, unexpected, of "
            f"another shape or not finite ({shorten(problems)}). Copy the folder again."
        )
    network.head.load_state_dict({name: state[name] for name in network.head.state_dict()}, strict=True)
    if network.mix is not None:
        network.mix.load_state_dict({"logits": state[MIX]}, strict=True)
    load_tuned_state(description.tuning, muq, _tensors(folder / MUQ) if (folder / MUQ).is_file() else {})
    return network


def _tensors(source: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(source))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{source}: is missing or damaged. Copy the scorer folder again.") from error


def _head_state(network: ScoreNetwork) -> dict[str, Tensor]:
    """The weights of the head, and of the mix of layers."""
    state: dict[str, Tensor] = dict(network.head.state_dict())
    return state if network.mix is None else {**state, MIX: network.mix.logits}


def current_name(name: str) -> str:
    """Return the current name of a weight, from its name in format 1."""
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
