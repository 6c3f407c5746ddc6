"""Feature extraction: one clip at a time with all torch threads, against clips in parallel.

`python benchmarks/extraction.py [FOLDER] [CLIPS] [--published]`: the first CLIPS (40) recordings of FOLDER
(data/audio), the small encoders of this repository, empty feature stores, all variants in one run. `--published`:
a MuQ of the published size with random weights, in plain torch and on its optimized kernels.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from scoring import LAYER, make_muq

from audioscore.config import SMALL, load_config
from audioscore.data.audio import decode
from audioscore.data.clips import Clip
from audioscore.encoders.extract import extract_features, load_encoders
from audioscore.encoders.features import Encoders
from audioscore.encoders.inference import PLAIN, encode_recording
from audioscore.encoders.muq import load_muq
from audioscore.encoders.store import FeatureStore
from audioscore.files import sha256_of


def one_at_a_time(clips: list[Clip], folder: Path, encoders: Encoders) -> float:
    """Return seconds."""
    encode_recording(decode(folder / clips[0].audio_file), encoders)  # the first run sets libraries up
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        store = FeatureStore(Path(scratch))
        for clip in clips:
            for kind, feature in encode_recording(decode(folder / clip.audio_file), encoders).items():
                store.put(encoders[kind].reference, str(clip.sha256), feature)
    return time.monotonic() - started


def in_parallel(clips: list[Clip], folder: Path, encoders: Encoders, *, plain: bool = False) -> float:
    """Return seconds; `plain` switches the optimized kernels off."""
    os.environ[PLAIN] = "1" if plain else ""
    with tempfile.TemporaryDirectory() as scratch:
        return extract_features(clips, folder, encoders, FeatureStore(Path(scratch))).seconds


def main() -> None:
    """Print the seconds of each variant and their ratio."""
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
        after = in_parallel(clips, options.folder, encoders)
        print(f"{len(clips)} clips: one at a time {before:.1f} s, in parallel {after:.1f} s, {before / after:.2f} x")
        return
    with tempfile.TemporaryDirectory() as scratch:
        make_muq(Path(scratch))
        encoders = {"muq": load_muq(scratch, layer=LAYER)}
        in_parallel(clips[:2], options.folder, encoders)  # the first run sets libraries up
        before = in_parallel(clips, options.folder, encoders, plain=True)
        after = in_parallel(clips, options.folder, encoders)
    print(f"{len(clips)} clips: plain torch {before:.1f} s, optimized {after:.1f} s, {before / after:.2f} x")


if __name__ == "__main__":
    main()
