"""A scorer as a folder: head.safetensors, scorer.json, and every encoder that no hub holds.

Nothing in it is a path or a pickle, loading is strict, and what comes back scores the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audioscore.encoders.campplus import CampplusEncoder, load_campplus
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.reference import EncoderReference, Kind
from audioscore.errors import ModelError
from audioscore.files import atomic_folder, place, read_json, write_json
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.head import ScoreHead
from audioscore.scoring.scorer import Description, Scorer
from audioscore.units import CAMPPLUS_RATE, MUQ_RATE, SCORE_MAX, SCORE_MIN

FORMAT = 1
DESCRIPTION, HEAD, ENCODERS = "scorer.json", "head.safetensors", "encoders"


def save_scorer(head: ScoreHead, description: Description, encoder_folders: Mapping[Kind, Path], folder: Path) -> None:
    """Write a scorer as a folder, whole or not at all.

    `encoder_folders` holds the folder of every encoder without a hub id; those are embedded.
    """
    from safetensors.torch import save_file

    with atomic_folder(folder) as target:
        state = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
        save_file(state, target / HEAD)
        for kind, reference in description.encoders.items():
            if reference.id is None:
                for source in sorted(encoder_folders[kind].iterdir()):
                    place(source, target / ENCODERS / kind / source.name)
        write_json(target / DESCRIPTION, _to_json(description))


def load_scorer(folder: Path, *, device: str = "cpu") -> Scorer:
    """Read a scorer folder; encoders named by hub id come from the hub's cache or the hub.

    Raises ModelError where something is missing, does not fit, or is not the encoder the scorer was trained with.
    """
    description = read_description(folder)
    head = load_head(folder, description)
    encoders = {
        kind: _load_encoder(kind, reference, folder, device) for kind, reference in description.encoders.items()
    }
    return Scorer(head, description, encoders, device=device)


def read_description(folder: Path) -> Description:
    """Only what a scorer says of itself: no weights are read."""
    source = folder / DESCRIPTION
    if not source.is_file():
        raise ModelError(
            f"{folder}: not a scorer folder, {DESCRIPTION} missing. Give the folder that a run registered."
        )
    try:
        value = read_json(source)
        if value["format"] != FORMAT:
            raise ModelError(f"{source}: format {value['format']}; this version reads {FORMAT}. Update audioscore.")
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
        )
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise ModelError(f"{source}: damaged or incomplete ({type(fault).__name__}: {fault}).") from fault


def load_head(folder: Path, description: Description) -> ScoreHead:
    """The head alone, for clips whose features are already known."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        head = ScoreHead(**description.head)
        head.load_state_dict(load_file(folder / HEAD), strict=True)
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as fault:
        raise ModelError(
            f"{folder / HEAD}: missing, damaged, or not the weights that {DESCRIPTION} describes."
        ) from fault
    return head.eval()


def _load_encoder(kind: Kind, reference: EncoderReference, folder: Path, device: str) -> MuQEncoder | CampplusEncoder:
    source = reference.id or str(folder.resolve() / ENCODERS / kind)
    encoder: MuQEncoder | CampplusEncoder
    if kind == "muq":
        encoder = load_muq(source, layer=reference.layer or 1, revision=reference.revision, device=device)
    else:
        encoder = load_campplus(source, revision=reference.revision, device=device)
    if encoder.reference.sha256 != reference.sha256:
        raise ModelError(
            f"{kind}: weights {encoder.reference.sha256[:12]} are not the {reference.sha256[:12]} this scorer was "
            f"trained with. Fetch {reference.id or 'the scorer folder'} again."
        )
    return encoder


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
    }
