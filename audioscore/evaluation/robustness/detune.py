"""One sung note out of tune: a short voiced stretch at another pitch, in its place and of its length.

The stretch is read a little too fast or too slowly. What it thereby runs ahead or falls behind is made up by a step of
one period of the voice, where the wave goes on as if nothing had happened: no moment moves by more than a period, and
the stretch ends in phase with what follows. Formants move with the pitch, by 6 % for a semitone.

Source: pitch-synchronous splicing as in W. Verhelst and M. Roelands, WSOLA (1993), at a constant speed between splices.
"""

import numpy as np
from numpy.typing import NDArray

from audioscore.data.acoustics import voiced_share
from audioscore.data.audio import Wave
from audioscore.errors import AudioError, UsageError

Array = NDArray[np.float64]

STRETCH_SECONDS = 0.35  # at least so much is detuned, and then up to the end of the period it stands in
VOICED_SECONDS = 0.6  # in which a voice must be heard
ROOM_SECONDS = 1.1  # from the start of the stretch to the end of the recording
HOP_SECONDS = 0.1  # between the starts that are tried
TRIES = 200  # of the loudest starts: a recording without a voice is not searched for minutes
VOICED = 0.8  # share of the loud frames that are periodic
LOWEST_HZ, HIGHEST_HZ = 70.0, 1_000.0
LONGEST_SECONDS = 0.7  # without a splice: a quarter of a semitone gains one period of 98 Hz in this time
WINDOW_SECONDS = 0.02  # over which the two sides of a splice must be alike
ALIKE = 0.9  # of the best likeness; the shortest step that reaches it is a period, and not two
FADE_SECONDS = 0.005  # from one side of a splice to the other
HALF_TAPS = 24  # of the interpolating sinc
SMALLEST_CENTS, LARGEST_CENTS = 10.0, 200.0  # below, no period is gained in time; above, formants move too far


def detune(wave: Wave, rate: int, cents: float, seed: int = 0) -> Wave:
    """The recording with its loudest voiced stretch detuned, sharp or flat as `seed` decides; the rest is as it was.

    Shape: wave [T] at `rate` Hz -> [T]. Raises AudioError where nobody sings for long enough, UsageError for cents that
    are not 10 to 200.
    """
    if not SMALLEST_CENTS <= cents <= LARGEST_CENTS:
        raise UsageError(f"a note is detuned by {SMALLEST_CENTS:g} to {LARGEST_CENTS:g} cents; got {cents:g}.")
    sharp = bool(np.random.default_rng(seed).integers(2))
    ratio = 2.0 ** ((cents if sharp else -cents) / 1200)
    start = voiced_stretch(wave, rate)
    source, changed = wave.astype(np.float64), wave.copy()
    fade = max(1, round(FADE_SECONDS * rate))
    ramp = (np.arange(fade) + 0.5) / fade
    place = start
    carried = source[start : start + fade]  # what the segment before gives beyond its end
    while place - start < STRETCH_SECONDS * rate:
        end = place + _segment(source, rate, place, ratio)
        heard = _interpolate(source, place + ratio * np.arange(end - place + fade), 1.0 / max(1.0, ratio))
        heard[:fade] = (1 - ramp) * carried + ramp * heard[:fade]
        changed[place:end], carried = heard[: end - place], heard[end - place :]
        place = end
    changed[place : place + fade] = (1 - ramp) * carried + ramp * source[place : place + fade]
    return changed


def voiced_stretch(wave: Wave, rate: int) -> int:
    """The first sample of the loudest stretch in which a voice is heard, with room before and after it.

    Shape: wave [T] at `rate` Hz. Raises AudioError where there is none.
    """
    length, lead = round(VOICED_SECONDS * rate), round(rate / LOWEST_HZ) + round(WINDOW_SECONDS * rate)
    starts = np.arange(lead, len(wave) - round(ROOM_SECONDS * rate) + 1, max(1, round(HOP_SECONDS * rate)))
    sums = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    energies = sums[starts + length] - sums[starts]
    for start in starts[np.argsort(-energies, kind="stable")][:TRIES]:
        if voiced_share(wave[start : start + length], rate) >= VOICED:
            return int(start)
    raise AudioError(
        f"no voice is heard for {VOICED_SECONDS:g} s on end in {len(wave) / rate:.2f} s: there is no note to detune."
    )


def _segment(source: Array, rate: int, place: int, ratio: float) -> int:
    """Samples from `place` on after which reading at `ratio` is one period off, so that it can step back unheard."""
    drift = abs(ratio - 1.0)
    lags = np.arange(round(rate / HIGHEST_HZ), round(min(rate / LOWEST_HZ, LONGEST_SECONDS * rate * drift)) + 1)
    ends = np.round(lags / drift).astype(np.int64)
    half = round(WINDOW_SECONDS * rate / 2)
    around = np.arange(-half, half)
    here = source[(place + ends)[:, None] + around]
    there = source[(place + ends + (lags if ratio > 1 else -lags))[:, None] + around]
    norms = np.sqrt((here**2).sum(axis=1) * (there**2).sum(axis=1))
    alike = (here * there).sum(axis=1) / np.maximum(norms, 1e-12)
    peaks = np.flatnonzero((alike[1:-1] >= alike[:-2]) & (alike[1:-1] >= alike[2:])) + 1
    good = peaks[alike[peaks] >= ALIKE * alike.max()]
    if not len(good):
        return int(ends[alike.argmax()])
    # Between samples: at 700 Hz and 24 kHz, half a sample at each step would be two cents.
    left, top, right = alike[good[0] - 1 : good[0] + 2]
    bend = left - 2 * top + right
    between = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return round((float(lags[good[0]]) + between) / drift)


def _interpolate(source: Array, positions: Array, cut: float) -> Array:
    """The wave between its samples, by a windowed sinc; `cut` 1 keeps all of its band, less keeps that share.

    Shape: source [T], positions [M] in samples -> [M].
    """
    first = np.floor(positions).astype(np.int64)
    nodes = first[:, None] + np.arange(1 - HALF_TAPS, HALF_TAPS + 1)
    away = positions[:, None] - nodes
    weights = cut * np.sinc(cut * away) * np.cos(np.pi * away / (2 * HALF_TAPS + 2)) ** 2
    made: Array = np.einsum("mt,mt->m", source[np.clip(nodes, 0, len(source) - 1)], weights)
    return made
