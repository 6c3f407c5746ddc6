"""Check recordings on disk: hash, decode and measure them in parallel, with cached measurements."""

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

from audioscore.data.audio import check_file, decode
from audioscore.data.audio_checks import (
    MEASUREMENT_VERSION,
    AudioLimits,
    AudioMeasurements,
    Finding,
    findings,
    measure_recording,
)
from audioscore.data.fingerprint import fingerprint
from audioscore.data.measurement_cache import CachedMeasurement, MeasurementCache
from audioscore.data.spelling import path_on_disk
from audioscore.data.versions.dvc import is_dvc_link
from audioscore.errors import AudioError, DataError, shorten
from audioscore.files import sha256_of

MIN_FOR_WORKERS = 24  # recordings; for fewer, starting processes takes longer than measuring in this process
CHUNK = 8  # recordings sent to a worker at once

Progress = Callable[[int, int], None]  # (recordings done, recordings in total)


@dataclass(frozen=True)
class CheckedRecording:
    """The result for one file: measurements, broken rules, SHA-256 and size; or `error`, why it cannot be decoded."""

    measurements: AudioMeasurements | None = None
    sha256: str | None = None
    bytes: int | None = None
    error: str | None = None
    fingerprint: builtins.bytes | None = None
    findings: tuple[Finding, ...] = ()


def audio_path(folder: Path, audio_file: str) -> Path:
    """Return the path of a recording named in a table: absolute, or inside the table's folder.

    The check keeps a delivered table from reading files elsewhere on the machine.

    Raises:
        AudioError: The name is a URI, or a relative name that leaves the folder, by `..` or by a link to elsewhere
            than the DVC cache of the folder's repository.
    """
    from audioscore.data.transfer.locate import check_file_name

    if "://" in audio_file:
        raise AudioError(f"{audio_file}: is a link, not a file. Download the recording into the data folder first.")
    check_file_name(audio_file)
    path = path_on_disk(folder, audio_file)
    if not Path(audio_file).is_absolute() and "\0" not in audio_file:
        # realpath does not raise for circular links, as Path.resolve does; check_file reports them better.
        inside, target = os.path.realpath(folder), os.path.realpath(path)
        if not Path(target).is_relative_to(inside) and not is_dvc_link(path, inside):
            raise AudioError(
                f"{audio_file}: is outside the data folder. Move the recording into it, or use an absolute path."
            )
    return path


def check_recording(
    audio_file: str, folder: Path, limits: AudioLimits, cache: MeasurementCache | None = None
) -> CheckedRecording:
    """Hash, decode and measure one recording; errors are returned, not raised, and do not contain the path.

    If `cache` has measurements of the same bytes, the file is not decoded.
    """
    return _check(audio_file, folder, limits, cache)[0]


def check_recordings(
    audio_files: Sequence[str],
    folder: Path,
    limits: AudioLimits,
    workers: int | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> list[CheckedRecording]:
    """Check recordings in parallel and return the results in order.

    Processes are used because decoding runs Python code for each frame: two threads took longer than one.

    Args:
        workers: Processes; by default one per core.
        cache: Database file of the measurement cache; created if missing. If it is unusable, a warning is logged and
            every recording is decoded.
    """
    checked: list[CheckedRecording] = []
    with MeasurementCache(cache, MEASUREMENT_VERSION) as entries:

        def keep(results: list[tuple[CheckedRecording, CachedMeasurement | None]]) -> None:
            entries.put([entry for _, entry in results if entry])
            for one, _ in results:
                checked.append(one)
                if progress:
                    progress(len(checked), len(audio_files))

        workers = min(workers or os.cpu_count() or 1, -(-len(audio_files) // CHUNK))
        if workers <= 1 or len(audio_files) < MIN_FOR_WORKERS:
            for name in audio_files:
                keep([_check(name, folder, limits, entries)])
        else:
            _check_in_processes(audio_files, folder, limits, workers, entries.path, keep)
    return checked


def start_workers(count: int) -> ProcessPoolExecutor:
    """Start a pool of spawned processes, which end when this process is killed.

    Forking is unsafe: a process with threads (of torch or Arrow) can hang after it.
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


def _check(
    audio_file: str, folder: Path, limits: AudioLimits, cache: MeasurementCache | None
) -> tuple[CheckedRecording, CachedMeasurement | None]:
    """The result, and the cache entry to store if the recording was measured now."""
    try:
        path = audio_path(folder, audio_file)
        check_file(path, str(path))
        before = path.stat()
        sha256 = sha256_of(path)
        # The suffix is part of the key: FFmpeg uses it to choose among formats that look alike.
        key = sha256 + path.suffix.lower()
        cached = _from_entry(cache.get(key) if cache else None)
        fresh = _measure(path, key) if cached is None else None
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return CheckedRecording(error="changed while it was read. Try again when its transfer has ended."), None
        checked = cached or _from_entry(fresh) or CheckedRecording()
        found = tuple(findings(checked.measurements, limits)) if checked.measurements else ()
        return replace(checked, sha256=sha256, bytes=after.st_size, findings=found), fresh
    except AudioError as error:
        reason = str(error).removeprefix(f"{folder / audio_file}: ").removeprefix(f"{audio_file}: ")
        return CheckedRecording(error=reason), None
    except OSError as error:
        return CheckedRecording(error=f"cannot be read ({error.strerror or error}). Check its permissions."), None


def _measure(path: Path, key: str) -> CachedMeasurement:
    """The cache entry of a recording. Raises AudioError for read errors, which may be temporary."""
    try:
        recording = decode(path)
    except AudioError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return CachedMeasurement(key, json.dumps({"fault": str(error).removeprefix(f"{path}: ")}), None)
    measured = json.dumps({"probe": asdict(measure_recording(recording))}, allow_nan=False)
    return CachedMeasurement(key, measured, fingerprint(recording))


def _from_entry(entry: CachedMeasurement | None) -> CheckedRecording | None:
    """The measurements or the error in a cache entry; None without an entry, or if it is damaged."""
    if entry is None:
        return None
    try:
        stored = json.loads(entry.measured)
        if "fault" in stored:
            return CheckedRecording(error=str(stored["fault"]))
        return CheckedRecording(AudioMeasurements(**stored["probe"]), fingerprint=entry.fingerprint)
    except (ValueError, TypeError, KeyError):
        return None


def _check_in_processes(
    audio_files: Sequence[str],
    folder: Path,
    limits: AudioLimits,
    workers: int,
    cache: Path | None,
    keep: Callable[[list[tuple[CheckedRecording, CachedMeasurement | None]]], None],
) -> None:
    chunks = [audio_files[start : start + CHUNK] for start in range(0, len(audio_files), CHUNK)]
    done = 0
    try:
        with start_workers(workers) as pool:
            for results in pool.map(partial(_check_chunk, folder=folder, limits=limits, cache=cache), chunks):
                keep(results)
                done += len(results)
    except BrokenProcessPool as error:
        near = shorten(list(audio_files[done : done + workers * CHUNK]))
        raise DataError(
            f"worker process: ended after {done} of {len(audio_files)} recordings, at one of {near} or because memory "
            f"ran out. Try one worker; a script that starts several needs `if __name__ == '__main__':`."
        ) from error


def _check_chunk(
    audio_files: Sequence[str], folder: Path, limits: AudioLimits, cache: Path | None
) -> list[tuple[CheckedRecording, CachedMeasurement | None]]:
    with MeasurementCache(cache, MEASUREMENT_VERSION, reads_only=True) as entries:
        return [_check(name, folder, limits, entries) for name in audio_files]
