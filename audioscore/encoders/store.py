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

NAME, WINDOWS = "feature", "windows"


class FeatureStore:
    """A folder of features: ROOT/<encoder key>/<first two digits of the hash>/<sha256>.safetensors."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, encoder: EncoderReference, sha256: str) -> Path:
        return self.root / encoder.key / sha256[:2] / f"{sha256}.safetensors"

    def has(self, encoder: EncoderReference, sha256: str) -> bool:
        return self.path(encoder, sha256).is_file()

    def put(self, encoder: EncoderReference, sha256: str, feature: "Tensor", windows: int = 1) -> None:
        """Write one feature, float32, atomically: a killed run leaves no half file behind.

        `windows`: how many the recording was heard in, for `muq_layers.split_windows` and for whoever asks later.
        """
        from safetensors.torch import save_file

        target = self.path(encoder, sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        about = {"encoder": json.dumps(encoder.to_json(), sort_keys=True), WINDOWS: str(windows)}
        with atomic_path(target) as temporary:
            save_file({NAME: feature.float().contiguous()}, temporary, metadata=about)

    def get(self, encoder: EncoderReference, sha256: str) -> "Tensor":
        """One feature: MuQ frames [F, D] or a CAM++ embedding [E], float32.

        Raises ModelError where it was never extracted, or its file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        source = self._source(encoder, sha256)
        try:
            feature: Tensor = load_file(source)[NAME]
        except (SafetensorError, KeyError, OSError) as fault:
            raise _damaged(source, fault) from fault
        return feature

    def windows(self, encoder: EncoderReference, sha256: str) -> int:
        """How many windows a recording was heard in, from the file's header alone; 1 where an older file does not say.

        Raises ModelError as `get` does.
        """
        from safetensors import SafetensorError, safe_open

        source = self._source(encoder, sha256)
        try:
            with safe_open(source, framework="pt") as handle:
                count = int((handle.metadata() or {}).get(WINDOWS, "1"))
            if count < 1:
                raise ValueError(f"{count} windows")
        except (SafetensorError, ValueError, OSError) as fault:
            raise _damaged(source, fault) from fault
        return count

    def _source(self, encoder: EncoderReference, sha256: str) -> Path:
        source = self.path(encoder, sha256)
        if not source.is_file():
            raise ModelError(
                f"feature {encoder.key} of recording {sha256[:12]} is not in {self.root}. Extract features first."
            )
        return source


def _damaged(source: Path, fault: Exception) -> ModelError:
    return ModelError(f"{source} is damaged ({fault}). Delete it; the next run extracts it again.")
