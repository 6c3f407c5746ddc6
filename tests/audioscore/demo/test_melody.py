import itertools

import pytest

from audioscore.demo.melody import BAR_BEATS, BARS, PITCH_SPAN, SHORTEST_NOTE, Song, cut_phrase, draw_song

SONGS = [draw_song(index, seed=1, song_id=f"song{index}") for index in range(12)]


def test_songs_differ_and_are_reproducible() -> None:
    assert len({song.bars for song in SONGS}) == 12
    assert draw_song(4, seed=1, song_id="song4") == SONGS[4]


@pytest.mark.parametrize("song", SONGS[:4])
def test_bars_are_full_and_notes_in_range(song: Song) -> None:
    assert len(song.bars) == len(song.chords) == BARS
    assert all(sum(note.beats for note in bar) == BAR_BEATS for bar in song.bars)
    assert all(PITCH_SPAN[0] <= note.pitch <= PITCH_SPAN[1] for bar in song.bars for note in bar)


@pytest.mark.parametrize("seconds", [0.3, 2.2, 3.137, 6.0, 60.0])
def test_a_phrase_fills_its_time_without_gaps_or_scraps(seconds: float) -> None:
    phrase = cut_phrase(SONGS[0], BARS - 1, seconds)
    assert phrase[0].start == 0.0
    assert phrase[-1].end == seconds
    assert all(before.end == after.start for before, after in itertools.pairwise(phrase))
    assert all(note.end - note.start >= min(SHORTEST_NOTE, 0.5 * SONGS[0].beat) - 1e-9 for note in phrase)
