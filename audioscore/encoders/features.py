"""Features of a recording, and the reference of the encoder that computed them, which names weights by their hash."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from audioscore.encoders.compute import Precision
from audioscore.errors import ModelError
from audioscore.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from audioscore.encoders.campplus import CampplusEncoder
    from audioscore.encoders.muq import MuQEncoder

Kind = Literal["muq", "campplus", "ge2e", "samoye"]  # the last two are only targets of an adversary
Encoder = Union["MuQEncoder", "CampplusEncoder"]
Encoders = Mapping[Kind, Encoder]
# By encoder: "muq" [F, D], "campplus" [E]. If more layers of MuQ run on the frames, also WINDOWS: the number of windows
# that the recording was split into.
Features = Mapping[str, "Tensor"]
WINDOWS = "windows"

# The licence of the weights also applies to scorers that use them.
WEIGHT_LICENCES = {
    "OpenMuQ/MuQ-large-msd-iter": "CC BY-NC 4.0",
    "iic/speech_campplus_sv_zh-cn_16k-common": "Apache-2.0",
}
# The small encoders that were trained in this repository and are shipped with it, by the hash of their reference.
OWN_WEIGHTS = {
    "a39d2ceb29e358523e7d8ef0851e91b931b01d4111b1e671e90b2fd66be28634": "Apache-2.0",
    "fc31237a984aa929b0fea14b7e7752ed7b93005bfa9c61c6159cc17dd38dca52": "Apache-2.0",
}
WINDOW_SECONDS = 30.0  # as MuQ was trained; longer recordings are split into equal windows
EXTRACTION = 1  # increased when decoding, resampling or windowing changes the features of a recording


@dataclass(frozen=True)
class EncoderReference:
    """Names an encoder in scorers, extractions and the feature store.

    Args:
        id: hub id; None for weights on no hub, which are embedded in every scorer that uses them.
        sha256: hash of the weights; for MuQ, of config.json followed by the weights, since both affect its frames.
        precision: the format that was used, which may differ from the requested one.
        window: seconds; None for whole recordings.
    """

    kind: Kind
    id: str | None
    revision: str | None
    sha256: str
    layer: int | None = None
    precision: Precision = "fp32"
    window: float | None = WINDOW_SECONDS

    @property
    def key(self) -> str:
        """The folder name in the feature store: everything that this encoder's features depend on.

        >>> EncoderReference("muq", None, None, "ab" * 32, 3).key
        'muq-abababababababab-l3-e1'
        >>> EncoderReference("muq", None, None, "ab" * 32, 3, "bf16", None).key
        'muq-abababababababab-l3-e1-bf16-whole'
        """
        # Defaults add nothing, so features that were stored before these settings existed are still found.
        return (
            f"{self.kind}-{self.sha256[:16]}"
            + (f"-l{self.layer}" if self.layer is not None else "")
            + f"-e{EXTRACTION}"
            + (f"-{self.precision}" if self.precision != "fp32" else "")
            + ("-whole" if self.window is None else f"-w{self.window:g}" if self.window != WINDOW_SECONDS else "")
        )

    @property
    def licence(self) -> str:
        """Licence of the weights; "unknown" for an unlisted hub id or an unknown folder."""
        return OWN_WEIGHTS.get(self.sha256) or WEIGHT_LICENCES.get(self.id or "", "unknown")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_pin(source: str, found: str, pinned: str | None) -> None:
    """Raise ModelError where a pinned SHA-256 differs from the found one."""
    if pinned is not None and found != pinned.lower():
        raise ModelError(
            f"{source}: SHA-256 {found}, but {pinned} is pinned. Correct the pin, or get the pinned weights."
        )


def copy_files(files: Iterable[Path], target: Path) -> None:
    """Copy an encoder's files into a folder, each atomically."""
    target.mkdir(parents=True, exist_ok=True)
    for source in files:
        with atomic_path(target / source.name) as temporary:  # scorers may link to the existing file
            shutil.copyfile(source, temporary)


def is_folder(source: str) -> bool:
    """Whether an encoder's source is a folder rather than a hub id.

    >>> is_folder("OpenMuQ/MuQ-large-msd-iter"), is_folder("./encoders/muq")
    (False, True)
    """
    return source.startswith(("/", ".", "~")) or Path(source).is_dir()


def how_to_get(kind: Kind, hub: str, content: str, source: str) -> str:
    """Describe for a message how to get an encoder that does not load."""
    if is_folder(source):
        return f"Give a folder with {content}; for the shipped encoders run `audioscore data pull`."
    where = f"where {hub} can be reached"
    return f"Run `audioscore encoders pull` {where}, or set encoders.{kind}.source to a folder with {content}."
