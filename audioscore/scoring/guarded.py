"""Recordings taken in by processes of their own: what hangs or crashes one of them hurts that recording alone.

For services, which are sent files by strangers. Processes are spawned: a script that uses this needs
`if __name__ == "__main__":`.
"""

import multiprocessing
import queue
import signal
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Self

from audioscore.errors import AudioError
from audioscore.scoring.input import DecodedClip, Ears, Limits, Take, take_in


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
