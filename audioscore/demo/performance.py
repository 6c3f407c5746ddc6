"""Singers, the faults of a performance, and the control curves of a phrase that a singer sings with these faults."""

from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from audioscore.demo.melody import TimedNote

EMPHASIS = 0.55  # standard deviation of the log exponents: how much the faults of a clip differ in strength


@dataclass(frozen=True)
class Faults:
    """Strength of each fault of one performance, 0 (absent) to 1 (worst)."""

    intonation: float  # notes off pitch, drift over the phrase, scooping
    stability: float  # wandering and jittering pitch
    vibrato: float  # missing or wild
    timing: float  # notes early or late
    breath: float  # air in the voice
    rough: float  # uneven cycles and subharmonics
    dynamics: float  # no dynamic shape, random accents
    wild_vibrato: bool  # whether a faulty vibrato is too strong or missing

    def levels(self) -> tuple[float, ...]:
        """Return the seven strengths, and the vibrato's again, negative if it is missing. Shape: [8]."""
        strengths = tuple(getattr(self, field.name) for field in fields(self) if field.name != "wild_vibrato")
        return (*strengths, self.vibrato if self.wild_vibrato else -self.vibrato)


def draw_faults(quality: float, rng: np.random.Generator) -> Faults:
    """Draw the faults of a performance of `quality` 0 to 1; the dominant ones differ from clip to clip.

    Every strength is `(1 - quality) ** e` with a random e > 0: 0 at quality 1, 1 at quality 0, and decreasing.

    >>> draw_faults(1.0, np.random.default_rng(0)).rough
    0.0
    """
    names = [field.name for field in fields(Faults) if field.name != "wild_vibrato"]
    strengths = (1.0 - quality) ** np.exp(EMPHASIS * rng.standard_normal(len(names)))
    wild = bool(rng.random() < 0.5)
    return Faults(**{name: float(value) for name, value in zip(names, strengths, strict=True)}, wild_vibrato=wild)


# Timbre quality: (worst, best, weight) of each parameter of the voice. The weights sum to one.
TIMBRE = {
    "tilt": (-11.0, -4.0, 0.25),  # dB per octave of the voice source: dull to brilliant
    "ring": (0.0, 15.0, 0.35),  # dB of the singer's formant near 3 kHz
    "breath": (-16.0, -38.0, 0.25),  # dB of breath noise relative to the voice
    "rough": (0.35, 0.0, 0.15),  # share of subharmonics and uneven cycles
}
# Steps of the three-dimensional R-sequence (powers of the inverse of the root of x^4 = x + 1): the first n points fill
# the unit cube evenly for every n, so that quality, register and size stay unrelated however many singers are drawn.
R3 = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)
REGISTERS = ((45.0, 53.0, 0.94, 1.06), (57.0, 66.0, 1.10, 1.24))  # lowest, highest centre (MIDI), formant scales


@dataclass(frozen=True)
class Singer:
    """The parameters of one voice.

    Units: `centre` MIDI note; `tilt` dB per octave; `ring`, `breath`, `glottal` dB; `rough` 0-1; `vibrato_rate` Hz;
    `vibrato_depth` semitones; `glide` seconds. `tract` and `shape` multiply formant frequencies (1 is an adult male).
    """

    singer_id: str
    centre: float
    tract: float
    shape: tuple[float, ...]  # individual factors on F1 to F5
    bandwidth: float  # factor on formant bandwidths
    tilt: float
    ring: float
    breath: float
    rough: float
    glottal: float  # level of the fundamental over its neighbours: pressed to lax
    vibrato_rate: float
    vibrato_depth: float
    glide: float

    def parameters(self) -> tuple[float, ...]:
        """Return all parameters of this voice, in the units above. Shape: [16]."""
        values = [value for name, value in asdict(self).items() if name not in ("singer_id", "shape")]
        return (*values[:2], *self.shape, *values[2:])


def timbre_quality(singer: Singer) -> float:
    """Compute the quality of the voice, 0 to 1, from tilt, ring, breath and roughness.

    Size, register, formants and vibrato describe the identity of a voice and have no effect.
    """
    parts = (w * (getattr(singer, name) - worst) / (best - worst) for name, (worst, best, w) in TIMBRE.items())
    return float(min(max(sum(parts), 0.0), 1.0))


def draw_singer(index: int, *, seed: int, singer_id: str) -> Singer:
    """Draw singer `index` of the choir `seed`; it does not depend on the number of singers.

    Over the first n singers of a choir, for every n, timbre quality is spread evenly over 0 to 1, half of the voices
    are low and half high, and quality and register are independent.
    """
    start = np.random.default_rng([seed, 101]).random(3)
    target, register, size = (start + np.array(R3) * (index + 1)) % 1.0
    rng = np.random.default_rng([seed, 102, index])
    low, high, small, large = REGISTERS[int(register >= 0.5)]
    position = register * 2 % 1
    return Singer(
        singer_id=singer_id,
        centre=float(low + (high - low) * position),
        tract=float(small + (large - small) * size),
        shape=tuple(float(x) for x in rng.normal(1.0, 0.035, 5).clip(0.9, 1.1)),
        bandwidth=float(rng.uniform(0.8, 1.4)),
        glottal=float(rng.uniform(-3.0, 7.0)),
        vibrato_rate=float(rng.uniform(4.8, 6.6)),
        vibrato_depth=float(rng.uniform(0.35, 0.65)),
        glide=float(rng.uniform(0.015, 0.04)),
        **_timbre(float(target), rng),
    )


def _timbre(target: float, rng: np.random.Generator) -> dict[str, float]:
    """Draw parameters whose weighted quality is `target`, with different strengths and weaknesses for each voice."""
    weights = np.array([weight for _, _, weight in TIMBRE.values()])
    deviation = rng.uniform(-1.0, 1.0, len(weights))
    deviation -= (deviation * weights).sum()
    qualities = target + 0.6 * min(target, 1.0 - target) * deviation / max(1.0, float(np.abs(deviation).max()))
    return {
        name: float(worst + (best - worst) * quality)
        for (name, (worst, best, _)), quality in zip(TIMBRE.items(), qualities, strict=True)
    }


Curve = NDArray[np.float64]

CONTROL_HZ = 200  # curves have one value per 5 ms
# F1 to F3 in Hz of an adult male's vowels. Source: Peterson and Barney, JASA 24 (1952), table II.
FORMANTS = {
    "a": (730.0, 1090.0, 2440.0),
    "e": (530.0, 1840.0, 2480.0),
    "i": (270.0, 2290.0, 3010.0),
    "o": (570.0, 840.0, 2410.0),
    "u": (300.0, 870.0, 2240.0),
    "er": (490.0, 1350.0, 1690.0),
    "nasal": (280.0, 1100.0, 2200.0),
}
NOISES = ("s", "sh", "burst", "inhale")
# Duration in seconds, and level of the voice in dB meanwhile. Closures stay well above silence, so that the words do
# not change a recording's share of silence.
ONSET_SHAPE = {
    "none": (0.0, 0.0),
    "nasal": (0.07, -7.0),
    "plosive": (0.04, -17.0),
    "s": (0.09, -16.0),
    "sh": (0.09, -16.0),
}
NOISE_DB = {"s": -12.0, "sh": -11.0, "burst": -9.0, "inhale": -17.0}  # relative to the voice
INHALE_SECONDS = 0.2


@dataclass(frozen=True)
class Controls:
    """Control curves of the voice, one value per 5 ms.

    Shape: pitch [F] in MIDI notes; gain [F] linear; formants [F, 3] in Hz of an adult male; noise [4, F] linear, rows
    as in NOISES. `air` is dB of breath noise relative to the voice, `rough` 0-1.
    """

    pitch: Curve
    gain: Curve
    formants: Curve
    noise: Curve
    air: float
    rough: float


def perform(
    phrase: list[TimedNote], tonic: float, singer: Singer, faults: Faults, rng: np.random.Generator
) -> Controls:
    """Return the control curves of a phrase; `tonic` is a MIDI note."""
    frames = round(phrase[-1].end * CONTROL_HZ)
    time = np.arange(frames) / CONTROL_HZ
    edges = _note_edges(phrase, faults, rng)
    index = (np.searchsorted(edges, time, side="right") - 1).clip(0, len(phrase) - 1)
    since, length = time - edges[index], np.diff(edges)[index]
    pitch = _pitch(phrase, tonic, index, since, length, singer, faults, rng)
    gain_db = _dynamics(index, since, length, time, faults, rng)
    formants, consonant_db, noise = _words(phrase, edges, index, since, time)
    air = 10.0 * np.log10(10 ** (singer.breath / 10) + 10 ** ((-42.0 + 29.0 * faults.breath) / 10))
    rough = min(1.0, singer.rough + 0.5 * faults.rough)
    return Controls(pitch, 10 ** ((gain_db + consonant_db) / 20), formants, noise, float(air), rough)


def _note_edges(phrase: list[TimedNote], faults: Faults, rng: np.random.Generator) -> Curve:
    """Note boundaries in seconds, [notes + 1]. Timing faults move only inner ones, so that silence does not change."""
    edges = np.array([note.start for note in phrase] + [phrase[-1].end])
    limit = 0.42 * np.minimum(np.diff(edges)[:-1], np.diff(edges)[1:])
    slips = rng.normal(0.0, 0.004 + 0.11 * faults.timing, len(limit))
    edges[1:-1] += np.clip(slips, -limit, limit)
    return edges


def _pitch(
    phrase: list[TimedNote],
    tonic: float,
    index: NDArray[np.intp],
    since: Curve,
    length: Curve,
    singer: Singer,
    faults: Faults,
    rng: np.random.Generator,
) -> Curve:
    """Pitch in MIDI notes: targets and their errors, glides, vibrato, drift, wander and jitter."""
    from scipy.ndimage import gaussian_filter1d

    frames = len(index)
    targets = tonic + np.array([float(note.note.pitch) for note in phrase])
    errors = rng.normal(0.0, 0.05 + 0.75 * faults.intonation, len(phrase))
    steps = (targets + errors)[index] - 2.2 * faults.intonation * np.exp(-since / 0.07)
    glide = gaussian_filter1d(steps, singer.glide * CONTROL_HZ, mode="nearest")
    drift = rng.choice((-1.0, 1.0)) * 0.8 * faults.intonation * np.linspace(-0.5, 1.0, frames)
    wander = _slow_noise(frames, 3.0, rng) * (0.04 + 0.55 * faults.stability)
    jitter = rng.standard_normal(frames) * (0.015 + 0.14 * faults.stability)
    return np.asarray(glide + drift + wander + jitter + _vibrato(since, length, singer, faults, rng))


def _vibrato(since: Curve, length: Curve, singer: Singer, faults: Faults, rng: np.random.Generator) -> Curve:
    """Vibrato in semitones, starting 0.12 s into a note; the worst is missing, or wide and uneven."""
    grow = np.clip((since - 0.12) / 0.2, 0.0, 1.0) * (length > 0.3)
    wobble = _slow_noise(len(since), 1.5, rng)
    if faults.wild_vibrato:
        rate = singer.vibrato_rate * (1.0 + faults.vibrato * (0.3 * wobble - 0.15))
        depth = singer.vibrato_depth + 1.5 * faults.vibrato * (1.0 + 0.4 * wobble)
    else:
        rate = singer.vibrato_rate * (1.0 + 0.02 * wobble)
        depth = np.full(len(since), singer.vibrato_depth * (1.0 - faults.vibrato))
    phase = 2 * np.pi * np.cumsum(rate) / CONTROL_HZ + rng.uniform(0, 2 * np.pi)
    return np.asarray(depth * grow * np.sin(phase))


def _dynamics(
    index: NDArray[np.intp], since: Curve, length: Curve, time: Curve, faults: Faults, rng: np.random.Generator
) -> Curve:
    """Level in dB: phrase and notes rise and fall, or, with faults, are flat with random accents."""
    arch = 7.0 * (np.sin(np.pi * (time / time[-1]) ** 1.2) - 0.6)
    bloom = 4.0 * (np.sin(np.pi * np.clip(since / length, 0, 1)) - 0.6) * np.minimum(length / 0.6, 1.0)
    accents = rng.normal(0.0, 2.5, int(index.max()) + 1)[index]
    attack = -10.0 * np.exp(-since / 0.02)
    return np.asarray((1.0 - faults.dynamics) * (arch + bloom) + faults.dynamics * accents + attack)


def _words(
    phrase: list[TimedNote], edges: Curve, index: NDArray[np.intp], since: Curve, time: Curve
) -> tuple[Curve, Curve, Curve]:
    """Vowels and consonants: formants [F, 3] in Hz, level of the voice [F] in dB, noise gains [4, F]."""
    from scipy.ndimage import gaussian_filter1d

    formants = np.array([FORMANTS[note.note.vowel] for note in phrase])[index]
    level, noise = np.zeros(len(time)), np.zeros((len(NOISES), len(time)))
    for number, timed in enumerate(phrase):
        onset, start = timed.note.onset, edges[number]
        seconds, drop = ONSET_SHAPE[onset]
        active = (time >= start) & (time < start + seconds)
        level[active] = drop
        if onset == "nasal":
            formants[active] = FORMANTS["nasal"]
        elif onset in NOISES:
            noise[NOISES.index(onset), active] = 10 ** (NOISE_DB[onset] / 20)
        elif onset == "plosive":
            burst = (time >= start + seconds) & (time < start + seconds + 0.02)
            noise[NOISES.index("burst"), burst] = 10 ** (NOISE_DB["burst"] / 20)
        if timed.note.breath and number > 0:
            inhale = (time >= start - INHALE_SECONDS) & (time < start)
            level[inhale] = -20.0
            noise[NOISES.index("inhale"), inhale] = 10 ** (NOISE_DB["inhale"] / 20)
    smooth = gaussian_filter1d(np.log(formants), 0.02 * CONTROL_HZ, axis=0, mode="nearest")
    return (
        np.exp(smooth),
        gaussian_filter1d(level, 0.006 * CONTROL_HZ, mode="nearest"),
        gaussian_filter1d(noise, 0.006 * CONTROL_HZ, axis=1, mode="nearest"),
    )


def _slow_noise(frames: int, cutoff: float, rng: np.random.Generator) -> Curve:
    """Smooth Gaussian noise of unit variance with little above `cutoff` Hz."""
    from scipy.ndimage import gaussian_filter1d

    width = CONTROL_HZ / (2 * np.pi * cutoff)
    noise = gaussian_filter1d(rng.standard_normal(frames + 2 * CONTROL_HZ), width)[CONTROL_HZ:-CONTROL_HZ]
    return np.asarray(noise * np.sqrt(2 * np.sqrt(np.pi) * width))
