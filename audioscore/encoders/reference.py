"""Which encoder a feature or a scorer came from: never a path, always a hash."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["muq", "campplus"]

# The licence of the weights decides what may be done with a scorer made from them.
WEIGHT_LICENCES = {
    "OpenMuQ/MuQ-large-msd-iter": "CC BY-NC 4.0",
    "iic/speech_campplus_sv_zh-cn_16k-common": "Apache-2.0",
}
OWN_WEIGHTS_LICENCE = "Apache-2.0"  # the small encoders that this repository trained and ships


@dataclass(frozen=True)
class EncoderReference:
    """`id` is None for weights that no hub holds; they are then embedded in every scorer made from them."""

    kind: Kind
    id: str | None
    revision: str | None
    sha256: str
    layer: int | None = None

    @property
    def key(self) -> str:
        """Names what this encoder's features depend on, for the feature store.

        >>> EncoderReference("muq", None, None, "ab" * 32, 3).key
        'muq-abababababababab-l3'
        """
        return f"{self.kind}-{self.sha256[:16]}" + (f"-l{self.layer}" if self.layer is not None else "")

    @property
    def licence(self) -> str:
        """Licence of the weights; weights from an unlisted hub id are 'unknown', never guessed."""
        return OWN_WEIGHTS_LICENCE if self.id is None else WEIGHT_LICENCES.get(self.id, "unknown")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_folder(source: str) -> bool:
    """Whether an encoder's source is a folder rather than a hub id.

    >>> is_folder("OpenMuQ/MuQ-large-msd-iter"), is_folder("./encoders/muq")
    (False, True)
    """
    return source.startswith(("/", ".", "~")) or Path(source).is_dir()
