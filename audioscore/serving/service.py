"""The service without HTTP: who is let in, which model scores, and how an upload becomes rows."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from audioscore.errors import AudioError, AudioscoreError, ModelError
from audioscore.scoring.results import ClipScore
from audioscore.serving.batcher import Batcher
from audioscore.serving.metrics import Metrics, Settings
from audioscore.serving.model import ServedModel, trial_clip
from audioscore.serving.uploads import Upload

LONGEST_RETRY = 60  # s


class Service:
    """State of one service. Everything but decoding and scoring happens in the event loop's thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings)
        self.model: ServedModel | None = None
        self.stopping = False
        self.failure: Exception | None = None  # why there never was a model
        self.in_flight = 0
        self._batcher = Batcher(self.metrics)
        self._pool = ThreadPoolExecutor(settings.processes, thread_name_prefix="decode")
        self._decoding = asyncio.Semaphore(settings.processes)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Score what comes; at the end close the model's processes."""
        scoring = asyncio.create_task(self._batcher.run())
        try:
            yield
        finally:
            scoring.cancel()
            self._batcher.close()
            self._pool.shutdown(wait=False, cancel_futures=True)
            if self.model is not None and not self.in_flight:  # closing waits for what is being decoded
                await asyncio.to_thread(self.model.decoder.close)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the house, from a request's headers to its answer; ask `full` before."""
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
        """When half of those in the house should be through."""
        return min(LONGEST_RETRY, max(1, math.ceil(self.in_flight / 2 * self._batcher.clip_seconds)))

    async def score(self, uploads: Sequence[Upload], *, timeline: bool) -> tuple[ServedModel, list[ClipScore]]:
        """Rows of all uploads, in their order, by one model; the model must be there."""
        model = self.model
        assert model is not None
        model.users += 1
        try:
            rows = await asyncio.gather(*(self._row(model, upload, timeline) for upload in uploads))
        finally:
            model.users -= 1
            await self._close_if_done(model)
        for row in rows:
            self.metrics.result(row)
        return model, rows

    async def use(self, model: ServedModel) -> None:
        """Score what comes from now on with `model`; what was begun with another is finished with that.

        Raises ModelError, and keeps the other, where a trial shows that it cannot score.
        """
        try:
            answer = await self._batcher.score(model.scorer, trial_clip(model.scorer))
            if isinstance(answer, AudioscoreError):
                raise answer
        except Exception as fault:  # whatever is wrong with a new model must not stop the old one
            await asyncio.to_thread(model.decoder.close)
            raise ModelError(f"{model.uri} version {model.version}: fails a trial ({fault}).") from fault
        before, self.model = self.model, model
        self.metrics.model(model.name, model.version, model.uri)
        if before is not None:
            before.retired = True
            await self._close_if_done(before)

    async def _close_if_done(self, model: ServedModel) -> None:
        if model.retired and model.users == 0:
            model.retired = False  # once
            await asyncio.to_thread(model.decoder.close)

    async def _row(self, model: ServedModel, upload: Upload, timeline: bool) -> ClipScore:
        async with self._decoding:
            await self._batcher.room()
            try:
                clip = await asyncio.get_running_loop().run_in_executor(self._pool, model.decode, upload)
            except AudioError as fault:
                return ClipScore(upload.file, error=str(fault))
        upload.path.unlink(missing_ok=True)  # the disk is free again before the scores are there
        answer = await self._batcher.score(model.scorer, clip, timeline=timeline)
        if isinstance(answer, AudioscoreError):
            return ClipScore(upload.file, error=str(answer))
        return ClipScore.of(upload.file, answer)
