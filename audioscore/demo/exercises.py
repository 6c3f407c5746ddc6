"""Singing for encoders to learn from: many voices, each in several songs, rooms and moods, and no scores."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from audioscore.data.audio import Wave
from audioscore.demo.corpus import faults_of, in_processes, render
from audioscore.demo.faults import Faults
from audioscore.demo.melody import BARS, draw_song
from audioscore.demo.plan import DEMO_SONGS, NUISANCES, SOURCES, PlannedClip
from audioscore.demo.singers import Singer, draw_singer, timbre_quality
from audioscore.errors import UsageError


@dataclass(frozen=True)
class Exercise:
    """One recording with all that made it. Shape: wave [seconds * 24 000], float32, 24 kHz."""

    singer: Singer
    faults: Faults
    source: str  # the recording domain, as a corpus names it
    wave: Wave


def exercises(singers: int, clips: int, seconds: float, seed: int, *, workers: int = 1) -> Iterator[Exercise]:
    """`clips` recordings of each of `singers` voices, voice by voice.

    None of these voices or songs is in a corpus planned with any seed a user would choose. Each clip of a voice has
    another song, room, level and performance, so that the voice is all its clips share. Raises UsageError for counts
    below one or less than 1 second.
    """
    if min(singers, clips, workers) < 1 or seconds < 1.0:
        raise UsageError(
            f"Exercises need at least 1 voice, 1 clip each, 1 second and 1 worker; got {singers}, {clips}, {seconds} "
            f"and {workers}. Ask for more."
        )
    choir = int(np.random.SeedSequence([seed, 601]).generate_state(1)[0])
    songs = [draw_song(index, seed=choir, song_id=f"exercise{index + 1:03d}") for index in range(4 * DEMO_SONGS)]
    plan = []
    for index in range(singers):
        singer = draw_singer(index, seed=choir, singer_id=f"voice{index + 1:04d}")
        for turn in range(clips):
            rng = np.random.default_rng([choir, 602, index, turn])
            nuisances = {name: float(rng.uniform(low, high)) for name, (low, high) in NUISANCES.items()}
            planned = PlannedClip(
                audio_file="",
                score=0.0,
                singer=singer,
                song=songs[int(rng.integers(len(songs)))],
                source=str(rng.choice(tuple(SOURCES))),
                q_timbre=timbre_quality(singer),
                q_performance=float(rng.random()),
                first_bar=int(rng.integers(BARS)),
                seed=(choir, 603, index, turn),
                **{**nuisances, "seconds": seconds},
            )
            plan.append(planned)
    for planned, wave in zip(plan, in_processes(render, plan, workers), strict=True):
        yield Exercise(planned.singer, faults_of(planned), planned.source, wave)
