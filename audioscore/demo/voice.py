"""A source-filter singing voice: a band-limited pulse train and breath noise through a moving vocal tract."""

import numpy as np
from numpy.typing import NDArray

from audioscore.demo.performance import CONTROL_HZ, NOISES, Controls, Curve, Singer

RATE = 24_000  # Hz
HOP = 240  # samples: the tract moves every 10 ms
WINDOW = 4 * HOP  # Hann windows at this overlap sum to 2
FFT = 6 * HOP  # two hops of room for the tract to ring in
BANDWIDTHS = (70.0, 90.0, 130.0, 170.0, 250.0)  # Hz, F1 to F5
TILT_FROM = 300.0  # Hz, where the source's spectrum begins to fall
BANDS = {"s": (5200.0, 10500.0), "sh": (2400.0, 6000.0), "burst": (1200.0, 5500.0), "inhale": (700.0, 3200.0)}  # Hz


def synthesise(controls: Controls, singer: Singer, rng: np.random.Generator) -> Curve:
    """The voice alone, at RMS 1 over its voiced part.

    Shape: curves [F] at 200 Hz -> [F * 120] at 24 kHz.
    """
    size = len(controls.pitch) * RATE // CONTROL_HZ
    pitch = _upsample(controls.pitch, size)
    gain = _upsample(controls.gain, size)
    hertz = 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)
    cycles = np.cumsum(hertz) / RATE
    frame_hertz = hertz[::HOP][: -(-size // HOP)]
    tract, air = _tract(controls, singer, frame_hertz)
    voiced = _filter(_pulses(cycles, hertz) * _unevenness(cycles, controls.rough, rng) * gain, tract)
    puffs = 0.35 + 0.65 * (0.5 + 0.5 * np.cos(2 * np.pi * cycles))  # most air passes around the pulse
    breath = _filter(rng.standard_normal(size) * puffs * gain, air)
    voiced /= _rms(voiced)
    breath *= 10 ** (controls.air / 20) / _rms(breath)
    return np.asarray(voiced + breath + _consonants(controls, size, rng))


def _upsample(curve: Curve, size: int) -> Curve:
    return np.interp(np.arange(size) / size * len(curve), np.arange(len(curve)), curve)


def _rms(wave: Curve) -> float:
    return float(np.sqrt(np.mean(wave**2)) + 1e-12)


def _pulses(cycles: Curve, hertz: Curve) -> Curve:
    """Equal harmonics up to 11.5 kHz, in closed form (the Dirichlet kernel), so that nothing aliases.

    The harmonic at the edge fades in and out as pitch moves. Each pulse train has unit power per harmonic pair, scaled
    by the square root of pitch so that power in a band does not depend on pitch.
    """
    angle = 2 * np.pi * (cycles % 1.0)
    count = 0.48 * RATE / hertz
    whole = np.floor(count)
    half = np.sin(angle / 2)
    near = np.abs(half) < 1e-6
    kernel = np.where(near, whole, np.sin((whole + 0.5) * angle) / (2 * np.where(near, 1.0, half)) - 0.5)
    return np.asarray((kernel + (count - whole) * np.cos((whole + 1) * angle)) * np.sqrt(hertz))


def _unevenness(cycles: Curve, rough: float, rng: np.random.Generator) -> Curve:
    """Gain of every cycle: shimmer, and an alternation of strong and weak cycles that comes and goes."""
    cycle = cycles.astype(np.intp)
    shimmer = rng.standard_normal(int(cycle[-1]) + 2)[cycle] * (0.015 + 0.35 * rough)
    presence = np.clip(0.6 + 0.4 * np.sin(2 * np.pi * np.arange(len(cycles)) / RATE * 1.7 + rng.uniform(0, 6.28)), 0, 1)
    subharmonic = 0.8 * rough * presence * np.cos(np.pi * cycles)
    return np.asarray(np.clip(1.0 + shimmer + subharmonic, 0.05, 3.0))


def _tract(controls: Controls, singer: Singer, hertz: Curve) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Response for the voice source and for breath noise, one per frame: [frames, bins] each."""
    bins: Curve = np.fft.rfftfreq(FFT, 1 / RATE).astype(np.float64)
    places = np.linspace(0, len(controls.pitch) - 1, len(hertz))
    response = _fixed_formants(bins, singer)[None, :].repeat(len(hertz), axis=0)
    for formant in range(3):
        frequency = np.interp(places, np.arange(len(controls.pitch)), controls.formants[:, formant])
        frequency = frequency * singer.tract * singer.shape[formant]
        if formant == 0:
            frequency = np.maximum(frequency, 1.02 * hertz)  # singers open the mouth to keep F1 above the pitch
        response *= _resonance(bins[None, :], frequency[:, None], BANDWIDTHS[formant] * singer.bandwidth)
    octaves = np.log2(np.maximum(bins, TILT_FROM) / TILT_FROM)
    ring = singer.ring * np.exp(-0.5 * ((bins - 2900.0 * np.sqrt(singer.tract)) / 450.0) ** 2)
    around = np.log2(np.maximum(bins[None, :], 20.0) / hertz[:, None])
    source_db = (singer.tilt * octaves + ring)[None, :] + singer.glottal * np.exp(-0.5 * (around / 0.35) ** 2)
    rumble = (bins / np.hypot(bins, 60.0))[None, :]
    return response * rumble * 10 ** (source_db / 20), response * rumble * 10 ** ((-2.0 * octaves + 3.0) / 20)


def _fixed_formants(bins: Curve, singer: Singer) -> NDArray[np.complex128]:
    """F4 and F5 of the singer, and the formants above them, which no vowel moves."""
    response = np.ones(len(bins), dtype=np.complex128)
    for number in range(4, 13):
        frequency = (1000.0 * number - 500.0) * singer.tract
        if number <= 5:
            frequency *= singer.shape[number - 1]
        width = BANDWIDTHS[number - 1] * singer.bandwidth if number <= 5 else 80.0 * number
        response *= _resonance(bins, np.asarray(frequency), width)
    return response


def _resonance(bins: Curve, frequency: Curve, width: float) -> NDArray[np.complex128]:
    """Second-order resonance with unit gain at 0 Hz."""
    return np.asarray(frequency**2 / (frequency**2 - bins**2 + 1j * width * bins))


def _filter(wave: Curve, response: NDArray[np.complex128]) -> Curve:
    """Filter with a response that changes every hop, by overlap-add.

    Shape: wave [T], response [ceil(T / HOP), FFT // 2 + 1] -> [T]. Frame i is centred on sample i * HOP.
    """
    frames = len(response)
    padded = np.zeros((frames + 4) * HOP)
    padded[WINDOW // 2 : WINDOW // 2 + len(wave)] = wave
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    blocks = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:frames] * window
    filtered = np.fft.irfft(np.fft.rfft(blocks, FFT, axis=1) * response, FFT, axis=1).reshape(frames, FFT // HOP, HOP)
    total = np.zeros((frames + FFT // HOP, HOP))
    for part in range(FFT // HOP):
        total[part : part + frames] += filtered[:, part]
    return 0.5 * total.ravel()[WINDOW // 2 : WINDOW // 2 + len(wave)]


def _consonants(controls: Controls, size: int, rng: np.random.Generator) -> Curve:
    """Fricatives, bursts and inhaled air: white noise in each sound's band, at the gains of the controls."""
    total = np.zeros(size)
    bins = np.fft.rfftfreq(size, 1 / RATE)
    for row, name in enumerate(NOISES):
        if not controls.noise[row].any():
            continue
        low, high = BANDS[name]
        shape = 1 / np.sqrt((1 + (low / np.maximum(bins, 1.0)) ** 6) * (1 + (bins / high) ** 6))
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * shape, size)
        total += noise / _rms(noise) * _upsample(controls.noise[row], size)
    return total
