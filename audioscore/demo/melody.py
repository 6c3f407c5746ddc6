"""Synthetic songs: a melody with syllables, tempo and chords."""

from dataclasses import dataclass

import numpy as np

VOWELS = ("a", "e", "i", "o", "u", "er")
ONSETS = ("none", "nasal", "plosive", "s", "sh")
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "pentatonic": (0, 2, 4, 7, 9),
    "minor pentatonic": (0, 3, 5, 7, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
}
RHYTHMS = (  # beats of a bar's notes
    (1.0, 1.0, 2.0), (2.0, 1.0, 1.0), (1.5, 0.5, 2.0), (1.0, 1.0, 1.0, 1.0), (0.5, 0.5, 1.0, 2.0), (3.0, 1.0),
    (2.0, 2.0), (1.0, 0.5, 0.5, 2.0), (1.5, 0.5, 1.0, 1.0),
)  # fmt: skip
BAR_BEATS = 4.0
BARS = 16
SHORTEST_NOTE = 0.25  # seconds; instead of a shorter last note, the note before it is held
PITCH_SPAN = (-5, 9)  # semitones around the tonic that a melody may use


@dataclass(frozen=True)
class Note:
    """One syllable: `pitch` in semitones above the tonic, `breath` if the singer breathes before it."""

    pitch: int
    beats: float
    vowel: str
    onset: str
    breath: bool


@dataclass(frozen=True)
class Song:
    """A melody of `BARS` bars: the notes of each bar, and its triad in semitones above the tonic."""

    song_id: str
    beat: float  # seconds
    bars: tuple[tuple[Note, ...], ...]
    chords: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TimedNote:
    """A note with its start and end, in seconds from the first note."""

    note: Note
    start: float
    end: float


def draw_song(index: int, *, seed: int, song_id: str) -> Song:
    """Draw song `index` of the songbook `seed`; it does not depend on the number of songs."""
    rng = np.random.default_rng([seed, 201, index])
    scale = tuple(SCALES.values())[int(rng.integers(len(SCALES)))]
    roots = rng.integers(0, len(scale), 4)
    roots[0] = 0
    chords = tuple(tuple(_step(scale, int(roots[bar % 4]) + third) for third in (0, 2, 4)) for bar in range(BARS))
    favourites = rng.choice(len(RHYTHMS), 3, replace=False)
    degree, bars = int(rng.integers(0, 3)), []
    for bar in range(BARS):
        notes = []
        for number, beats in enumerate(RHYTHMS[int(rng.choice(favourites))]):
            degree = _walk(degree, scale, rng)
            vowel, onset = str(rng.choice(VOWELS)), str(rng.choice(ONSETS, p=(0.2, 0.25, 0.25, 0.15, 0.15)))
            notes.append(Note(_step(scale, degree), beats, vowel, onset, breath=number == 0 and bar % 2 == 0))
        bars.append(tuple(notes))
    return Song(song_id, 60.0 / float(rng.uniform(84.0, 132.0)), tuple(bars), chords)


def _step(scale: tuple[int, ...], degree: int) -> int:
    octave, step = divmod(degree, len(scale))
    return 12 * octave + scale[step]


def _walk(degree: int, scale: tuple[int, ...], rng: np.random.Generator) -> int:
    """Draw the next scale degree: usually one step away, always within PITCH_SPAN."""
    for _ in range(20):
        new = degree + int(rng.choice((-3, -2, -1, 0, 1, 2, 3), p=(0.06, 0.14, 0.26, 0.08, 0.26, 0.14, 0.06)))
        if PITCH_SPAN[0] <= _step(scale, new) <= PITCH_SPAN[1]:
            return new
    return degree


def cut_phrase(song: Song, first_bar: int, seconds: float) -> list[TimedNote]:
    """Return the notes from `first_bar` on that fill `seconds` exactly; the song repeats after its last bar.

    The last note is shortened or held so that it ends at `seconds`.
    """
    timed: list[TimedNote] = []
    clock, bar = 0.0, first_bar
    while clock < seconds:
        for note in song.bars[bar % len(song.bars)]:
            if seconds - clock >= SHORTEST_NOTE:
                timed.append(TimedNote(note, clock, min(clock + note.beats * song.beat, seconds)))
            clock += note.beats * song.beat
        bar += 1
    last = timed[-1]
    return [*timed[:-1], TimedNote(last.note, last.start, seconds)]
