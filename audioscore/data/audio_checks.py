"""What can be measured of a recording before any model hears it, and when it must not be scored.

Training and scoring refuse the same recordings, because both ask here.
"""

import builtins
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from audioscore.data.acoustics import bandwidth, clipping_share, measure_levels, voiced_share
from audioscore.data.audio import Recording, check_file, decode
from audioscore.data.fingerprint import FINGERPRINT_VERSION, fingerprint
from audioscore.data.measurement_cache import Entry, ProbeMemory
from audioscore.data.rules import RULES, Finding
from audioscore.errors import AudioError, DataError, shorten
from audioscore.files import sha256_of


def start_workers(count: int) -> ProcessPoolExecutor:
    """A pool of processes, spawned: forking a process with threads (torch's, Arrow's) can hang.

    Were the one that starts them killed, they would wait for its next word for ever.
    """
    spawned = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=spawned, initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Counts up whenever the same bytes would give other measurements or another fault: what is remembered is then stale.
PROBE_VERSION = f"2.{FINGERPRINT_VERSION}"
ALONE_BELOW = 24  # recordings; for fewer, starting processes takes longer than hearing them here
CHUNK = 8  # recordings handed to a process at once

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Probe:
    """Measurements of one recording.

    `level_db`: RMS about the mean, dB relative to full scale (a full-scale sine reads -3.01), at least FLOOR_DB.
    `peak`: the largest absolute sample. `silence_share`: share of 20 ms frames below SILENT_DB, or
    SILENT_BELOW_LOUD_DB under the loudest hundredth of frames. `snr_db`: loud frames above quiet ones, a blind estimate
    of the signal-to-noise ratio. `clipping_share`: share of samples within runs of
    RAIL_RUN or more at RAIL or beyond. `dc_offset`: mean sample. `bandwidth_hz`: up to where the spectrum carries
    something. `voiced_share`: share of loud frames that are periodic as a voice is. `mono_loss_db`: what averaging the
    channels cost.
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
    voiced_share: float
    mono_loss_db: float


@dataclass(frozen=True)
class ProbeLimits:
    """Where a recording stops being one that can be scored."""

    min_seconds: float = 1.0
    max_seconds: float = 3600.0
    min_level_db: float = -60.0
    max_silence_share: float = 0.95
    max_clipping_share: float = 0.2
    max_dc_offset: float = 0.02  # of full scale; sound cards leave less than 0.005
    # Two channels correlated at below -0.94. What has nothing in common loses 3 dB in two channels, 8 dB in six.
    min_mono_loss_db: float = -15.0
    # What was recorded at 16 kHz ends at 8 kHz whatever its rate is now; codecs at the rates used for music (AAC at
    # 48 kb/s, MP3 at 64) keep 10 kHz and more, and sung consonants reach that far.
    min_bandwidth_hz: float = 8_100.0
    min_voiced_share: float = 0.15  # noise and clicks read below 0.1, the roughest singing 0.6


@dataclass(frozen=True)
class Heard:
    """What one recording gave: measurements, the rules they break, and its bytes' hash and number; or, as `fault`, why
    it cannot be read or decoded at all.
    """

    probe: Probe | None = None
    sha256: str | None = None
    bytes: int | None = None
    fault: str | None = None
    fingerprint: builtins.bytes | None = None
    findings: tuple[Finding, ...] = ()


def probe(recording: Recording) -> Probe:
    """Measure a recording. The order of its samples' signs does not matter: -wave reads the same, but for dc_offset.

    >>> import numpy as np
    >>> tone = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000).astype(np.float32) / 2
    >>> measured = probe(Recording(tone, 24_000))
    >>> round(measured.level_db, 2), measured.silence_share, measured.clipping_share
    (-9.03, 0.0, 0.0)
    """
    wave, rate = recording.wave, recording.rate
    mean = float(wave.mean(dtype="float64")) if len(wave) else 0.0
    levels = measure_levels(wave, rate, mean)
    return Probe(
        seconds=recording.seconds,
        rate=rate,
        level_db=levels.level_db,
        peak=float(max(wave.max(), -wave.min())) if len(wave) else 0.0,
        silence_share=levels.silence_share,
        snr_db=levels.snr_db,
        clipping_share=clipping_share(wave),
        dc_offset=mean,
        bandwidth_hz=bandwidth(wave, rate),
        voiced_share=voiced_share(wave, rate),
        mono_loss_db=recording.mono_loss_db,
    )


def findings(probe: Probe, limits: ProbeLimits | None = None) -> list[Finding]:
    """Every rule that a recording breaks, with its figures. The sentences name no file."""
    limits = limits or ProbeLimits()
    found = [*_length_faults(probe, limits), *_level_faults(probe, limits)]
    # Of a recording in which nothing sounds, spectrum and voice say nothing.
    return found if any(one.rule == "silent" for one in found) else found + _content_faults(probe, limits)


def refusal(probe: Probe, limits: ProbeLimits | None = None) -> str | None:
    """One sentence saying why a recording cannot be scored, or None where it can: the first finding that weighs as an
    error. It names no file.
    """
    return next((one.reason for one in findings(probe, limits) if RULES[one.rule] == "error"), None)


def _length_faults(probe: Probe, limits: ProbeLimits) -> list[Finding]:
    found = []
    if probe.seconds < limits.min_seconds:
        said = f"too short: {probe.seconds:.2f} s, and at least {limits.min_seconds:g} s are needed; record more of it."
        found.append(Finding("too_short", said))
    if probe.seconds > limits.max_seconds:
        said = f"too long: {probe.seconds:.0f} s, and at most {limits.max_seconds:g} s are taken; cut it."
        found.append(Finding("too_long", said))
    return found


def _level_faults(probe: Probe, limits: ProbeLimits) -> list[Finding]:
    found = []
    if probe.mono_loss_db < limits.min_mono_loss_db:  # before the silence to which channels may cancel
        said = (
            f"phase-cancelled: its channels averaged are {probe.mono_loss_db:.1f} dB of what they are alone, below "
            f"{limits.min_mono_loss_db:g}; one is the other inverted: export one of them."
        )
        found.append(Finding("phase_cancelled", said))
    if probe.level_db < limits.min_level_db:
        said = (
            f"silent: its level is {probe.level_db:.1f} dBFS, below {limits.min_level_db:g}; "
            f"check the microphone, or export it louder."
        )
        found.append(Finding("silent", said))
    if probe.silence_share > limits.max_silence_share:
        said = (
            f"nearly silent: {probe.silence_share:.1%} of it is silence, above {limits.max_silence_share:.0%}; "
            f"cut it to the part that is sung."
        )
        found.append(Finding("nearly_silent", said))
    if probe.clipping_share > limits.max_clipping_share:
        said = (
            f"clipped: {probe.clipping_share:.0%} of its samples are at the rails, above "
            f"{limits.max_clipping_share:.0%}; record it at a lower level."
        )
        found.append(Finding("clipped", said))
    return found


def _content_faults(probe: Probe, limits: ProbeLimits) -> list[Finding]:
    found = []
    if abs(probe.dc_offset) > limits.max_dc_offset:
        said = (
            f"off centre: its samples average {probe.dc_offset:+.3f} of full scale, beyond {limits.max_dc_offset:g}; "
            f"remove the offset."
        )
        found.append(Finding("dc_offset", said))
    if probe.bandwidth_hz < limits.min_bandwidth_hz:
        said = (
            f"narrow band: nothing sounds above {probe.bandwidth_hz:.0f} Hz in a file of {probe.rate} Hz, and "
            f"{limits.min_bandwidth_hz:g} Hz are expected; look for the recording that it was made from."
        )
        found.append(Finding("narrow_band", said))
    if probe.voiced_share < limits.min_voiced_share:
        said = (
            f"no voice: {probe.voiced_share:.0%} of what is loud in it has a pitch, below "
            f"{limits.min_voiced_share:.0%}; check that somebody sings in it."
        )
        found.append(Finding("no_voice", said))
    return found


def audio_path(folder: Path, audio_file: str) -> Path:
    """Where a recording named by a table lies: absolute, or inside the table's folder.

    Raises AudioError, naming it, for a URI, and for a relative name that leads out of the folder, by `..` or by a link.
    """
    if "://" in audio_file:
        raise AudioError(f"{audio_file}: is a link, not a file. Download the recording into the data folder first.")
    path = folder / audio_file
    if not Path(audio_file).is_absolute() and "\0" not in audio_file:
        # realpath: Path.resolve raises where links lead in a circle, which check_file says better.
        inside, leads_to = os.path.realpath(folder), os.path.realpath(path)
        if os.path.commonpath([inside, leads_to]) != inside:
            raise AudioError(
                f"{audio_file}: leads out of the data folder. Put the recording into it, or name it by its full path."
            )
    return path


def hear(audio_file: str, folder: Path, limits: ProbeLimits, memory: ProbeMemory | None = None) -> Heard:
    """Hash, decode and probe one recording; whatever is wrong with it comes back as a sentence, without its path.

    What `memory` knows of the same bytes is not measured again.
    """
    return _hear(audio_file, folder, limits, memory)[0]


def _hear(audio_file: str, folder: Path, limits: ProbeLimits, memory: ProbeMemory | None) -> tuple[Heard, Entry | None]:
    """The recording as heard, and what is to be remembered of it where that is new."""
    try:
        path = audio_path(folder, audio_file)
        check_file(path, str(path))
        before = path.stat()
        sha256 = sha256_of(path)
        # With the suffix, by which FFmpeg chooses among formats that look alike.
        key = sha256 + path.suffix.lower()
        told = _recall(memory.get(key) if memory else None)
        fresh = _measure(path, key) if told is None else None
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return Heard(fault="changed while it was read. Try again when its transfer has ended."), None
        heard = told or _recall(fresh) or Heard()
        found = tuple(findings(heard.probe, limits)) if heard.probe else ()
        return replace(heard, sha256=sha256, bytes=after.st_size, findings=found), fresh
    except AudioError as fault:
        return Heard(fault=_without_path(fault, folder, audio_file)), None
    except OSError as fault:
        return Heard(fault=f"cannot be read ({fault.strerror or fault}). Check its permissions."), None


def _measure(path: Path, key: str) -> Entry:
    """What is to be remembered of a recording. AudioError where reading it failed, which may go well another time."""
    try:
        recording = decode(path)
    except AudioError as fault:
        if isinstance(fault.__cause__, OSError):
            raise
        return Entry(key, json.dumps({"fault": str(fault).removeprefix(f"{path}: ")}), None)
    return Entry(key, json.dumps({"probe": asdict(probe(recording))}, allow_nan=False), fingerprint(recording))


def _recall(entry: Entry | None) -> Heard | None:
    """The probe or fault in an entry; None for no entry, or one that was damaged."""
    if entry is None:
        return None
    try:
        told = json.loads(entry.measured)
        if "fault" in told:
            return Heard(fault=str(told["fault"]))
        return Heard(Probe(**told["probe"]), fingerprint=entry.fingerprint)
    except (ValueError, TypeError, KeyError):
        return None


def _without_path(fault: AudioError, folder: Path, audio_file: str) -> str:
    message = str(fault)
    for name in (str(folder / audio_file), audio_file):
        message = message.removeprefix(f"{name}: ")
    return message


def hear_all(
    audio_files: Sequence[str],
    folder: Path,
    limits: ProbeLimits,
    workers: int | None = None,
    progress: Progress | None = None,
    memory: Path | None = None,
) -> list[Heard]:
    """Hear recordings in parallel, in order. Processes, since decoding hands each short frame to Python: two threads
    took longer than one.

    `memory` is a database file in which measurements are kept by content; it is made where there is none, and where
    it cannot be used, that is logged and every recording is decoded.
    """
    heard: list[Heard] = []
    with ProbeMemory(memory, PROBE_VERSION) as known:

        def keep(ones: list[tuple[Heard, Entry | None]]) -> None:
            known.put([entry for _, entry in ones if entry])
            for one, _ in ones:
                heard.append(one)
                if progress:
                    progress(len(heard), len(audio_files))

        workers = min(workers or os.cpu_count() or 1, -(-len(audio_files) // CHUNK))
        if workers <= 1 or len(audio_files) < ALONE_BELOW:
            for name in audio_files:
                keep([_hear(name, folder, limits, known)])
        else:
            _hear_in_processes(audio_files, folder, limits, workers, known.path, keep)
    return heard


def _hear_in_processes(
    audio_files: Sequence[str],
    folder: Path,
    limits: ProbeLimits,
    workers: int,
    memory: Path | None,
    keep: Callable[[list[tuple[Heard, Entry | None]]], None],
) -> None:
    chunks = [audio_files[start : start + CHUNK] for start in range(0, len(audio_files), CHUNK)]
    done = 0
    try:
        with start_workers(workers) as pool:
            for ones in pool.map(partial(_hear_chunk, folder=folder, limits=limits, memory=memory), chunks):
                keep(ones)
                done += len(ones)
    except BrokenProcessPool as fault:
        near = shorten(list(audio_files[done : done + workers * CHUNK]))
        raise DataError(
            f"A process that hears recordings died after {done} of {len(audio_files)}, on one of {near} or for "
            f"want of memory. Try one worker; a script that starts several needs `if __name__ == '__main__':`."
        ) from fault


def _hear_chunk(
    audio_files: Sequence[str], folder: Path, limits: ProbeLimits, memory: Path | None
) -> list[tuple[Heard, Entry | None]]:
    with ProbeMemory(memory, PROBE_VERSION, reads_only=True) as known:
        return [_hear(name, folder, limits, known) for name in audio_files]
