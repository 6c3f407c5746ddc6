"""Score many recordings as a stream: decode ahead in parallel, score in batches, and return results in order."""

import multiprocessing
import queue
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Self

from audioscore.encoders.compute import cores
from audioscore.errors import AudioError, describe_os_error
from audioscore.scoring.input import (
    DecodedClip,
    EncoderNeeds,
    InputLimits,
    InputRecording,
    Source,
    as_recording,
    prepare_recording,
)
from audioscore.scoring.results import ClipScore

# Limits of the decoded recordings that wait: they bound the memory (about 160 kB per second of audio), and are large
# enough to find recordings of equal length.
AHEAD_CLIPS, AHEAD_SECONDS = 32, 600.0
BATCH_SECONDS = 240.0  # of one batch, unless a single recording is longer

Decode = Callable[[InputRecording], DecodedClip]
Score = Callable[[Sequence[DecodedClip]], Sequence[ClipScore]]
Waiting = deque[tuple[InputRecording, "Future[DecodedClip]"]]


def score_stream(decode: Decode, score: Score, sources: Iterable[Source | InputRecording]) -> Iterator[ClipScore]:
    """Yield a result for each source, in order, as soon as it is available; sources are read lazily."""
    recordings = (as_recording(source, index) for index, source in zip(count(), sources, strict=False))
    waiting: Waiting = deque()
    pool = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
    try:
        while _fill(waiting, recordings, decode, pool):
            yield from _score_first(waiting, score)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fill(waiting: Waiting, recordings: Iterator[InputRecording], decode: Decode, pool: ThreadPoolExecutor) -> bool:
    """Start decoding up to the limits; False if nothing is left."""
    while len(waiting) < AHEAD_CLIPS and _seconds(waiting) < AHEAD_SECONDS:
        recording = next(recordings, None)
        if recording is None:
            break
        waiting.append((recording, pool.submit(decode, recording)))
    return bool(waiting)


def _seconds(waiting: Waiting) -> float:
    done = (future for _, future in waiting if future.done() and not future.exception())
    return sum(future.result().seconds for future in done)


def _score_first(waiting: Waiting, score: Score) -> list[ClipScore]:
    """Score the first recordings: wait for one per core, and add the following ones that are decoded and fit."""
    rows: list[ClipScore] = []
    clips: list[DecodedClip] = []
    positions: list[int] = []
    seconds = 0.0
    while waiting and (len(clips) < cores() or waiting[0][1].done()):
        recording, future = waiting[0]
        try:
            clip = future.result()
        except AudioError as error:
            rows.append(ClipScore(recording.file, error=str(error)))
        except OSError as error:  # the file was deleted meanwhile, or the disk is full
            rows.append(ClipScore(recording.file, error=describe_os_error(error)))
        else:
            if clips and seconds + clip.seconds > BATCH_SECONDS:
                break
            positions.append(len(rows))
            rows.append(ClipScore(recording.file))
            clips.append(clip)
            seconds += clip.seconds
        waiting.popleft()
    for position, result in zip(positions, score(clips), strict=True):
        rows[position] = result
    return rows


@dataclass
class _Worker:
    process: Any
    connection: Connection


class GuardedDecoder:
    """Prepare recordings in separate processes, so that a file that hangs or crashes a decoder is only an AudioError.

    Each recording may take `seconds`; `processes` recordings are decoded in parallel. Thread-safe. Close it, or use it
    as a context manager. The source of a recording must be picklable.
    """

    def __init__(self, needs: EncoderNeeds, limits: InputLimits, *, seconds: float = 30.0, processes: int = 1) -> None:
        self._needs, self._limits, self._seconds = needs, limits, seconds
        self._context = multiprocessing.get_context("spawn")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._count = processes
        for _ in range(processes):
            self._idle.put(self._start())

    def __call__(self, recording: InputRecording) -> DecodedClip:
        """Run `prepare_recording`; also raises AudioError if it takes too long or its process ends."""
        worker = self._idle.get()
        try:
            worker.connection.send(recording)
            if not worker.connection.poll(self._seconds):
                worker = self._replace(worker)
                raise AudioError(f"{recording.file}: decoding takes longer than {self._seconds:g} s. Export it again.")
            answer = worker.connection.recv()
        except (EOFError, OSError) as error:
            worker = self._replace(worker)
            raise AudioError(f"{recording.file}: the decoding process ended unexpectedly. Export it again.") from error
        finally:
            self._idle.put(worker)
        if isinstance(answer, str):
            raise AudioError(answer)
        clip: DecodedClip = answer
        return clip

    def close(self) -> None:
        """Wait for the processes that are busy, and end all of them."""
        for _ in range(self._count):
            self._end(self._idle.get())
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._needs, self._limits), daemon=True)
        # Ctrl-C is sent to all processes of a terminal, but the owner of the decoder ends its processes. The resource
        # tracker must run before, because start() would start it and unblock the signal.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        ours.recv()  # imports do not count as decoding time
        return _Worker(process, ours)

    def _replace(self, worker: _Worker) -> _Worker:
        self._end(worker)
        return self._start()

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def _serve(connection: Connection, needs: EncoderNeeds, limits: InputLimits) -> None:
    """Main loop of a process: answer each recording with its clip, or with the message of the AudioError."""
    connection.send(None)
    while True:
        try:
            recording = connection.recv()
        except EOFError:
            return
        try:
            connection.send(prepare_recording(recording, needs, limits))
        except AudioError as error:
            connection.send(str(error))
