"""Synthetic singers: what stays the same in a voice from one recording to the next."""

from dataclasses import asdict, dataclass

import numpy as np

# What makes a voice good in itself: (worst, best, weight) of each audible parameter. The weights sum to one.
TIMBRE = {
    "tilt": (-11.0, -4.0, 0.25),  # dB per octave of the voice source: dull -> brilliant
    "ring": (0.0, 15.0, 0.35),  # dB of the singer's formant near 3 kHz
    "breath": (-16.0, -38.0, 0.25),  # dB of breath noise beside the voice
    "rough": (0.35, 0.0, 0.15),  # share of subharmonics and uneven cycles
}
# Steps of the three-dimensional R-sequence (powers of the inverse of the root of x^4 = x + 1): the first n points fill
# the unit cube evenly for every n, so that quality, register and size stay unrelated however many singers are drawn.
R3 = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)
REGISTERS = ((45.0, 53.0, 0.94, 1.06), (57.0, 66.0, 1.10, 1.24))  # lowest, highest centre (MIDI), formant scales


@dataclass(frozen=True)
class Singer:
    """The timbre and the habits of one voice.

    Units: `centre` MIDI note; `tilt` dB per octave; `ring`, `breath`, `glottal` dB; `rough` 0-1; `vibrato_rate` Hz;
    `vibrato_depth` semitones; `glide` seconds. `tract` and `shape` multiply formant frequencies (1 is an adult male).
    """

    singer_id: str
    centre: float
    tract: float
    shape: tuple[float, ...]  # what is individual in F1 to F5
    bandwidth: float  # factor on formant bandwidths
    tilt: float
    ring: float
    breath: float
    rough: float
    glottal: float  # of the fundamental over its neighbours: pressed -> lax
    vibrato_rate: float
    vibrato_depth: float
    glide: float

    def parameters(self) -> tuple[float, ...]:
        """All that makes this voice, in the units above. Shape: [16]."""
        numbers = [value for name, value in asdict(self).items() if name not in ("singer_id", "shape")]
        return (*numbers[:2], *self.shape, *numbers[2:])


def timbre_quality(singer: Singer) -> float:
    """How good the voice itself is, 0 to 1, from tilt, ring, breath and roughness alone.

    It knows nothing of size, register, formants or vibrato, which are matters of identity.
    """
    parts = (w * (getattr(singer, name) - worst) / (best - worst) for name, (worst, best, w) in TIMBRE.items())
    return float(min(max(sum(parts), 0.0), 1.0))


def draw_singer(index: int, *, seed: int, singer_id: str) -> Singer:
    """Singer `index` of the choir `seed`; it does not depend on how many others are drawn.

    Over a choir's first n singers, for every n, timbre quality is spread evenly over 0 to 1, half of the voices are
    low and half high, and neither tells the other.
    """
    start = np.random.default_rng([seed, 101]).random(3)
    target, register, size = (start + np.array(R3) * (index + 1)) % 1.0
    rng = np.random.default_rng([seed, 102, index])
    low, high, small, large = REGISTERS[int(register >= 0.5)]
    place = register * 2 % 1
    return Singer(
        singer_id=singer_id,
        centre=float(low + (high - low) * place),
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
    """Parameters whose weighted goodness is `target`, each voice with its own strong and weak sides."""
    weights = np.array([weight for _, _, weight in TIMBRE.values()])
    sway = rng.uniform(-1.0, 1.0, len(weights))
    sway -= (sway * weights).sum()
    goodness = target + 0.6 * min(target, 1.0 - target) * sway / max(1.0, float(np.abs(sway).max()))
    return {
        name: float(worst + (best - worst) * good)
        for (name, (worst, best, _)), good in zip(TIMBRE.items(), goodness, strict=True)
    }
