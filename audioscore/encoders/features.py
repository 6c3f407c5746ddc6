"""Features of a recording, and the reference of the encoder that they came from: never a path, always a hash."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from audioscore.encoders.compute import Precision
from audioscore.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from audioscore.encoders.campplus import CampplusEncoder
    from audioscore.encoders.muq import MuQEncoder

Kind = Literal["muq", "campplus", "ge2e", "samoye"]  # the last two are only ever targets of an adversary
Encoder = Union["MuQEncoder", "CampplusEncoder"]
Encoders = Mapping[Kind, Encoder]
# By encoder: "muq" [F, D], "campplus" [E]; where more layers of MuQ run on its frames, also WINDOWS, a number: how many
# windows the recording was cut into.
Features = Mapping[str, "Tensor"]
WINDOWS = "windows"

# The licence of the weights decides what may be done with a scorer made from them.
WEIGHT_LICENCES = {
    "OpenMuQ/MuQ-large-msd-iter": "CC BY-NC 4.0",
    "iic/speech_campplus_sv_zh-cn_16k-common": "Apache-2.0",
}
# The small encoders that this repository made and ships, by the hash of their reference.
OWN_WEIGHTS = {
    "a39d2ceb29e358523e7d8ef0851e91b931b01d4111b1e671e90b2fd66be28634": "Apache-2.0",
    "fc31237a984aa929b0fea14b7e7752ed7b93005bfa9c61c6159cc17dd38dca52": "Apache-2.0",
}
WINDOW_SECONDS = 30.0  # heard at once, as MuQ was trained; longer recordings are cut into equal windows
EXTRACTION = 1  # raised when decoding, resampling or windowing changes what an encoder gives for the same recording


@dataclass(frozen=True)
class EncoderReference:
    """`id` is None for weights that no hub holds; they are then embedded in every scorer made from them.

    `sha256` is of the weights, for MuQ of config.json and the weights after one another: both decide its frames.
    `precision` is what was computed in, not what was asked for; `window` is in seconds, None where recordings are heard
    whole. What was written before there were these two has their defaults.
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
        """Names what this encoder's features depend on, for the feature store.

        >>> EncoderReference("muq", None, None, "ab" * 32, 3).key
        'muq-abababababababab-l3-e1'
        >>> EncoderReference("muq", None, None, "ab" * 32, 3, "bf16", None).key
        'muq-abababababababab-l3-e1-bf16-whole'
        """
        # What is usual adds nothing, so that what was kept before there was a choice is still found.
        return (
            f"{self.kind}-{self.sha256[:16]}"
            + (f"-l{self.layer}" if self.layer is not None else "")
            + f"-e{EXTRACTION}"
            + (f"-{self.precision}" if self.precision != "fp32" else "")
            + ("-whole" if self.window is None else f"-w{self.window:g}" if self.window != WINDOW_SECONDS else "")
        )

    @property
    def licence(self) -> str:
        """Licence of the weights; weights from an unlisted hub id or an unknown folder are 'unknown', never guessed."""
        return OWN_WEIGHTS.get(self.sha256) or WEIGHT_LICENCES.get(self.id or "", "unknown")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_pin(source: str, found: str, pinned: str | None) -> None:
    """Raise ModelError where a SHA-256 is pinned and another was found."""
    if pinned is not None and found != pinned.lower():
        raise ModelError(
            f"{source}: SHA-256 {found}, but {pinned} is pinned. Correct the pin, or get the pinned weights."
        )


def is_folder(source: str) -> bool:
    """Whether an encoder's source is a folder rather than a hub id.

    >>> is_folder("OpenMuQ/MuQ-large-msd-iter"), is_folder("./encoders/muq")
    (False, True)
    """
    return source.startswith(("/", ".", "~")) or Path(source).is_dir()
