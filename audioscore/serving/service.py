"""The service without HTTP: admission, the current model, and scoring recordings of all requests in batches."""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from audioscore.errors import AudioError, ModelError
from audioscore.scoring.input import DecodedClip, InputRecording
from audioscore.scoring.results import ClipScore
from audioscore.scoring.scorer import Scorer
from audioscore.serving.metrics import Metrics, ServiceSettings
from audioscore.serving.model import ServedModel, trial_clip

BATCH_CLIPS, BATCH_SECONDS = 32, 120.0  # limits of one batch, unless a single recording is longer
WAITING_SECONDS = 600.0  # decoded audio that may wait: about 160 kB per second
LONGEST_RETRY = 60  # s


class Service:
    """State of one service. Only decoding and scoring run outside of the event loop's thread."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings)
        self.model: ServedModel | None = None
        self.stopping = False
        self.failure: Exception | None = None  # why the first model could not be loaded
        self.in_flight = 0
        self._batcher = Batcher(self.metrics)
        self._pool = ThreadPoolExecutor(settings.processes, thread_name_prefix="decode")
        self._decoding = asyncio.Semaphore(settings.processes)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Score requests inside of the block; at its end, close the decoding processes of the model."""
        scoring = asyncio.create_task(self._batcher.run())
        try:
            yield
        finally:
            scoring.cancel()
            self._batcher.close()
            self._pool.shutdown(wait=False, cancel_futures=True)
            if self.model is not None and not self.in_flight:  # closing waits until decoding ends
                await asyncio.to_thread(self.model.decoder.close)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as in progress, from its headers to its response; check `full` before."""
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    @property
    def full(self) -> bool:
        return self.in_flight >= self.settings.queue

    @property
    def retry_seconds(self) -> int:
        """Expected time until half of the requests in progress are done."""
        return min(LONGEST_RETRY, max(1, math.ceil(self.in_flight / 2 * self._batcher.clip_seconds)))

    async def score(self, uploads: Sequence[InputRecording], *, timeline: bool) -> tuple[ServedModel, list[ClipScore]]:
        """Score all uploads with one model, in order. A model must be loaded, and the source of an upload be a path."""
        model = self.model
        assert model is not None
        model.users += 1
        try:
            rows = await asyncio.gather(*(self._score_upload(model, upload, timeline) for upload in uploads))
        finally:
            model.users -= 1
            await self._close_if_unused(model)
        for row in rows:
            self.metrics.count_result(row)
        return model, rows

    async def use(self, model: ServedModel) -> None:
        """Switch to `model`; requests in progress finish with the previous model.

        Raises ModelError, and keeps the previous model, if the new one fails to score a test clip.
        """
        reference = model.reference
        try:
            result = await self._batcher.score(model.scorer, trial_clip(model.scorer))
            if result.error is not None:
                raise ModelError(result.error)
        except Exception as error:  # no error of a new model may stop the previous one
            await asyncio.to_thread(model.decoder.close)
            raise ModelError(
                f"{reference.uri} version {reference.version}: fails to score a test clip ({error}). Serve another."
            ) from error
        before, self.model = self.model, model
        self.metrics.set_model(reference.name, reference.version, reference.uri)
        if before is not None:
            before.retired = True
            await self._close_if_unused(before)

    async def _close_if_unused(self, model: ServedModel) -> None:
        if model.retired and model.users == 0:
            model.retired = False  # close only once
            await asyncio.to_thread(model.decoder.close)

    async def _score_upload(self, model: ServedModel, upload: InputRecording, timeline: bool) -> ClipScore:
        async with self._decoding:
            await self._batcher.wait_for_capacity()
            try:
                clip = await asyncio.get_running_loop().run_in_executor(self._pool, model.decode, upload)
            except AudioError as error:
                return ClipScore(upload.file, error=str(error))
        assert isinstance(upload.source, Path)
        upload.source.unlink(missing_ok=True)  # free the disk before scoring
        return replace(await self._batcher.score(model.scorer, clip, timeline=timeline), file=upload.file)


@dataclass(frozen=True)
class _Item:
    scorer: Scorer
    clip: DecodedClip
    timeline: bool
    result: "asyncio.Future[ClipScore]"


class Batcher:
    """Dynamic batching: waiting recordings of all requests are scored together, in one thread, batch after batch."""

    def __init__(self, metrics: Metrics) -> None:
        self.clip_seconds = 1.0  # moving average of the scoring time per recording
        self._metrics = metrics
        self._waiting: deque[_Item] = deque()
        self._seconds = 0.0
        self._added, self._removed = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")

    async def wait_for_capacity(self) -> None:
        """Wait until another recording may be decoded."""
        while self._seconds >= WAITING_SECONDS:
            self._removed.clear()
            await self._removed.wait()

    async def score(self, scorer: Scorer, clip: DecodedClip, *, timeline: bool = False) -> ClipScore:
        """Queue one recording and wait for its result. A task that is cancelled while waiting is not scored."""
        item = _Item(scorer, clip, timeline, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._count(clip.seconds)
        self._added.set()
        return await item.result

    async def run(self) -> None:
        """Score waiting recordings until cancelled."""
        while True:
            await self._added.wait()
            batch = self._next()
            if batch:
                await self._score(batch)
            if not self._waiting:
                self._added.clear()

    def close(self) -> None:
        """Start no further batch."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> list[_Item]:
        """The first waiting recording and those after it that fit into the same call, in order."""
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
            if not item.result.done():
                batch.append(item)
                seconds += item.clip.seconds
        self._removed.set()
        return batch

    async def _score(self, batch: list[_Item]) -> None:
        started = time.perf_counter()
        clips, first = [item.clip for item in batch], batch[0]
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: first.scorer.score_batch(clips, timeline=first.timeline)
            )
        except Exception as error:  # these requests fail with 500, and the service continues
            for item in batch:
                if not item.result.done():
                    item.result.set_exception(error)
            return
        for item, result in zip(batch, results, strict=True):
            if not item.result.done():
                item.result.set_result(result)
        took = time.perf_counter() - started
        self.clip_seconds += 0.1 * (took / len(batch) - self.clip_seconds)
        self._metrics.count_batch(len(batch), sum(clip.seconds for clip in clips), took)

    def _count(self, seconds: float) -> None:
        self._seconds += seconds
        self._metrics.waiting_clips.set(len(self._waiting))
        self._metrics.waiting_seconds.set(max(self._seconds, 0.0))
