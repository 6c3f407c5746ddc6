"""What can go wrong in a performance, graded by its quality."""

from dataclasses import dataclass, fields

import numpy as np

EMPHASIS = 0.55  # spread of the log exponents: how far a clip's faults differ from one another


@dataclass(frozen=True)
class Faults:
    """How strong each fault of one performance is, 0 (absent) to 1 (as bad as it gets)."""

    intonation: float  # notes off pitch, drift over the phrase, scooping
    stability: float  # wandering and jittering pitch
    vibrato: float  # missing or wild
    timing: float  # notes early or late
    breath: float  # air in the voice
    rough: float  # uneven cycles and subharmonics
    dynamics: float  # no phrase shape, random accents
    wild_vibrato: bool  # which way the vibrato goes wrong

    def levels(self) -> tuple[float, ...]:
        """The seven strengths, and that of the vibrato once more, below 0 where it is missing. Shape: [8]."""
        strengths = tuple(getattr(self, field.name) for field in fields(self) if field.name != "wild_vibrato")
        return (*strengths, self.vibrato if self.wild_vibrato else -self.vibrato)


def draw_faults(quality: float, rng: np.random.Generator) -> Faults:
    """Faults of a performance of `quality` 0 to 1; which of them dominate differs from clip to clip.

    Every severity is `(1 - quality) ** e` with a random e > 0: none at 1, all of them at 0, and for one draw of the
    emphasis each falls as quality rises.

    >>> draw_faults(1.0, np.random.default_rng(0)).rough
    0.0
    """
    names = [field.name for field in fields(Faults) if field.name != "wild_vibrato"]
    exponents = np.exp(EMPHASIS * rng.standard_normal(len(names)))
    severities = (1.0 - quality) ** exponents
    wild = bool(rng.random() < 0.5)
    return Faults(**{name: float(value) for name, value in zip(names, severities, strict=True)}, wild_vibrato=wild)
