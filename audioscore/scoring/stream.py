"""Many recordings as a stream: decoded ahead in parallel, scored together, told in order."""

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
from audioscore.errors import AudioError, AudioscoreError, describe_os_error
from audioscore.scoring.input import DecodedClip, Ears, Limits, Source, Take, named, take_in
from audioscore.scoring.results import Answer, ClipScore

# What waits, decoded, for its turn: a bound on memory (about 160 kB a second), and enough to find equal lengths in.
AHEAD_CLIPS, AHEAD_SECONDS = 32, 600.0
BATCH_SECONDS = 240.0  # scored together at most, but for one recording that is longer

Decode = Callable[[Take], DecodedClip]
Score = Callable[[Sequence[DecodedClip]], Sequence[Answer]]
Waiting = deque[tuple[Take, "Future[DecodedClip]"]]


def score_stream(decode: Decode, score: Score, sources: Iterable[Source | Take]) -> Iterator[ClipScore]:
    """A row for each source, in their order, as soon as it is known; sources are read as their turn comes."""
    takes = (named(source, place) for place, source in zip(count(), sources, strict=False))
    waiting: Waiting = deque()
    pool = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
    try:
        while _fill(waiting, takes, decode, pool):
            yield from _score_first(waiting, score)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fill(waiting: Waiting, takes: Iterator[Take], decode: Decode, pool: ThreadPoolExecutor) -> bool:
    """Start as much decoding as may wait; False once nothing is left."""
    while len(waiting) < AHEAD_CLIPS and _seconds(waiting) < AHEAD_SECONDS:
        take = next(takes, None)
        if take is None:
            break
        waiting.append((take, pool.submit(decode, take)))
    return bool(waiting)


def _seconds(waiting: Waiting) -> float:
    done = (future for _, future in waiting if future.done() and not future.exception())
    return sum(future.result().seconds for future in done)


def _score_first(waiting: Waiting, score: Score) -> list[ClipScore]:
    """Rows of the first recordings, one a core waited for, and of those after them that are decoded and fit beside."""
    rows: list[ClipScore] = []
    clips: list[DecodedClip] = []
    places: list[int] = []
    seconds = 0.0
    while waiting and (len(clips) < cores() or waiting[0][1].done()):
        take, future = waiting[0]
        try:
            clip = future.result()
        except AudioError as fault:
            rows.append(ClipScore(take.file, error=str(fault)))
        except OSError as fault:  # it vanished between two looks at it, or the disk is full
            rows.append(ClipScore(take.file, error=describe_os_error(fault)))
        else:
            if clips and seconds + clip.seconds > BATCH_SECONDS:
                break
            places.append(len(rows))
            rows.append(ClipScore(take.file))
            clips.append(clip)
            seconds += clip.seconds
        waiting.popleft()
    for place, answer in zip(places, score(clips), strict=True):
        rows[place] = _row(rows[place].file, answer)
    return rows


def _row(file: str, answer: Answer) -> ClipScore:
    return ClipScore(file, error=str(answer)) if isinstance(answer, AudioscoreError) else ClipScore.of(file, answer)


@dataclass
class _Worker:
    process: Any
    line: Connection


class GuardedDecoder:
    """Takes recordings in, as many at once as it has processes, each for `seconds` at most. Threads may share it.

    Close it, or use it as a context manager. Takes must be of paths, bytes or samples.
    """

    def __init__(self, ears: Ears, limits: Limits, *, seconds: float = 30.0, processes: int = 1) -> None:
        self._ears, self._limits, self._seconds = ears, limits, seconds
        self._context = multiprocessing.get_context("spawn")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._count = processes
        for _ in range(processes):
            self._idle.put(self._start())

    def __call__(self, take: Take) -> DecodedClip:
        """Take one recording in, as `take_in` does; also AudioError where it takes too long, or ends its process."""
        worker = self._idle.get()
        try:
            worker.line.send(take)
            if not worker.line.poll(self._seconds):
                worker = self._replace(worker)
                raise AudioError(f"{take.file}: is not decoded after {self._seconds:g} s. Export it again.")
            answer = worker.line.recv()
        except (EOFError, OSError) as fault:
            worker = self._replace(worker)
            raise AudioError(f"{take.file}: ends the process that decodes it. Export it again.") from fault
        finally:
            self._idle.put(worker)
        if isinstance(answer, str):
            raise AudioError(answer)
        clip: DecodedClip = answer
        return clip

    def close(self) -> None:
        """End the processes, once those that are busy are done."""
        for _ in range(self._count):
            self._end(self._idle.get())
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._ears, self._limits), daemon=True)
        # Ctrl-C reaches every process of a terminal's group: when these end is for the one that uses them to say. The
        # tracker, which start() would begin, lets the signal through again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        ours.recv()  # its imports shall not count as decoding
        return _Worker(process, ours)

    def _replace(self, worker: _Worker) -> _Worker:
        self._end(worker)
        return self._start()

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.line.close()


def _serve(line: Connection, ears: Ears, limits: Limits) -> None:
    """What a process does: answers each take with its clip, or the sentence saying why there is none."""
    line.send(None)
    while True:
        try:
            take = line.recv()
        except EOFError:
            return
        try:
            line.send(take_in(take, ears, limits))
        except AudioError as fault:
            line.send(str(fault))
