"""How many singers leak between splits where nobody said who sings, by the threshold that takes two voices for one.

`python benchmarks/pseudo_singers.py [--config FILE] [--data DIR]`: a folder whose singers are known, with every
singer_id removed, its voices grouped and split by the code that a run uses. Printed is, for each threshold, the share
of test clips whose true singer is in train as well (mean of 5 split seeds), the largest group's share of all clips, and
how well a pair's cosine tells one singer from two. `split.same_voice_cosine` is chosen by this, for each encoder anew.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from audioscore.config import DEMO, load_config
from audioscore.data.clips import Clip
from audioscore.data.labels import find_labels, read_labels
from audioscore.data.split.assign import assign_splits
from audioscore.data.split.pseudo_singers import group_voices
from audioscore.encoders.extract import voice_embedder
from audioscore.errors import AudioscoreError
from audioscore.files import sha256_of
from audioscore.home import home

THRESHOLDS, SEEDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), range(5)


def main(config_file: Path, data: Path) -> None:
    """Print the table."""
    config = load_config(config_file)
    clips = [
        replace(clip, sha256=sha256_of(data / clip.audio_file))
        for clip in read_labels(find_labels(data)).clips
        if clip.singer_id is not None
    ]
    voices = voice_embedder(config.encoders.campplus, data, home("benchmarks").features)(clips)
    print(f"{len(clips)} clips of {len({clip.singer_id for clip in clips})} singers; {told_apart(clips, voices)}")
    unknown = [replace(clip, singer_id=None) for clip in clips]
    print(f"without an estimate: leaked {leaked(clips, unknown, (), config.split.val, config.split.test)}")
    for threshold in THRESHOLDS:
        found = group_voices(unknown, voices, min_cosine=threshold)
        try:
            share = leaked(clips, unknown, found.alike, config.split.val, config.split.test)
        except AudioscoreError as fault:
            share = str(fault)
        print(f"{threshold:.1f}: {len(found.alike)} voices, largest {found.largest / len(clips):.0%}; leaked {share}")


def leaked(clips: list[Clip], unknown: list[Clip], alike: tuple[tuple[str, ...], ...], val: float, test: float) -> str:
    """Share of the test clips whose true singer is in train as well."""
    shares = []
    for seed in SEEDS:
        split_of = assign_splits(unknown, val=val, test=test, seed=seed, alike=alike).of
        train = {clip.singer_id for clip in clips if split_of.get(clip.audio_file) == "train"}
        tested = [clip.singer_id in train for clip in clips if split_of.get(clip.audio_file) == "test"]
        shares.append(np.mean(tested))
    return f"{np.mean(shares):.2f}"


def told_apart(clips: list[Clip], voices: np.ndarray) -> str:
    """Area under the curve of the cosine, over pairs of clips. Shape: voices [N, E]."""
    from scipy.stats import mannwhitneyu

    unit = voices / np.linalg.norm(voices, axis=1, keepdims=True)
    names = np.array([clip.singer_id for clip in clips])
    above = np.triu_indices(len(names), 1)
    cosine, same = (unit @ unit.T)[above], (names[:, None] == names[None, :])[above]
    area = mannwhitneyu(cosine[same], cosine[~same]).statistic / (same.sum() * (~same).sum())
    return (
        f"cosine {cosine[same].mean():.2f} for pairs of one singer, {cosine[~same].mean():.2f} of two: AUC {area:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=DEMO)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1] / "data")
    given = parser.parse_args()
    main(given.config, given.data)
