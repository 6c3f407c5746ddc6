"""Measurements of a recording that need no model, and the rules that decide whether it can be scored.

Training and scoring both use these rules, so they refuse the same recordings. Decoding errors are not rules: a file
that cannot be decoded is always rejected.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from audioscore.data.acoustics import clipping_share, measure_levels, measure_spectrum, voiced_share
from audioscore.data.audio import Recording
from audioscore.data.fingerprint import FINGERPRINT_VERSION

# Increase it whenever the same bytes would give other measurements or another error: it invalidates cached entries.
MEASUREMENT_VERSION = f"3.{FINGERPRINT_VERSION}"

Severity = Literal["error", "warning", "off"]  # rejects the clip, or fails the gate | is listed | is not checked

# The rules of the data gate, with the severity that each has unless the configuration sets another.
CLIP_RULES: dict[str, Severity] = {
    "too_short": "error",
    "too_long": "error",
    "silent": "error",
    "nearly_silent": "error",
    "clipped": "error",
    "phase_cancelled": "error",
    "changed_content": "error",
    "dc_offset": "warning",
    "narrow_band": "warning",
    "no_voice": "warning",
    "incomplete_audio": "warning",
    "near_duplicate": "warning",
}

TABLE_RULES: dict[str, Severity] = {
    "unusual_score": "warning",
    "no_singer": "warning",
    "no_source": "warning",
    "few_clips": "error",
    "few_per_source": "error",
    "few_per_band": "error",
    "few_singers": "error",
    "few_per_singer": "error",
    "distribution_shift": "warning",
}

RULES: dict[str, Severity] = {**CLIP_RULES, **TABLE_RULES}


class Finding(NamedTuple):
    """One rule that a recording, a row or a table breaks, and the reason with its figures, without a file name."""

    rule: str
    reason: str


@dataclass(frozen=True)
class AudioMeasurements:
    """Measurements of one recording.

    `level_db`: RMS about the mean, dB relative to full scale (a full-scale sine gives -3.01), at least FLOOR_DB.
    `peak`: the largest absolute sample. `silence_share`: share of 20 ms frames below SILENT_DB, or
    SILENT_BELOW_LOUD_DB below the loudest 1 % of frames. `snr_db`: level difference between loud and quiet frames, a
    blind estimate of the signal-to-noise ratio. `clipping_share`: share of samples in runs of at least RAIL_RUN
    samples with a magnitude of RAIL or more. `dc_offset`: mean sample. `bandwidth_hz`: upper end of the occupied
    spectrum. `harmonics_to_noise_db`: level of the loud frames over the noise floor between their harmonics.
    `voiced_share`: share of loud frames that are periodic at vocal pitches. `mono_loss_db`: level lost when the
    channels were averaged. `notes`: one sentence for each part of the file that was not decoded as declared.
    """

    seconds: float
    rate: int
    level_db: float
    peak: float
    silence_share: float
    snr_db: float
    clipping_share: float
    dc_offset: float
    bandwidth_hz: float
    harmonics_to_noise_db: float
    voiced_share: float
    mono_loss_db: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))  # a list in measurements that were stored as JSON


BAND_SHARE = 0.45  # of the sample rate: resamplers leave the last tenth of the spectrum empty

# Beyond these limits a recording is scored with a note, since no model is validated there. Measured on the demo corpus
# (docs/LOG.md): its clips have at least 9.6 kHz and 3 to 19 % of silence; one in 30 has a harmonics-to-noise ratio
# below 11 dB, and none of these an SNR below 20 dB. With white noise of 10 dB, 98 % have both.
MIN_SCORED_BANDWIDTH_HZ = 7_000.0  # whatever the rate of the file
MAX_SCORED_SILENCE_SHARE = 0.4
MIN_HARMONICS_TO_NOISE_DB = 11.0  # alone, a bass voice without noise has less
MIN_SNR_DB = 20.0  # alone, a voice without pauses has less


@dataclass(frozen=True)
class AudioLimits:
    """The limits within which a recording can be scored; `findings` lists what is outside them."""

    min_seconds: float = 1.0
    max_seconds: float = 3600.0
    min_level_db: float = -60.0
    max_silence_share: float = 0.95
    max_clipping_share: float = 0.2
    max_dc_offset: float = 0.02  # of full scale; sound cards leave less than 0.005
    # Two channels with a correlation below -0.94. Uncorrelated channels lose 3 dB (two channels) or 8 dB (six).
    min_mono_loss_db: float = -15.0
    # A recording made at 16 kHz ends at 8 kHz, at any later sample rate; codecs at the rates used for music (AAC at
    # 48 kb/s, MP3 at 64) keep 10 kHz and more, and sung consonants reach that far. A file whose rate does not allow
    # more is expected to fill BAND_SHARE of it.
    min_bandwidth_hz: float = 8_100.0
    min_voiced_share: float = 0.15  # noise and clicks give less than 0.1, the roughest singing 0.6


def measure_recording(recording: Recording) -> AudioMeasurements:
    """Measure a decoded recording, before any model runs on it.

    Polarity does not matter: -wave gives the same measurements, except for the sign of `dc_offset`.

    >>> import numpy as np
    >>> tone = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000).astype(np.float32) / 2
    >>> measured = measure_recording(Recording(tone, 24_000))
    >>> round(measured.level_db, 2), measured.silence_share, measured.clipping_share
    (-9.03, 0.0, 0.0)
    """
    wave, rate = recording.wave, recording.rate
    mean = float(wave.mean(dtype="float64")) if len(wave) else 0.0
    levels, spectrum = measure_levels(wave, rate, mean), measure_spectrum(wave, rate)
    return AudioMeasurements(
        seconds=recording.seconds,
        rate=rate,
        level_db=levels.level_db,
        peak=float(max(wave.max(), -wave.min())) if len(wave) else 0.0,
        silence_share=levels.silence_share,
        snr_db=levels.snr_db,
        clipping_share=clipping_share(wave),
        dc_offset=mean,
        bandwidth_hz=spectrum.bandwidth_hz,
        harmonics_to_noise_db=spectrum.harmonics_to_noise_db,
        voiced_share=voiced_share(wave, rate),
        mono_loss_db=recording.mono_loss_db,
        notes=recording.notes,
    )


# serving/page/refusals.js translates these reasons: it matches their first words and figures.
def findings(measured: AudioMeasurements, limits: AudioLimits | None = None) -> list[Finding]:
    """List every rule that a recording breaks, with its figures; the reasons contain no file name.

    The rules apply to what was measured once, so other limits do not require decoding the file again.
    """
    limits = limits or AudioLimits()
    seconds, reasons = measured.seconds, dict[str, str]()
    if seconds < limits.min_seconds:
        reasons["too_short"] = (
            f"too short: {seconds:.2f} s; at least {limits.min_seconds:g} s is required. Record more."
        )
    if seconds > limits.max_seconds:
        reasons["too_long"] = f"too long: {seconds:.0f} s; at most {limits.max_seconds:g} s is accepted. Cut it."
    if measured.mono_loss_db < limits.min_mono_loss_db:  # before "silent", which cancelled channels may also be
        reasons["phase_cancelled"] = (
            f"phase-cancelled: averaging its channels changes the level by {measured.mono_loss_db:.1f} dB, below "
            f"{limits.min_mono_loss_db:g}, because one is the inverse of the other. Export one of them."
        )
    if measured.level_db < limits.min_level_db:
        reasons["silent"] = (
            f"silent: its level is {measured.level_db:.1f} dBFS, below {limits.min_level_db:g}. "
            f"Check the microphone, or export it louder."
        )
    if measured.silence_share > limits.max_silence_share:
        reasons["nearly_silent"] = (
            f"nearly silent: {measured.silence_share:.1%} of it is silence, above {limits.max_silence_share:.0%}. "
            f"Cut it to the part with singing."
        )
    if measured.clipping_share > limits.max_clipping_share:
        reasons["clipped"] = (
            f"clipped: {measured.clipping_share:.0%} of its samples are at full scale, above "
            f"{limits.max_clipping_share:.0%}. Record it at a lower level."
        )
    if "silent" not in reasons:  # the spectrum and the voiced share of a silent recording mean nothing
        reasons |= _content_reasons(measured, limits)
    if measured.notes:
        reasons["incomplete_audio"] = " ".join(measured.notes)
    return [Finding(rule, reason) for rule, reason in reasons.items()]


def rejection_reason(measured: AudioMeasurements, limits: AudioLimits | None = None) -> str | None:
    """Return why a recording cannot be scored: its first finding that is an error by default, else None."""
    return next((one.reason for one in findings(measured, limits) if RULES[one.rule] == "error"), None)


def scoring_notes(measured: AudioMeasurements) -> tuple[str, ...]:
    """Return what lies outside of what models are validated on, one sentence each, for a recording that is scored."""
    notes = {one.rule: one.reason for one in findings(measured) if RULES[one.rule] == "warning"}
    notes.pop("incomplete_audio", None)  # measured.notes has its parts
    if measured.bandwidth_hz < MIN_SCORED_BANDWIDTH_HZ:
        notes.setdefault("narrow_band", _narrow_band(measured, MIN_SCORED_BANDWIDTH_HZ))
    if measured.silence_share > MAX_SCORED_SILENCE_SHARE:
        notes["silence"] = (
            f"much silence: {measured.silence_share:.0%} of it is silence, above {MAX_SCORED_SILENCE_SHARE:.0%}. "
            f"Cut it to the part with singing."
        )
    if measured.harmonics_to_noise_db < MIN_HARMONICS_TO_NOISE_DB and measured.snr_db < MIN_SNR_DB:
        notes["noise"] = (
            f"much noise: a signal-to-noise ratio of {measured.harmonics_to_noise_db:.0f} dB, below "
            f"{MIN_HARMONICS_TO_NOISE_DB:g} dB. Record it with less noise and no accompaniment."
        )
    return (*notes.values(), *measured.notes)


def _narrow_band(measured: AudioMeasurements, expected: float) -> str:
    return (
        f"narrow band: no signal above {measured.bandwidth_hz:.0f} Hz in a file of {measured.rate} Hz, and "
        f"{expected:.0f} Hz are expected. Use the original recording."
    )


def _content_reasons(measured: AudioMeasurements, limits: AudioLimits) -> dict[str, str]:
    reasons = {}
    if abs(measured.dc_offset) > limits.max_dc_offset:
        reasons["dc_offset"] = (
            f"DC offset: the mean of its samples is {measured.dc_offset:+.3f} of full scale, beyond "
            f"{limits.max_dc_offset:g}. Remove the offset."
        )
    expected = min(limits.min_bandwidth_hz, BAND_SHARE * measured.rate)
    if measured.bandwidth_hz < expected:
        reasons["narrow_band"] = _narrow_band(measured, expected)
    if measured.voiced_share < limits.min_voiced_share:
        reasons["no_voice"] = (
            f"no voice: {measured.voiced_share:.0%} of the loud parts have a pitch, below "
            f"{limits.min_voiced_share:.0%}. Check that it contains singing."
        )
    return reasons
