"""Feature extraction, before and after: one clip at a time with every torch thread, against clips side by side.

`python benchmarks/extraction.py [FOLDER] [CLIPS] [--published]`: first CLIPS (40) recordings of FOLDER (data/audio),
the small encoders that ship with the repository, cold feature stores, all ways in one run. `--published`: a MuQ of the
published size with random weights instead, heard as it is and in its quick form.
"""

import argparse
import tempfile
import time
from pathlib import Path

from scoring import LAYER, make_muq

from audioscore.config import SMALL, load_config
from audioscore.data.audio import decode
from audioscore.data.clips import Clip
from audioscore.encoders import extract
from audioscore.encoders.extract import encode_recording, extract_features, load_encoders
from audioscore.encoders.features import Encoders
from audioscore.encoders.muq import load_muq
from audioscore.encoders.store import FeatureStore
from audioscore.files import sha256_of


def one_at_a_time(clips: list[Clip], folder: Path, encoders: Encoders) -> float:
    """Seconds."""
    encode_recording(decode(folder / clips[0].audio_file), encoders)  # first use sets libraries up
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        store = FeatureStore(Path(scratch))
        for clip in clips:
            for kind, feature in encode_recording(decode(folder / clip.audio_file), encoders).items():
                store.put(encoders[kind].reference, str(clip.sha256), feature)
    return time.monotonic() - started


def side_by_side(clips: list[Clip], folder: Path, encoders: Encoders, *, quick: bool = True) -> float:
    """Seconds; `quick` where the encoder has a quick form."""
    own = extract.quick_form
    extract.quick_form = own if quick else lambda encoder: None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return extract_features(clips, folder, encoders, FeatureStore(Path(scratch))).seconds
    finally:
        extract.quick_form = own


def main() -> None:
    """Print seconds of each way and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/audio"))
    parser.add_argument("count", nargs="?", type=int, default=40)
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.iterdir() if path.is_file())[: options.count]
    clips = [Clip(path.name, sha256=sha256_of(path)) for path in paths]
    if not options.published:
        encoders = load_encoders(load_config(SMALL).encoders)
        before = one_at_a_time(clips, options.folder, encoders)
        after = side_by_side(clips, options.folder, encoders)
        print(f"{len(clips)} clips: one at a time {before:.1f} s, side by side {after:.1f} s, {before / after:.2f} x")
        return
    with tempfile.TemporaryDirectory() as scratch:
        make_muq(Path(scratch))
        encoders = {"muq": load_muq(scratch, layer=LAYER)}
        side_by_side(clips[:2], options.folder, encoders)  # first use sets libraries up
        before = side_by_side(clips, options.folder, encoders, quick=False)
        after = side_by_side(clips, options.folder, encoders)
    print(f"{len(clips)} clips: as it is {before:.1f} s, in its quick form {after:.1f} s, {before / after:.2f} x")


if __name__ == "__main__":
    main()
