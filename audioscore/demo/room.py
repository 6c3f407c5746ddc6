"""Where a recording was made: a KTV room with its backing track, or a vocal separated from an original."""

import numpy as np

from audioscore.data.audio import Wave
from audioscore.demo.melody import BAR_BEATS, Song
from audioscore.demo.performance import Curve
from audioscore.demo.voice import RATE

FADE_IN, FADE_OUT = 0.02, 0.06  # seconds
FLICKER_HOP = 1200  # samples, 50 ms
FLOOR_DB = -84.0  # dB full scale of the noise under everything, silence included


def backing(song: Song, first_bar: int, tonic: float, size: int, rng: np.random.Generator) -> Curve:
    """The song's chords as soft plucked tones over a bass, in equal temperament, at RMS 1.

    Shape: [size] at 24 kHz. Source of the harmony: the song, from `first_bar` on; `tonic` is a MIDI note.
    """
    bar_size = int(BAR_BEATS * song.beat * RATE)
    time = np.arange(bar_size) / RATE
    pluck = np.exp(-(time % (2 * song.beat)) / 0.5) + 0.25
    brightness = rng.uniform(0.35, 0.6)
    total = np.zeros(size + bar_size)
    for place in range(-(-size // bar_size)):
        chord = song.chords[(first_bar + place) % len(song.chords)]
        for semitones, gain in [(chord[0] - 12, 1.0), *((note, 0.6) for note in chord)]:
            hertz = 440.0 * 2.0 ** ((tonic % 12 + 48 + semitones - 69) / 12)
            for harmonic in range(1, 6):
                tone = np.sin(2 * np.pi * harmonic * hertz * time + rng.uniform(0, 6.28))
                total[place * bar_size : (place + 1) * bar_size] += gain * brightness ** (harmonic - 1) * tone * pluck
    total = total[:size]
    return np.asarray(total / (np.sqrt(np.mean(total**2)) + 1e-12))


def ktv(voice: Curve, music: Curve, rng: np.random.Generator) -> Curve:
    """A KTV room: microphone colour, slight compression, echo, reverberation, and the backing track leaking in.

    Shape: voice [T], music [T] at 24 kHz, both at RMS 1 -> [T].
    """
    size = len(voice)
    bins = np.fft.rfftfreq(size, 1 / RATE)
    around = np.log2(np.maximum(bins, 1.0) / rng.uniform(2500.0, 4500.0)) / 0.6
    colour = 10 ** (rng.uniform(-2.0, 3.0) * np.exp(-0.5 * around**2) / 20) / np.sqrt(
        1 + (110.0 / np.maximum(bins, 1.0)) ** 4
    )
    sung = _compress(np.fft.irfft(np.fft.rfft(voice) * colour, size), 0.2)
    delay = int(rng.uniform(0.14, 0.24) * RATE)
    echo = np.zeros(size)
    echo[delay:] += rng.uniform(0.08, 0.16) * sung[:-delay]
    wet = _convolve(sung + echo, _room_response(rng))
    wet *= 10 ** (rng.uniform(-15.0, -9.0) / 20) * _rms(sung) / _rms(wet)
    bleed = 10 ** (rng.uniform(-25.0, -19.0) / 20) * _rms(sung)
    hum = 10 ** (rng.uniform(-46.0, -38.0) / 20) * _rms(sung) * _hiss(size, rng)
    return _cut(sung + echo + wet + bleed * music + hum, rng.uniform(8500.0, 11000.0))


def acapella(voice: Curve, music: Curve, rng: np.random.Generator) -> Curve:
    """A vocal separated from an original: dry, with a faint, flickering residue of the music it was taken from.

    Shape: voice [T], music [T] at 24 kHz, both at RMS 1 -> [T].
    """
    knots = len(voice) // FLICKER_HOP + 2
    flicker = np.interp(np.arange(len(voice)) / FLICKER_HOP, np.arange(knots), rng.random(knots))
    bleed = 10 ** (rng.uniform(-36.0, -29.0) / 20) * _rms(voice)
    hiss = 10 ** (rng.uniform(-50.0, -42.0) / 20) * _rms(voice) * _hiss(len(voice), rng)
    return _cut(voice + bleed * flicker * music + hiss, rng.uniform(9500.0, 12000.0))


def _hiss(size: int, rng: np.random.Generator) -> Curve:
    """Noise of RMS 1 that falls by 3 dB an octave from 200 Hz on, as rooms and residues do."""
    bins = np.fft.rfftfreq(size, 1 / RATE)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) / np.sqrt(np.maximum(bins, 200.0)), size)
    return np.asarray(noise / _rms(noise))


def _cut(wave: Curve, hertz: float) -> Curve:
    """What an earlier lossy coding leaves: nothing much above `hertz`."""
    bins = np.fft.rfftfreq(len(wave), 1 / RATE)
    return np.asarray(np.fft.irfft(np.fft.rfft(wave) / np.sqrt(1 + (bins / hertz) ** 24), len(wave)))


def _rms(wave: Curve) -> float:
    return float(np.sqrt(np.mean(wave**2)) + 1e-12)


def _compress(wave: Curve, strength: float) -> Curve:
    """Pull the 40 ms level towards its median by `strength` (0 leaves it, 1 flattens it)."""
    from scipy.ndimage import gaussian_filter1d

    level = np.sqrt(gaussian_filter1d(wave**2, 0.02 * RATE) + 1e-12)
    return np.asarray(wave * (np.median(level) / np.maximum(level, 0.05 * level.max())) ** strength)


def _convolve(wave: Curve, response: Curve) -> Curve:
    """Linear convolution, as long as `wave`."""
    size = 1 << (len(wave) + len(response) - 1).bit_length()
    return np.asarray(np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)[: len(wave)])


def _room_response(rng: np.random.Generator) -> Curve:
    """Reverberation alone: exponentially falling noise, duller as it falls, after a short gap."""
    from scipy.ndimage import gaussian_filter1d

    seconds = rng.uniform(0.4, 0.9)  # time to fall by 60 dB
    time = np.arange(int(seconds * RATE)) / RATE
    noise = rng.standard_normal(len(time))
    dull = gaussian_filter1d(noise, 2.5) * 3.0
    mix = np.exp(-time / 0.15)
    tail = (mix * noise + (1 - mix) * dull) * 10 ** (-3.0 * time / seconds)
    return np.concatenate([np.zeros(int(0.012 * RATE)), tail])


def master(sung: Curve, *, lead: int, trail: int, level_db: float, crest_db: float, rng: np.random.Generator) -> Wave:
    """The finished recording: silence around what is sung, and exactly the wanted level and peak.

    Everything outside the sung span is the same noise floor whatever the room, so silence tells nothing of the
    source. `level_db` is the RMS of the whole file and `crest_db` its peak above that, both dB.

    Shape: [T] at 24 kHz -> [lead + T + trail]; `lead` and `trail` are samples.
    """
    fade = np.ones(len(sung))
    rise, fall = int(FADE_IN * RATE), int(FADE_OUT * RATE)
    fade[:rise] = np.linspace(0.0, 1.0, rise)
    fade[-fall:] = np.linspace(1.0, 0.0, fall)
    wave = np.concatenate([np.zeros(lead), sung * fade, np.zeros(trail)])
    wave = set_crest(wave, crest_db)
    wave *= 10 ** (level_db / 20) / _rms(wave)
    return (wave + 10 ** (FLOOR_DB / 20) * rng.standard_normal(len(wave))).astype(np.float32)


def set_crest(wave: Curve, crest_db: float) -> Curve:
    """Turn down the loudest moments, smoothly, until the peak stands `crest_db` above the RMS.

    A wave whose peaks are lower already is left alone.
    """
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    reach = int(0.008 * RATE)
    peaks = maximum_filter1d(np.abs(wave), 2 * reach + 1)
    low, high = 0.0, float(peaks.max())
    limited = wave
    for _ in range(14):
        ceiling = (low + high) / 2
        gain = uniform_filter1d(np.minimum(1.0, ceiling / np.maximum(peaks, 1e-9)), 2 * reach + 1)
        limited = wave * gain
        over = 20 * np.log10(np.abs(limited).max() / _rms(limited)) > crest_db
        low, high = (low, ceiling) if over else (ceiling, high)
    return np.asarray(limited)
