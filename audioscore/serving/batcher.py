"""Dynamic batching: recordings of all requests that wait are scored together, one batch after the other."""

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from audioscore.scoring.input import DecodedClip
from audioscore.scoring.results import Answer
from audioscore.scoring.scorer import Scorer
from audioscore.serving.metrics import Metrics

BATCH_CLIPS, BATCH_SECONDS = 32, 120.0  # scored together at most, but for one recording that is longer
WAITING_SECONDS = 600.0  # decoded and waiting: about 160 kB a second


@dataclass(frozen=True)
class _Item:
    scorer: Scorer
    clip: DecodedClip
    timeline: bool
    answer: "asyncio.Future[Answer]"


class Batcher:
    """One thread that scores whatever waits. Everything but the scoring happens in the event loop's thread."""

    def __init__(self, metrics: Metrics) -> None:
        self.clip_seconds = 1.0  # a recording's share of recent batches' time
        self._metrics = metrics
        self._waiting: deque[_Item] = deque()
        self._seconds = 0.0
        self._came, self._went = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether a batch is being scored."""
        return self._busy

    async def room(self) -> None:
        """Wait until another recording may be decoded."""
        while self._seconds >= WAITING_SECONDS:
            self._went.clear()
            await self._went.wait()

    async def score(self, scorer: Scorer, clip: DecodedClip, *, timeline: bool = False) -> Answer:
        """The answer for one recording, once its turn came. Who is cancelled before that is left out."""
        item = _Item(scorer, clip, timeline, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._count(clip.seconds)
        self._came.set()
        return await item.answer

    async def run(self) -> None:
        """Score what comes, until cancelled."""
        while True:
            await self._came.wait()
            batch = self._next()
            if batch:
                await self._score(batch)
            if not self._waiting:
                self._came.clear()

    def close(self) -> None:
        """Start nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> list[_Item]:
        """The first that waits, and those behind it that one call can score with it, in their order."""
        batch: list[_Item] = []
        seconds = 0.0
        while self._waiting and len(batch) < BATCH_CLIPS:
            item = self._waiting[0]
            first = batch[0] if batch else item
            if item.scorer is not first.scorer or item.timeline != first.timeline:
                break
            if batch and seconds + item.clip.seconds > BATCH_SECONDS:
                break
            self._waiting.popleft()
            self._count(-item.clip.seconds)
            if not item.answer.done():
                batch.append(item)
                seconds += item.clip.seconds
        self._went.set()
        return batch

    async def _score(self, batch: list[_Item]) -> None:
        started, self._busy = time.perf_counter(), True
        clips, first = [item.clip for item in batch], batch[0]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: first.scorer.score_batch(clips, timeline=first.timeline)
            )
        except Exception as fault:  # a fault of ours: these requests answer 500, and the service goes on
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(fault)
            return
        finally:
            self._busy = False
        for item, answer in zip(batch, answers, strict=True):
            if not item.answer.done():
                item.answer.set_result(answer)
        took = time.perf_counter() - started
        self.clip_seconds += 0.1 * (took / len(batch) - self.clip_seconds)
        self._metrics.batch(len(batch), sum(clip.seconds for clip in clips), took)

    def _count(self, seconds: float) -> None:
        self._seconds += seconds
        self._metrics.waiting_clips.set(len(self._waiting))
        self._metrics.waiting_seconds.set(max(self._seconds, 0.0))
