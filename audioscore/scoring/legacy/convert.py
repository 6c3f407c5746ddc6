"""The predecessor's folders as native scorers: the same ranking as `generate_tag`, read, served and trained on as ours.

Without scored clips nobody knows what a raw output is worth: the scale is then `generate_tag`'s, stretched to 0-100.
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
from audioscore.data.split.assign import SPLITS
from audioscore.data.split.sort import read_split
from audioscore.data.versions.revision import folder_digest
from audioscore.encoders.extract import encode_recording
from audioscore.encoders.features import EncoderReference, Kind
from audioscore.encoders.muq import FILES, MuQEncoder, load_muq
from audioscore.errors import DataError, ModelError, UsageError
from audioscore.files import atomic_folder, sha256_of
from audioscore.scoring.calibration import MIN_CLIPS, Calibration, fit_calibration
from audioscore.scoring.checkpoint import build_network, load_scorer, load_tuned_state, save_scorer, tuned_state
from audioscore.scoring.legacy.folder import HEAD, KIND, Adapter, State, read_files
from audioscore.scoring.legacy.model import (
    DISCRIMINATOR_PREFIX,
    LAYERS,
    READ_LAYER,
    Predecessor,
    load_predecessor,
    load_predecessor_head,
)
from audioscore.scoring.scorer import Description, Scorer, Tuning
from audioscore.units import MUQ_RATE, SCORE_MAX, SCORE_MIN

UNKNOWN = "unknown"  # data that no one calibrated on, code that no one named
KNOTS, OUTERMOST = 141, 10.0  # beyond a raw output of 10 the tag is within 1e-8 of its end
SAME_TAG = 1e-4  # how far `2 + 2 tanh(raw)` of what was written may be from `generate_tag`
CHECKED_SECONDS = (1.3, 2.9)  # of the synthetic recordings on which that is looked at

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
    """Write the predecessor's folder `old` as the scorer folder `new`, whole or not at all; read it back to compare.

    `muq` is the hub id or folder of the MuQ it was trained with; where `old` holds another whole MuQ, that one is
    embedded. `rank` and `alpha` say by what factor the adapters of a whole MuQ count; others say it themselves.
    `use_grl` None reads off the folder whether its head carries the adversary's discriminator, which is left behind.
    `data` is a sorted data folder to calibrate on: its val clips, or all scored clips where those are fewer than 8.

    Raises UsageError where `new` is in use, ModelError where a folder is incomplete or does not fit, DataError and
    AudioError where the clips cannot be calibrated on.
    """
    if new.exists() and not (new.is_dir() and not any(new.iterdir())):
        raise UsageError(f"{new}: exists and is not empty. Name a new folder for the scorer.")
    if rank < 1 or not (math.isfinite(alpha) and alpha > 0):
        raise UsageError(f"lora_r and lora_alpha must be above 0; got {rank} and {alpha}.")
    head_state, _ = read_files(old)
    if use_grl is None:
        use_grl = any(name.startswith(DISCRIMINATOR_PREFIX) for name in head_state)
    encoder = load_muq(muq, layer=READ_LAYER, revision=revision, window_seconds=None)
    judge = load_predecessor(old, str(encoder.folder), use_grl=use_grl, rank=rank, alpha=alpha)
    tags = [judge.tag(wave) for wave in _waves()]  # before anything is written: weights of no use are refused here
    with atomic_folder(new) as target:
        encoder, embedded = _own_encoder(judge, encoder, target / "own")
        scorer = _scorer(judge, encoder, str(old / HEAD), code_revision)
        if data is not None:
            scorer.description = _calibrated(scorer, data, progress)
        tuned = tuned_state(scorer.description.tuning, encoder)
        save_scorer(scorer.network, scorer.description, embedded, target, tuned)
        _check_converted(load_scorer(target), tags, new)
    return scorer.description


def _scorer(judge: Predecessor, encoder: MuQEncoder, source: str, code_revision: str) -> Scorer:
    """The predecessor's network as ours, on its own scale; `encoder` gets the adapters."""
    tuning, adapters = native_adapters(judge.weights.adapters)
    head = {"kind": "predecessor", "dim": encoder.dim, "hidden": len(judge.weights.head["ffd.0.weight"])}
    with torch.random.fork_rng(devices=[]):  # the first weights are random, and replaced
        network = build_network(head, tuning, encoder)
    load_predecessor_head(network.head, judge.weights.head, source)
    load_tuned_state(tuning, encoder, adapters)
    adversary = any(name.startswith(DISCRIMINATOR_PREFIX) for name in judge.weights.head)
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


def native_adapters(adapters: Mapping[str, Adapter]) -> tuple[Tuning, dict[str, Tensor]]:
    """The adapters of the layers that are read, as `encoders.adapters` names them, and what they were made with.

    Ours all count by one whole alpha over their rank. Where the predecessor's count by something else, the difference
    goes into their B, so that what they add to a weight stays (to rounding).
    """
    kept = {path: one for path, one in adapters.items() if _layer(path) < READ_LAYER}
    first = next(iter(kept.values()))
    rank = len(first.a)
    alpha = max(1, round(first.scaling * rank))
    state = {}
    for path, one in kept.items():
        ratio = one.scaling * rank / alpha
        same = math.isclose(ratio, 1.0, rel_tol=1e-6)  # a factor is stored in single precision
        state[f"{path}.lora_A.weight"] = one.a.float()
        state[f"{path}.lora_B.weight"] = one.b.float() if same else (one.b.double() * ratio).float()
    return Tuning("lora", 0, rank, alpha), state


def differing(base: State, module: torch.nn.Module) -> list[str]:
    """Names of the weights of a MuQ up to the layer that is read, with adapters or without, that are others in `base`.

    `base` is of a predecessor's folder that holds its whole MuQ.
    """
    own = {
        name.replace(".base_layer.", "."): value for name, value in module.state_dict().items() if ".lora_" not in name
    }
    return [name for name, value in own.items() if not torch.equal(base[name].to(value.dtype), value.cpu())]


def tag_calibration() -> Calibration:
    """Raw outputs to 25 x `generate_tag`, within 0.02 points; its interval is the whole scale, since nothing is known.

    >>> tag_calibration().apply([-20.0, 0.0, 20.0]).round(6).tolist()
    [0.0, 50.0, 100.0]
    """
    # Closest together where the tanh bends.
    raw = np.sinh(np.linspace(-math.asinh(OUTERMOST), math.asinh(OUTERMOST), KNOTS))
    scores = (SCORE_MAX - SCORE_MIN) / 4 * (2 + 2 * np.tanh(raw))
    return Calibration(tuple(raw.tolist()), tuple(scores.tolist()), SCORE_MAX - SCORE_MIN)


def is_calibrated(description: Description) -> bool:
    """Whether a converted scorer's scores rest on clips that people scored."""
    return bool(description.seen_clips)


def _layer(path: str) -> int:
    return int(path.removeprefix(f"{LAYERS}.").split(".")[0])


def _own_encoder(judge: Predecessor, named: MuQEncoder, scratch: Path) -> tuple[MuQEncoder, dict[Kind, Path]]:
    """The MuQ that the scorer hears with, and the folders to embed, written to `scratch`.

    It is the MuQ that was named, or the one that the predecessor's folder holds where that is another.
    """
    base = judge.weights.base
    if base is not None and differing(base, named.module):
        _write_muq(base, named, judge.depth, scratch)
        return load_muq(str(scratch), layer=READ_LAYER, window_seconds=None), {"muq": scratch}
    if named.reference.id is not None:
        return named, {}
    named.save(scratch)
    return named, {"muq": scratch}


def _pinned(encoder: MuQEncoder) -> EncoderReference:
    """Its reference; what came by a name that may move is named by its commit, as the hub's cache names its folder."""
    reference = encoder.reference
    if reference.id is None or encoder.folder.parent.name != "snapshots":
        return reference
    return replace(reference, revision=encoder.folder.name)


def _write_muq(base: State, like: MuQEncoder, depth: int, folder: Path) -> None:
    """The whole MuQ of a predecessor's folder in the published layout, in the number formats of the named one."""
    from safetensors.torch import save_file

    whole = load_muq(str(like.folder), layer=depth).module.state_dict()
    config, weights = FILES
    folder.mkdir(parents=True)
    (folder / config).write_bytes((like.folder / config).read_bytes())
    # Each its own memory: safetensors refuses tensors that share theirs.
    save_file(
        {name: base[name].to(value.dtype, copy=True).contiguous() for name, value in whole.items()}, folder / weights
    )


def _calibrated(scorer: Scorer, data: Path, progress: Progress | None) -> Description:
    """The description with a map fitted on scored clips, which then count as seen."""
    clips, hashes, raw = _clips_of(data), [], []
    for done, clip in enumerate(clips, start=1):
        path = data / clip.audio_file
        raw.append(scorer.score(path).raw)
        hashes.append(sha256_of(path))
        if clip.sha256 not in (None, hashes[-1]):
            raise DataError(f"{clip.audio_file}: changed since it was validated. Sort the data again.")
        if progress is not None:
            progress(done, len(clips))
    clusters = [clip.singer_id or sha256 for clip, sha256 in zip(clips, hashes, strict=True)]
    calibration = fit_calibration(raw, [clip.score or 0.0 for clip in clips], clusters)
    return replace(
        scorer.description,
        calibration=calibration,
        seen_clips=tuple(sorted(set(hashes))),
        data_digest=folder_digest(data),
    )


def _clips_of(data: Path) -> list[Clip]:
    """The scored clips of the val split; of every split where it has too few to calibrate on."""
    val = read_split(data, "val")
    return val if len(val) >= MIN_CLIPS else [clip for split in SPLITS for clip in read_split(data, split)]


def _waves() -> list[Wave]:
    """Wavering tones over noise, 24 kHz."""
    rng = np.random.default_rng(0)
    times = [np.arange(round(seconds * MUQ_RATE)) / MUQ_RATE for seconds in CHECKED_SECONDS]
    return [
        (0.2 * np.sin(2 * np.pi * 220 * (place + 1) * time + 3 * np.sin(10 * np.pi * time))
         + 0.02 * rng.normal(size=len(time))).astype(np.float32)
        for place, time in enumerate(times)
    ]  # fmt: skip


def _check_converted(scorer: Scorer, tags: list[float], new: Path) -> None:
    """Raise ModelError where a scorer that was read back would rank otherwise than the tags of `_waves` do."""
    recordings = [Recording(wave, MUQ_RATE) for wave in _waves()]
    heard = [encode_recording(one, scorer.encoders, scorer.description.prefix_layer) for one in recordings]
    worst = float(np.abs(2 + 2 * np.tanh(scorer.raw(heard)) - (5 - np.array(tags))).max())
    if not worst <= SAME_TAG:
        raise ModelError(
            f"{new}: what was written differs from generate_tag by up to {worst:.3g}, and is not kept. "
            f"Report it with the folder's lora_r and lora_alpha."
        )
