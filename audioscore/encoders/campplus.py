"""CAM++: a speaker-verification network whose embedding describes the voice's timbre.

Source: CAM++, arXiv 2303.00332; network of the package `modelscope`, as in 3D-Speaker.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audioscore.encoders.compute import Precision, as_fp32, precision_context, precision_on
from audioscore.encoders.features import WINDOW_SECONDS, EncoderReference, check_pin, copy_files, how_to_get, is_folder
from audioscore.errors import ModelError, first_line, shorten
from audioscore.files import read_json, sha256_of
from audioscore.units import CAMPPLUS_MELS, CAMPPLUS_RATE

if TYPE_CHECKING:
    from torch import Tensor

CONFIGURATION = "configuration.json"
MIN_SAMPLES = CAMPPLUS_RATE // 4
_how_to_get = partial(how_to_get, "campplus", "ModelScope", "a ModelScope snapshot")


def fbank(wave: "Tensor") -> "Tensor":
    """Compute 80-bin log-mel energies, mean-normalised over time.

    Shape: wave [T] at 16 kHz -> [F, 80], one frame per 10 ms.
    Source: 3D-Speaker, speakerlab/process/processor.py (FBank).
    """
    import torchaudio.compliance.kaldi as kaldi

    energies: Tensor = kaldi.fbank(wave[None], num_mel_bins=CAMPPLUS_MELS, sample_frequency=CAMPPLUS_RATE, dither=0.0)
    return energies - energies.mean(dim=0, keepdim=True)


class CampplusEncoder:
    """A frozen CAM++, loaded by `load_campplus`."""

    def __init__(self, module: Any, dim: int, reference: EncoderReference, folder: Path, device: str = "cpu") -> None:
        self.dim = dim
        self.reference = reference
        self.folder = folder
        self.device = device
        self.module = module.eval().requires_grad_(False).to(device)

    def embedding(self, wave: "Tensor") -> "Tensor":
        """Compute the voice embedding; for a long recording, the mean over equal windows, which bounds memory.

        Shape: wave [T] at 16 kHz, float32 -> [dim].
        """
        import torch

        if wave.ndim != 1 or len(wave) < MIN_SAMPLES:
            raise ModelError(
                f"CAM++: needs a wave [T] of at least {MIN_SAMPLES} samples of 16 kHz; got {list(wave.shape)}. Pass it."
            )
        count = -(-len(wave) // int(WINDOW_SECONDS * CAMPPLUS_RATE))
        precision = self.reference.precision
        parts: list[Tensor] = []
        with torch.inference_mode():
            for part in torch.tensor_split(wave, count):
                features = fbank(part)[None].to(self.device)
                with precision_context(precision, self.device):
                    parts.append(self.module(features)[0].cpu())
        return as_fp32(torch.stack(parts), precision).mean(dim=0)

    def save(self, target: Path) -> None:
        """Copy the snapshot's configuration and weights for a scorer that embeds it."""
        copy_files(encoder_files(self.folder), target)


def encoder_files(folder: Path) -> list[Path]:
    """Return the files of the encoder; a hub's snapshot has more."""
    return [folder / CONFIGURATION, _weights_file(folder)]


def load_campplus(
    source: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
) -> CampplusEncoder:
    """Load CAM++ from a ModelScope id or a snapshot folder (configuration.json beside its weights).

    Sizes are read from the weights, so all published dimensions (192, 512) and small ones load. `sha256` is the
    expected hash of the weights; `precision` is for GPUs, a CPU computes in fp32.

    Raises: ModelError where the folder is incomplete, a weight is missing, the hub cannot be reached, or the hash
        differs; UsageError for an invalid precision.
    """
    used = precision_on(device, precision)
    folder = _folder_of(source, revision)
    if not (folder / CONFIGURATION).is_file():
        raise ModelError(f"{source}: not a CAM++ snapshot; {CONFIGURATION} missing. {_how_to_get(source)}")
    weights = _weights_file(folder)
    found = sha256_of(weights)
    check_pin(source, found, sha256)
    module, dim = _read(weights, source)
    own = None if is_folder(source) else source
    return CampplusEncoder(
        module, dim, EncoderReference("campplus", own, revision, found, precision=used), folder, device
    )


def _read(weights: Path, source: str) -> tuple[Any, int]:
    """Read a network and its embedding size. Raises: ModelError where the file has other content."""
    import torch

    try:
        return build_campplus(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, LookupError, OSError, ValueError, EOFError, TypeError, AttributeError) as error:
        raise ModelError(f"{source}: {weights.name} has no CAM++ weights ({first_line(error)}). Pull again.") from error
    except Exception as error:  # torch raises pickle's own errors for files that are not checkpoints
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ModelError(f"{source}: {weights.name} is not a weights-only checkpoint. Pull it again.") from error


def build_campplus(state: dict[str, Any]) -> tuple[Any, int]:
    """Build the network for a state dict, load it strictly, and return it with its embedding size."""
    import torch

    from audioscore.encoders.compute import quiet_imports

    with quiet_imports():
        from modelscope.models.audio.sv.DTDNN import CAMPPlus

    init_channels = state["xvector.tdnn.linear.weight"].shape[0]
    first = state["xvector.block1.tdnnd1.cam_layer.linear_local.weight"]  # (growth, bottleneck, kernel)
    dim = state["xvector.dense.linear.weight"].shape[0]
    with torch.random.fork_rng(devices=[]):  # keeps the caller's random state; the random weights are replaced
        module = CAMPPlus(
            feat_dim=CAMPPLUS_MELS,
            embedding_size=dim,
            growth_rate=first.shape[0],
            bn_size=first.shape[1] // first.shape[0],
            init_channels=init_channels,
            memory_efficient=False,  # affects only memory in training
        )
    module.load_state_dict(state, strict=True)
    return module, dim


def missing_files(folder: Path) -> list[str]:
    """List files that a snapshot lacks, as after an interrupted download; loading detects invalid files."""
    if not (folder / CONFIGURATION).is_file():
        return [CONFIGURATION]
    try:
        name = _weights_name(folder)
    except ModelError:
        return []
    return [] if (folder / name).is_file() else [name]


def _weights_name(folder: Path) -> str:
    """The checkpoint that configuration.json names."""
    try:
        return str(read_json(folder / CONFIGURATION)["model"]["pretrained_model"])
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{folder.name}: {CONFIGURATION} lacks model.pretrained_model. Pull it again.") from error


def _weights_file(folder: Path) -> Path:
    name = _weights_name(folder)
    if "/" in name or not (folder / name).is_file():
        raise ModelError(f"{folder.name}: {CONFIGURATION} names {name!r}, which is missing. Pull it again.")
    return folder / name


def _folder_of(source: str, revision: str | None) -> Path:
    if is_folder(source):
        return Path(source).expanduser()
    from audioscore.encoders.compute import quiet_imports
    from audioscore.encoders.hubs import await_hub

    with quiet_imports():
        from modelscope.hub.snapshot_download import snapshot_download

    partial = ""
    try:
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except Exception:  # not in the cache; modelscope's error classes differ between its versions
        pass
    else:
        # The cache also returns a folder whose download was interrupted.
        if not (missing := missing_files(folder)):
            return folder
        partial = f"the cache has only a part of it ({shorten(missing)} missing), and it "
    try:
        await_hub("campplus")
        folder = Path(snapshot_download(source, revision=revision))
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise ModelError(
            f"{source}: {partial}cannot be downloaded from ModelScope ({reason}). {_how_to_get(source)}"
        ) from error
    if missing := missing_files(folder):
        raise ModelError(f"{source}: the download lacks {shorten(missing)}. Check its id and its revision.")
    return folder
