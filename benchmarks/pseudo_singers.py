"""Measure the leak of singers between splits without singer ids, by the cosine threshold for one voice.

`python benchmarks/pseudo_singers.py [--config FILE] [--data DIR]` removes the singer ids of a data folder, groups its
voices and splits the clips as a run does. For each threshold it prints the share of test clips whose true singer is
also in train (mean of 5 split seeds) and the share of the largest group, and once the AUC of the cosine for pairs of
one singer. Choose `split.same_voice_cosine` by it, for each encoder.
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
    """Print one line for each threshold."""
    config = load_config(config_file)
    clips = [
        replace(clip, sha256=sha256_of(data / clip.audio_file))
        for clip in read_labels(find_labels(data)).clips
        if clip.singer_id is not None
    ]
    voices = voice_embedder(config.encoders.campplus, data, home("benchmarks").features)(clips)
    print(f"{len(clips)} clips of {len({clip.singer_id for clip in clips})} singers; {cosine_auc(clips, voices)}")
    unknown = [replace(clip, singer_id=None) for clip in clips]
    print(f"without an estimate: leaked {leaked(clips, unknown, (), config.split.val, config.split.test)}")
    for threshold in THRESHOLDS:
        found = group_voices(unknown, voices, min_cosine=threshold)
        try:
            share = leaked(clips, unknown, found.same_voice, config.split.val, config.split.test)
        except AudioscoreError as error:
            share = str(error)
        print(
            f"{threshold:.1f}: {len(found.same_voice)} voices, largest {found.largest / len(clips):.0%}; leaked {share}"
        )


def leaked(
    clips: list[Clip], unknown: list[Clip], same_voice: tuple[tuple[str, ...], ...], val: float, test: float
) -> str:
    """Compute the share of test clips whose true singer is also in train."""
    shares = []
    for seed in SEEDS:
        split_of = assign_splits(unknown, val=val, test=test, seed=seed, same_voice=same_voice).of
        train = {clip.singer_id for clip in clips if split_of.get(clip.audio_file) == "train"}
        tested = [clip.singer_id in train for clip in clips if split_of.get(clip.audio_file) == "test"]
        shares.append(np.mean(tested))
    return f"{np.mean(shares):.2f}"


def cosine_auc(clips: list[Clip], voices: np.ndarray) -> str:
    """Compute the AUC of the cosine as a same-singer classifier, over pairs of clips. Shape: voices [N, E]."""
    from scipy.stats import mannwhitneyu

    unit = voices / np.linalg.norm(voices, axis=1, keepdims=True)
    names = np.array([clip.singer_id for clip in clips])
    above = np.triu_indices(len(names), 1)
    cosine, same = (unit @ unit.T)[above], (names[:, None] == names[None, :])[above]
    area = mannwhitneyu(cosine[same], cosine[~same]).statistic / (same.sum() * (~same).sum())
    return f"mean cosine {cosine[same].mean():.2f} within singers, {cosine[~same].mean():.2f} between: AUC {area:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=DEMO)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1] / "data")
    given = parser.parse_args()
    main(given.config, given.data)
