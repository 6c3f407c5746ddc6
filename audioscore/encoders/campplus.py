"""CAM++: a speaker-verification network whose embedding describes the voice's timbre.

Source: CAM++, arXiv 2303.00332; network of the package `modelscope`, as in 3D-Speaker.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.encoders.reference import EncoderReference, is_folder
from audioscore.errors import ModelError
from audioscore.files import read_json, sha256_of
from audioscore.units import CAMPPLUS_MELS, CAMPPLUS_RATE

if TYPE_CHECKING:
    from torch import Tensor

WINDOW_SECONDS = 30.0  # bounds memory; embeddings of equal windows are averaged
MIN_SAMPLES = CAMPPLUS_RATE // 4


def fbank(wave: "Tensor") -> "Tensor":
    """80-bin log-mel energies, mean-normalised over time.

    Shape: wave [T] at 16 kHz -> [F, 80], one frame per 10 ms.
    Source: 3D-Speaker, speakerlab/process/processor.py (FBank).
    """
    import torchaudio.compliance.kaldi as kaldi

    energies: Tensor = kaldi.fbank(wave[None], num_mel_bins=CAMPPLUS_MELS, sample_frequency=CAMPPLUS_RATE, dither=0.0)
    return energies - energies.mean(dim=0, keepdim=True)


class CampplusEncoder:
    """A frozen CAM++."""

    def __init__(self, module: Any, dim: int, reference: EncoderReference, folder: Path, device: str = "cpu") -> None:
        self.dim = dim
        self.reference = reference
        self.folder = folder
        self.device = device
        self.module = module.eval().requires_grad_(False).to(device)

    def embedding(self, wave: "Tensor") -> "Tensor":
        """Voice-timbre embedding.

        Shape: wave [T] at 16 kHz, float32 -> [dim].
        """
        import torch

        if wave.ndim != 1 or len(wave) < MIN_SAMPLES:
            raise ModelError(
                f"CAM++ needs a wave [T] of at least {MIN_SAMPLES} samples at 16 kHz; got {list(wave.shape)}."
            )
        count = -(-len(wave) // int(WINDOW_SECONDS * CAMPPLUS_RATE))
        with torch.inference_mode():
            parts = [
                self.module(fbank(part)[None].to(self.device))[0].cpu() for part in torch.tensor_split(wave, count)
            ]
        return torch.stack(parts).mean(dim=0)

    def save(self, target: Path) -> None:
        """Copy the snapshot's configuration and weights for a scorer that embeds it."""
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / "configuration.json", target / "configuration.json")
        weights = _weights_file(self.folder)
        shutil.copyfile(weights, target / weights.name)


def load_campplus(source: str, *, revision: str | None = None, device: str = "cpu") -> CampplusEncoder:
    """Load CAM++ from a ModelScope id or a snapshot folder (configuration.json beside its weights).

    Sizes are read from the weights, so every published dimension (192, 512) and every small one loads.
    Raises ModelError where the folder is incomplete, a weight is missing, or the hub cannot be reached.
    """
    folder = _folder_of(source, revision)
    if not (folder / "configuration.json").is_file():
        raise ModelError(f"{source}: not a CAM++ snapshot, configuration.json missing. {_how_to_get(source)}")
    weights = _weights_file(folder)
    import torch

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        module, dim = build_campplus(state)
    except (RuntimeError, LookupError, OSError, ValueError, EOFError, TypeError, AttributeError) as fault:
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0][:200]
        raise ModelError(f"{source}: {weights.name} does not hold CAM++ weights ({reason}).") from fault
    except Exception as fault:  # torch raises pickle's own errors for files that are not checkpoints
        if type(fault).__name__ != "UnpicklingError":
            raise
        raise ModelError(f"{source}: {weights.name} is not a weights-only checkpoint, and is not opened.") from fault
    own = None if is_folder(source) else source
    return CampplusEncoder(module, dim, EncoderReference("campplus", own, revision, sha256_of(weights)), folder, device)


def build_campplus(state: dict[str, Any]) -> tuple[Any, int]:
    """The network that a state dict belongs to, loaded strictly, and its embedding size."""
    import torch

    from audioscore.encoders.quiet import quiet_imports

    with quiet_imports():
        from modelscope.models.audio.sv.DTDNN import CAMPPlus

    init_channels = state["xvector.tdnn.linear.weight"].shape[0]
    first = state["xvector.block1.tdnnd1.cam_layer.linear_local.weight"]  # (growth, bottleneck, kernel)
    dim = state["xvector.dense.linear.weight"].shape[0]
    with torch.random.fork_rng(devices=[]):  # the first weights are random, and replaced: the caller's chance is not
        module = CAMPPlus(
            feat_dim=CAMPPLUS_MELS,
            embedding_size=dim,
            growth_rate=first.shape[0],
            bn_size=first.shape[1] // first.shape[0],
            init_channels=init_channels,
            memory_efficient=False,  # changes only what training keeps in memory
        )
    module.load_state_dict(state, strict=True)
    return module, dim


def _weights_file(folder: Path) -> Path:
    """The checkpoint that configuration.json names."""
    try:
        name = read_json(folder / "configuration.json")["model"]["pretrained_model"]
    except (ValueError, LookupError, TypeError) as fault:
        raise ModelError(f"{folder.name}: configuration.json names no weights under model.pretrained_model.") from fault
    if not isinstance(name, str) or "/" in name or not (folder / name).is_file():
        raise ModelError(f"{folder.name}: configuration.json names the weights {name!r}, which are not in the folder.")
    return folder / name


def _folder_of(source: str, revision: str | None) -> Path:
    if is_folder(source):
        return Path(source).expanduser()
    from audioscore.encoders.quiet import quiet_imports

    with quiet_imports():
        from modelscope.hub.snapshot_download import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except Exception:  # not in the cache; modelscope's error classes differ between its versions
        pass
    try:
        return Path(snapshot_download(source, revision=revision))
    except Exception as fault:
        raise ModelError(f"{source}: cannot be fetched from ModelScope. {_how_to_get(source)}") from fault


def _how_to_get(source: str) -> str:
    if is_folder(source):
        return "Give a ModelScope snapshot folder; for the shipped encoders run `audioscore data pull`."
    return "Go online once, or give encoders.campplus.source a snapshot folder."
