"""Convert a legacy model folder to a scorer folder that ranks as `generate_tag` does.

A converted scorer can be served, registered and fine-tuned as any other. Without scored clips for calibration, its
scale is that of `generate_tag`, stretched to 0-100.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audioscore.data.audio import Recording, Wave
from audioscore.data.clips import Clip
from audioscore.data.spelling import path_on_disk
from audioscore.data.split.groups import SPLITS
from audioscore.data.split.sort import read_split
from audioscore.data.versions.revision import folder_digest
from audioscore.encoders.features import EncoderReference, Kind
from audioscore.encoders.inference import encode_recording
from audioscore.encoders.muq import FILES, MuQEncoder, load_muq
from audioscore.errors import DataError, ModelError, UsageError
from audioscore.files import atomic_folder, sha256_of
from audioscore.scoring.calibration import MIN_CLIPS, Calibration, fit_calibration
from audioscore.scoring.checkpoint import build_network, load_scorer, load_tuned_state, save_scorer, tuned_state
from audioscore.scoring.head import LEGACY_KIND
from audioscore.scoring.legacy.folder import HEAD, KIND, LegacyAdapter, TensorDict, read_files
from audioscore.scoring.legacy.model import (
    DISCRIMINATOR_PREFIX,
    LAYERS,
    READ_LAYER,
    LegacyModel,
    load_legacy_head,
    load_legacy_model,
)
from audioscore.scoring.scorer import Description, Scorer, Tuning
from audioscore.units import MUQ_RATE, SCORE_MAX, SCORE_MIN

UNKNOWN = "unknown"  # digest of the data without calibration, or revision of the code if it was not given
KNOTS, OUTERMOST = 141, 10.0  # beyond a raw output of 10 the tag is within 1e-8 of its limit
TAG_TOLERANCE = 1e-4  # between `2 + 2 tanh(raw)` of the written scorer and `generate_tag`
CHECKED_SECONDS = (1.3, 2.9)  # lengths of the synthetic recordings for this check

Progress = Callable[[int, int], None]


def convert(
    old: Path,
    new: Path,
    muq: str,
    *,
    use_grl: bool | None = None,
    rank: int = 128,
    alpha: float = 48,
    revision: str | None = None,
    data: Path | None = None,
    code_revision: str = UNKNOWN,
    progress: Progress | None = None,
) -> Description:
    """Convert the legacy folder `old` to the scorer folder `new`, then load it and compare its outputs.

    Args:
        muq: Hub id or folder of the MuQ that the model was trained with. If `old` contains another MuQ, that one is
            embedded.
        use_grl: Whether the head contains the adversary's discriminator, which is not converted; None: detect it.
        rank, alpha: Scale the adapters of a folder with a full MuQ by alpha / rank; other folders store the factor.
        data: Sorted data folder for calibration: its val clips, or all scored clips if val has fewer than 8.
    Raises: UsageError if `new` is not empty, ModelError if a folder is incomplete or does not match, DataError or
        AudioError if calibration on `data` is not possible.
    """
    if new.exists() and not (new.is_dir() and not any(new.iterdir())):
        raise UsageError(f"{new}: exists and is not empty. Choose a new folder for the scorer.")
    if rank < 1 or not (math.isfinite(alpha) and alpha > 0):
        raise UsageError(f"lora_r and lora_alpha: must be greater than 0; got {rank} and {alpha}.")
    head_state, _ = read_files(old)
    if use_grl is None:
        use_grl = any(name.startswith(DISCRIMINATOR_PREFIX) for name in head_state)
    encoder = load_muq(muq, layer=READ_LAYER, revision=revision, window_seconds=None)
    legacy = load_legacy_model(old, str(encoder.folder), use_grl=use_grl, rank=rank, alpha=alpha)
    tags = [legacy.tag(wave) for wave in _waves()]  # first, because it raises for weights that are not finite
    with atomic_folder(new) as target:
        encoder, embedded = _select_encoder(legacy, encoder, target / "own")
        scorer = _scorer(legacy, encoder, str(old / HEAD), code_revision)
        if data is not None:
            scorer.description = _calibrated(scorer, data, progress)
        tuned = tuned_state(scorer.description.tuning, encoder)
        save_scorer(scorer.network, scorer.description, embedded, target, tuned)
        _check_converted(load_scorer(target), tags, new)
    return scorer.description


def _scorer(legacy: LegacyModel, encoder: MuQEncoder, source: str, code_revision: str) -> Scorer:
    """The legacy model as a scorer on the scale of its tags; `encoder` gets the adapters."""
    tuning, adapters = native_adapters(legacy.weights.adapters)
    head = {"kind": LEGACY_KIND, "dim": encoder.dim, "hidden": len(legacy.weights.head["ffd.0.weight"])}
    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced
        network = build_network(head, tuning, encoder)
    load_legacy_head(network.head, legacy.weights.head, source)
    load_tuned_state(tuning, encoder, adapters)
    adversary = any(name.startswith(DISCRIMINATOR_PREFIX) for name in legacy.weights.head)
    description = Description(
        plan="baseline",
        seed=0,
        encoders={"muq": _pinned(encoder)},
        head=head,
        calibration=tag_calibration(),
        seen_clips=(),
        data_digest=UNKNOWN,
        code_revision=code_revision,
        training={"converted_from": KIND, "adversary": adversary},
        tuning=tuning,
    )
    return Scorer(network, description, {"muq": encoder})


def native_adapters(adapters: Mapping[str, LegacyAdapter]) -> tuple[Tuning, dict[str, Tensor]]:
    """Return the adapters of the layers that are read, named as in `encoders.adapters`, and their tuning.

    A scorer's adapters all have the scale alpha / rank with an integer alpha. If a legacy adapter has another scale,
    the difference is multiplied into B, so that the product stays the same (up to rounding).
    """
    kept = {path: one for path, one in adapters.items() if _layer(path) < READ_LAYER}
    first = next(iter(kept.values()))
    rank = len(first.a)
    alpha = max(1, round(first.scaling * rank))
    state = {}
    for path, one in kept.items():
        ratio = one.scaling * rank / alpha
        same = math.isclose(ratio, 1.0, rel_tol=1e-6)  # the scale is stored in single precision
        state[f"{path}.lora_A.weight"] = one.a.float()
        state[f"{path}.lora_B.weight"] = one.b.float() if same else (one.b.double() * ratio).float()
    return Tuning("lora", 0, rank, alpha), state


def differing_weights(base: TensorDict, module: torch.nn.Module) -> list[str]:
    """Return the names of the weights of `module`, up to the layer that is read, that differ from `base`.

    Args:
        base: MuQ's weights of a legacy folder that contains the full MuQ.
        module: MuQ, with or without adapters.
    """
    own = {
        name.replace(".base_layer.", "."): value for name, value in module.state_dict().items() if ".lora_" not in name
    }
    return [name for name, value in own.items() if not torch.equal(base[name].to(value.dtype), value.cpu())]


def tag_calibration() -> Calibration:
    """Return a calibration from raw outputs to 25 x `generate_tag`, within 0.02; the interval is the whole scale.

    >>> tag_calibration().apply([-20.0, 0.0, 20.0]).round(6).tolist()
    [0.0, 50.0, 100.0]
    """
    # The knots are closest where the tanh has the largest curvature.
    raw = np.sinh(np.linspace(-math.asinh(OUTERMOST), math.asinh(OUTERMOST), KNOTS))
    scores = (SCORE_MAX - SCORE_MIN) / 4 * (2 + 2 * np.tanh(raw))
    return Calibration(tuple(raw.tolist()), tuple(scores.tolist()), SCORE_MAX - SCORE_MIN)


def is_calibrated(description: Description) -> bool:
    """Whether a converted scorer was calibrated on clips with scores of raters."""
    return bool(description.seen_clips)


def _layer(path: str) -> int:
    return int(path.removeprefix(f"{LAYERS}.").split(".")[0])


def _select_encoder(legacy: LegacyModel, given: MuQEncoder, scratch: Path) -> tuple[MuQEncoder, dict[Kind, Path]]:
    """The MuQ of the scorer, and the folders to embed, written to `scratch`.

    It is the given MuQ, unless the legacy folder contains another one.
    """
    base = legacy.weights.base
    if base is not None and differing_weights(base, given.module):
        _write_muq(base, given, legacy.depth, scratch)
        return load_muq(str(scratch), layer=READ_LAYER, window_seconds=None), {"muq": scratch}
    if given.reference.id is not None:
        return given, {}
    given.save(scratch)
    return given, {"muq": scratch}


def _pinned(encoder: MuQEncoder) -> EncoderReference:
    """The encoder's reference, pinned to the commit of the hub: the name of its folder in the hub's cache."""
    pinned = encoder.reference.id is not None and encoder.folder.parent.name == "snapshots"
    return replace(encoder.reference, revision=encoder.folder.name) if pinned else encoder.reference


def _write_muq(base: TensorDict, like: MuQEncoder, depth: int, folder: Path) -> None:
    """Write the full MuQ of a legacy folder in the published layout, with the dtypes of the given MuQ."""
    from safetensors.torch import save_file

    whole = load_muq(str(like.folder), layer=depth).module.state_dict()
    config, weights = FILES
    folder.mkdir(parents=True)
    (folder / config).write_bytes((like.folder / config).read_bytes())
    # Copies, because safetensors refuses tensors that share memory.
    save_file(
        {name: base[name].to(value.dtype, copy=True).contiguous() for name, value in whole.items()}, folder / weights
    )


def _calibrated(scorer: Scorer, data: Path, progress: Progress | None) -> Description:
    """The description with a calibration on scored clips, which are then listed as seen."""
    clips, hashes, raw = _clips_of(data), [], []
    for done, clip in enumerate(clips, start=1):
        path = path_on_disk(data, clip.audio_file)
        raw.append(scorer.score(path).raw)
        hashes.append(sha256_of(path))
        if clip.sha256 not in (None, hashes[-1]):
            raise DataError(f"{clip.audio_file}: has changed since validation. Sort the data again.")
        if progress is not None:
            progress(done, len(clips))
    clusters = [clip.singer_id or sha256 for clip, sha256 in zip(clips, hashes, strict=True)]
    calibration = fit_calibration(np.array(raw, float), [clip.score or 0.0 for clip in clips], clusters)
    return replace(
        scorer.description,
        calibration=calibration,
        seen_clips=tuple(sorted(set(hashes))),
        data_digest=folder_digest(data),
    )


def _clips_of(data: Path) -> list[Clip]:
    """The scored clips of the val split, or of all splits if val has too few for calibration."""
    val = read_split(data, "val")
    return val if len(val) >= MIN_CLIPS else [clip for split in SPLITS for clip in read_split(data, split)]


def _waves() -> list[Wave]:
    """Tones with vibrato and noise, 24 kHz."""
    rng = np.random.default_rng(0)
    times = [np.arange(round(seconds * MUQ_RATE)) / MUQ_RATE for seconds in CHECKED_SECONDS]
    return [
        (0.2 * np.sin(2 * np.pi * 220 * (index + 1) * time + 3 * np.sin(10 * np.pi * time))
         + 0.02 * rng.normal(size=len(time))).astype(np.float32)
        for index, time in enumerate(times)
    ]  # fmt: skip


def _check_converted(scorer: Scorer, tags: list[float], new: Path) -> None:
    """Raise ModelError if a loaded scorer does not reproduce the tags of `_waves`."""
    recordings = [Recording(wave, MUQ_RATE) for wave in _waves()]
    features = [encode_recording(one, scorer.encoders, scorer.description.prefix_layer) for one in recordings]
    worst = float(np.abs(2 + 2 * np.tanh(scorer.raw(features)) - (5 - np.array(tags))).max())
    if not worst <= TAG_TOLERANCE:
        raise ModelError(
            f"{new}: the converted scorer differs from generate_tag by up to {worst:.3g}, and was deleted. "
            f"Report it with the folder's lora_r and lora_alpha."
        )
