"""Features on disk, one file a recording and encoder, so that nothing frozen is computed twice.

The key holds everything a feature depends on: the recording's content, the encoder's weights and layer. A changed
file, encoder or layer can therefore never be answered with old features.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from audioscore.encoders.reference import EncoderReference
from audioscore.errors import ModelError
from audioscore.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

NAME = "feature"


class FeatureStore:
    """A folder of features: ROOT/<encoder key>/<first two digits of the hash>/<sha256>.safetensors."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, encoder: EncoderReference, sha256: str) -> Path:
        return self.root / encoder.key / sha256[:2] / f"{sha256}.safetensors"

    def has(self, encoder: EncoderReference, sha256: str) -> bool:
        return self.path(encoder, sha256).is_file()

    def put(self, encoder: EncoderReference, sha256: str, feature: "Tensor") -> None:
        """Write one feature, float32, atomically: a killed run leaves no half file behind."""
        from safetensors.torch import save_file

        target = self.path(encoder, sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        about = {"encoder": json.dumps(encoder.to_json(), sort_keys=True)}
        with atomic_path(target) as temporary:
            save_file({NAME: feature.float().contiguous()}, temporary, metadata=about)

    def get(self, encoder: EncoderReference, sha256: str) -> "Tensor":
        """One feature: MuQ frames [F, D] or a CAM++ embedding [E], float32.

        Raises ModelError where it was never extracted, or its file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        source = self.path(encoder, sha256)
        if not source.is_file():
            raise ModelError(
                f"feature {encoder.key} of recording {sha256[:12]} is not in {self.root}. Extract features first."
            )
        try:
            feature: Tensor = load_file(source)[NAME]
        except (SafetensorError, KeyError, OSError) as fault:
            raise ModelError(f"{source} is damaged ({fault}). Delete it; the next run extracts it again.") from fault
        return feature
