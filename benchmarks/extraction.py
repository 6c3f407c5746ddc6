"""Feature extraction, before and after: one clip at a time with every torch thread, against clips side by side.

`python benchmarks/extraction.py [FOLDER] [CLIPS]`: first CLIPS (40) recordings of FOLDER (data/audio), the small
encoders that ship with the repository, cold feature stores, both ways in one run.
"""

import sys
import tempfile
import time
from pathlib import Path

from audioscore.config import SMALL, load_config
from audioscore.data.audio import decode
from audioscore.data.clips import Clip
from audioscore.encoders.extract import encode_recording, extract_features, load_encoders
from audioscore.encoders.store import FeatureStore
from audioscore.files import sha256_of


def main(folder: Path, count: int) -> None:
    """Print seconds of both ways and their ratio."""
    encoders = load_encoders(load_config(SMALL).encoders)
    paths = sorted(path for path in folder.iterdir() if path.is_file())[:count]
    clips = [Clip(path.name, sha256=sha256_of(path)) for path in paths]
    encode_recording(decode(paths[0]), encoders)  # first use sets libraries up
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        store = FeatureStore(Path(scratch))
        for path, clip in zip(paths, clips, strict=True):
            for kind, feature in encode_recording(decode(path), encoders).items():
                store.put(encoders[kind].reference, str(clip.sha256), feature)
    before = time.monotonic() - started
    with tempfile.TemporaryDirectory() as scratch:
        after = extract_features(clips, folder, encoders, FeatureStore(Path(scratch))).seconds
    print(f"{len(clips)} clips: one at a time {before:.1f} s, side by side {after:.1f} s, {before / after:.2f} x")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/audio"), int(sys.argv[2]) if len(sys.argv) > 2 else 40)
