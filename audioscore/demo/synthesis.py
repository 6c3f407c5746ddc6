"""From control curves to a recording: the voice, its recording domain (KTV or a cappella), and the final level.

The voice is a source-filter model: a band-limited pulse train and breath noise through a moving vocal tract.
"""

import numpy as np
from numpy.typing import NDArray

from audioscore.data.audio import Wave
from audioscore.demo.melody import BAR_BEATS, Song
from audioscore.demo.performance import CONTROL_HZ, NOISES, Controls, Curve, Singer

RATE = 24_000  # Hz
HOP = 240  # samples: the tract moves every 10 ms
WINDOW = 4 * HOP  # Hann windows at this overlap sum to 2
FFT = 6 * HOP  # two hops of padding for the decay of the tract
BANDWIDTHS = (70.0, 90.0, 130.0, 170.0, 250.0)  # Hz, F1 to F5
TILT_FROM = 300.0  # Hz, where the source's spectrum begins to fall
BANDS = {"s": (5200.0, 10500.0), "sh": (2400.0, 6000.0), "burst": (1200.0, 5500.0), "inhale": (700.0, 3200.0)}  # Hz
FADE_IN, FADE_OUT = 0.02, 0.06  # seconds
FLICKER_HOP = 1200  # samples, 50 ms
FLOOR_DB = -84.0  # dB full scale of the noise floor, which silence has too


def synthesise(controls: Controls, singer: Singer, rng: np.random.Generator) -> Curve:
    """Synthesise the voice without its surroundings, with RMS 1 over its voiced part.

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


def _pulses(cycles: Curve, hertz: Curve) -> Curve:
    """Pulse train of equal harmonics up to 11.5 kHz, in closed form (the Dirichlet kernel), without aliasing.

    The highest harmonic fades in and out as the pitch changes. Each pulse train has unit power per harmonic pair,
    scaled by the square root of the pitch, so that the power in a band does not depend on the pitch.
    """
    angle = 2 * np.pi * (cycles % 1.0)
    count = 0.48 * RATE / hertz
    whole = np.floor(count)
    half = np.sin(angle / 2)
    near = np.abs(half) < 1e-6
    kernel = np.where(near, whole, np.sin((whole + 0.5) * angle) / (2 * np.where(near, 1.0, half)) - 0.5)
    return np.asarray((kernel + (count - whole) * np.cos((whole + 1) * angle)) * np.sqrt(hertz))


def _unevenness(cycles: Curve, rough: float, rng: np.random.Generator) -> Curve:
    """Gain of every cycle: shimmer, and a slowly modulated alternation of strong and weak cycles."""
    cycle = cycles.astype(np.intp)
    shimmer = rng.standard_normal(int(cycle[-1]) + 2)[cycle] * (0.015 + 0.35 * rough)
    presence = np.clip(0.6 + 0.4 * np.sin(2 * np.pi * np.arange(len(cycles)) / RATE * 1.7 + rng.uniform(0, 6.28)), 0, 1)
    subharmonic = 0.8 * rough * presence * np.cos(np.pi * cycles)
    return np.asarray(np.clip(1.0 + shimmer + subharmonic, 0.05, 3.0))


def _tract(controls: Controls, singer: Singer, hertz: Curve) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return the responses for the voice source and for breath noise, each [frames, bins]."""
    bins: Curve = np.fft.rfftfreq(FFT, 1 / RATE).astype(np.float64)
    positions = np.linspace(0, len(controls.pitch) - 1, len(hertz))
    response = _fixed_formants(bins, singer)[None, :].repeat(len(hertz), axis=0)
    for formant in range(3):
        frequency = np.interp(positions, np.arange(len(controls.pitch)), controls.formants[:, formant])
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
    """Response of the formants that do not depend on the vowel: F4, F5 and those above."""
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
    """Fricatives, bursts and breaths: white noise in the band of each sound, with the gains of the controls."""
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


def backing(song: Song, first_bar: int, tonic: float, size: int, rng: np.random.Generator) -> Curve:
    """Synthesise an accompaniment: the song's chords from `first_bar` on as plucked tones over a bass, at RMS 1.

    Args:
        tonic: MIDI note.
    Shape: [size] at 24 kHz.
    """
    bar_size = int(BAR_BEATS * song.beat * RATE)
    time = np.arange(bar_size) / RATE
    pluck = np.exp(-(time % (2 * song.beat)) / 0.5) + 0.25
    brightness = rng.uniform(0.35, 0.6)
    total = np.zeros(size + bar_size)
    for bar in range(-(-size // bar_size)):
        chord = song.chords[(first_bar + bar) % len(song.chords)]
        for semitones, gain in [(chord[0] - 12, 1.0), *((note, 0.6) for note in chord)]:
            hertz = 440.0 * 2.0 ** ((tonic % 12 + 48 + semitones - 69) / 12)
            for harmonic in range(1, 6):
                tone = np.sin(2 * np.pi * harmonic * hertz * time + rng.uniform(0, 6.28))
                total[bar * bar_size : (bar + 1) * bar_size] += gain * brightness ** (harmonic - 1) * tone * pluck
    total = total[:size]
    return np.asarray(total / (np.sqrt(np.mean(total**2)) + 1e-12))


def ktv(voice: Curve, music: Curve, rng: np.random.Generator) -> Curve:
    """Record in a KTV room: microphone response, slight compression, echo, reverberation, and the backing track.

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
    """Record as a vocal that was separated from an original: dry, with a faint, varying residue of the music.

    Shape: voice [T], music [T] at 24 kHz, both at RMS 1 -> [T].
    """
    knots = len(voice) // FLICKER_HOP + 2
    flicker = np.interp(np.arange(len(voice)) / FLICKER_HOP, np.arange(knots), rng.random(knots))
    bleed = 10 ** (rng.uniform(-36.0, -29.0) / 20) * _rms(voice)
    hiss = 10 ** (rng.uniform(-50.0, -42.0) / 20) * _rms(voice) * _hiss(len(voice), rng)
    return _cut(voice + bleed * flicker * music + hiss, rng.uniform(9500.0, 12000.0))


def _hiss(size: int, rng: np.random.Generator) -> Curve:
    """Noise of RMS 1 that falls by 3 dB per octave above 200 Hz, like room noise and separation residues."""
    bins = np.fft.rfftfreq(size, 1 / RATE)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) / np.sqrt(np.maximum(bins, 200.0)), size)
    return np.asarray(noise / _rms(noise))


def _cut(wave: Curve, hertz: float) -> Curve:
    """Low-pass filter at `hertz`, like an earlier lossy coding."""
    bins = np.fft.rfftfreq(len(wave), 1 / RATE)
    return np.asarray(np.fft.irfft(np.fft.rfft(wave) / np.sqrt(1 + (bins / hertz) ** 24), len(wave)))


def _compress(wave: Curve, strength: float) -> Curve:
    """Move the level of 40 ms towards its median by `strength`: 0 changes nothing, 1 makes it constant."""
    from scipy.ndimage import gaussian_filter1d

    level = np.sqrt(gaussian_filter1d(wave**2, 0.02 * RATE) + 1e-12)
    return np.asarray(wave * (np.median(level) / np.maximum(level, 0.05 * level.max())) ** strength)


def _convolve(wave: Curve, response: Curve) -> Curve:
    """Linear convolution, as long as `wave`."""
    size = 1 << (len(wave) + len(response) - 1).bit_length()
    return np.asarray(np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)[: len(wave)])


def _room_response(rng: np.random.Generator) -> Curve:
    """Impulse response of the reverberation: exponentially decaying noise that loses high frequencies, after a gap."""
    from scipy.ndimage import gaussian_filter1d

    seconds = rng.uniform(0.4, 0.9)  # time to fall by 60 dB
    time = np.arange(int(seconds * RATE)) / RATE
    noise = rng.standard_normal(len(time))
    dull = gaussian_filter1d(noise, 2.5) * 3.0
    mix = np.exp(-time / 0.15)
    tail = (mix * noise + (1 - mix) * dull) * 10 ** (-3.0 * time / seconds)
    return np.concatenate([np.zeros(int(0.012 * RATE)), tail])


def master(sung: Curve, *, lead: int, trail: int, level_db: float, crest_db: float, rng: np.random.Generator) -> Wave:
    """Finish a recording: add silence around the singing, and set level and peak exactly.

    The silence has the same noise floor in every domain, so that it does not reveal the source.

    Args:
        lead, trail: samples of silence.
        level_db: RMS of the whole recording, dB full scale.
        crest_db: peak above the RMS, dB.
    Shape: [T] at 24 kHz -> [lead + T + trail].
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
    """Attenuate the loudest parts smoothly until the peak is `crest_db` above the RMS.

    A wave with lower peaks is not changed.
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


def _rms(wave: Curve) -> float:
    return float(np.sqrt(np.mean(wave**2)) + 1e-12)
