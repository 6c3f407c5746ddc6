from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soxr

from audioscore.data import fingerprint as module
from audioscore.data.audio import Recording, Wave, decode, encode
from audioscore.data.fingerprint import MAX_SECONDS, WORD_HZ, fingerprint, near_duplicates

RATE = 24_000


@cache
def melody(seed: int, seconds: float = 8.0, song: int = 0) -> Recording:
    """A voice that sings the notes of `song`; each recording (`seed`) has different timing, drift and breath noise."""
    notes = 57 + np.random.default_rng(song).integers(0, 12, 64)
    rng = np.random.default_rng([song, seed])
    t = np.arange(round(seconds * RATE)) / RATE
    starts = np.arange(64) * 0.45 + rng.normal(0, 0.03, 64)
    pitch = notes[np.clip(np.searchsorted(starts, t) - 1, 0, 63)] + np.interp(t, starts, rng.normal(0, 0.25, 64))
    phase = 2 * np.pi * np.cumsum(440 * 2 ** ((pitch - 69) / 12)) / RATE
    phase += 0.5 * np.sin(2 * np.pi * rng.uniform(5, 6.5) * t + rng.uniform(0, 6))
    swell = np.interp(t, starts, rng.uniform(0.4, 1.0, 64))
    tones = sum(np.sin(k * phase) / k for k in range(1, 20))
    wave = 0.15 * swell * (tones + rng.normal(0, 0.1, len(t)))
    return Recording(wave.astype(np.float32), RATE)


def as_file(recording: Recording, path: Path, codec: str, bit_rate: int) -> Recording:
    encode(recording.wave, recording.rate, path, codec=codec, bit_rate=bit_rate)
    return decode(path)


def is_copy(one: Recording, other: Recording) -> bool:
    return near_duplicates([fingerprint(one), fingerprint(other)]) == [(0, 1)]


def test_the_fingerprint_is_deterministic_and_independent_of_gain() -> None:
    one = melody(1)
    assert fingerprint(one) == fingerprint(Recording(one.wave.copy(), RATE))
    assert fingerprint(one) == fingerprint(Recording(one.wave / 4, RATE))
    assert len(fingerprint(one)) == 4 * one.seconds * WORD_HZ


@pytest.mark.parametrize(
    ("suffix", "codec", "bit_rate"),
    [("m4a", "aac", 24_000), ("mp3", "libmp3lame", 32_000), ("ogg", "libopus", 16_000), ("wav", "pcm_s16le", 0)],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_in_another_codec_is_found(tmp_path: Path, suffix: str, codec: str, bit_rate: int, seed: int) -> None:
    assert is_copy(melody(seed), as_file(melody(seed), tmp_path / f"a.{suffix}", codec, bit_rate))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_resampled_copy_is_found(rate: int) -> None:
    up = soxr.resample(melody(1).wave, RATE, rate).astype(np.float32)
    assert is_copy(melody(1), Recording(up, rate))


@pytest.mark.parametrize("first", [0.0, 0.013, 1.2125, 3.5])
@pytest.mark.parametrize("last", [8.0, 7.1])
def test_a_cut_and_quieter_and_noisier_copy_is_found(first: float, last: float) -> None:
    cut = 0.3 * melody(2).wave[round(first * RATE) : round(last * RATE)]
    noisy = cut + np.random.default_rng(0).normal(0, cut.std() * 10 ** (-25 / 20), len(cut))
    copy = Recording(noisy.astype(np.float32), RATE)
    assert is_copy(melody(2), copy)
    assert is_copy(copy, melody(2))


def test_two_recordings_of_one_song_are_not_copies() -> None:
    prints = [fingerprint(melody(seed, song=song)) for song in range(3) for seed in range(6)]
    assert near_duplicates(prints) == []


def test_a_common_intro_is_not_a_copy() -> None:
    def song(seed: int) -> Wave:
        return np.concatenate([melody(50).wave[: 3 * RATE], melody(seed).wave[: 4 * RATE]])

    assert not is_copy(Recording(song(1), RATE), Recording(song(2), RATE))


def test_a_short_recording_must_match_as_a_whole() -> None:
    one = melody(3).wave[: round(1.5 * RATE)]
    assert is_copy(Recording(one, RATE), Recording(one / 2, RATE))
    assert not is_copy(Recording(one, RATE), melody(3))
    assert not is_copy(Recording(one, RATE), Recording(one[: RATE // 2], RATE))


def test_silence_matches_no_recording_and_is_ignored_around_a_sound() -> None:
    silent = Recording(np.zeros(3 * RATE, dtype=np.float32), RATE)
    none = Recording(np.zeros(0, dtype=np.float32), RATE)
    assert fingerprint(silent) == fingerprint(none) == b""
    assert near_duplicates([b"", None, fingerprint(silent), fingerprint(melody(1)), b""]) == []
    assert near_duplicates([]) == []
    still = np.zeros(2 * RATE, dtype=np.float32)
    assert is_copy(melody(1), Recording(np.concatenate([still, melody(1).wave, still]), RATE))


def test_only_the_start_of_a_long_recording_is_used() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 130 * 8_000).astype(np.float32)
    assert len(fingerprint(Recording(noise, 8_000))) == 4 * MAX_SECONDS * WORD_HZ


def test_many_copies_are_all_linked() -> None:
    copies = [fingerprint(Recording(melody(1).wave * gain, RATE)) for gain in np.linspace(0.1, 1, 40)]
    pairs = near_duplicates([fingerprint(melody(2)), *copies])
    assert pairs == sorted(set(pairs))
    group = {1}
    for first, second in pairs:
        assert first < second
        if first in group:
            group.add(second)
    assert group == set(range(1, 41))


def test_parts_of_the_index_give_the_same_pairs_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 2**32, 200, dtype=np.uint64).astype("<u4") for _ in range(12)]
    prints = [one.tobytes() for one in (*words, *(one[20:] for one in words[:6]), words[0][40:])]
    whole = near_duplicates(prints)
    assert whole == sorted([*((number, number + 12) for number in range(6)), (0, 18), (12, 18)])
    monkeypatch.setattr(module, "PART_WORDS", 100)
    assert near_duplicates(prints) == whole


def test_each_of_a_thousand_recordings_matches_only_its_copy() -> None:
    rng = np.random.default_rng(0)
    words = [rng.integers(1, 2**32, 200, dtype=np.uint64).astype("<u4") for _ in range(1_000)]
    flips = [np.packbits(rng.random((200, 32)) < 0.06, axis=1).view("<u4")[:, 0] for _ in words]
    copies = [(one ^ flip)[40:].tobytes() for one, flip in zip(words, flips, strict=True)]
    pairs = near_duplicates([*(one.tobytes() for one in words), *copies])
    assert pairs == [(number, number + 1_000) for number in range(1_000)]
