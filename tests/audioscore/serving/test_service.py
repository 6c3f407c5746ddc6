import asyncio
from pathlib import Path
from typing import Any

import pytest

from audioscore.scoring.input import InputRecording
from audioscore.serving import service as service_module
from audioscore.serving.metrics import Metrics, ServiceSettings
from audioscore.serving.service import Batcher, Service


def test_a_replaced_model_finishes_its_requests_before_it_closes(a_model: Any, tmp_path: Path, wait: Any) -> None:
    (tmp_path / "1").write_text("2.0")
    old, new = a_model(1), a_model(2, base=80.0)

    async def run() -> None:
        service = Service(ServiceSettings())
        async with service.running():
            await service.use(old)
            begun = asyncio.create_task(service.score([InputRecording("a", tmp_path / "1")], timeline=False))
            await asyncio.sleep(0)
            await service.use(new)
            model, rows = await begun
            assert (model, rows[0].score) == (old, 62.0)
            assert old.decoder.closed
            assert not new.decoder.closed
            (tmp_path / "2").write_text("2.0")
            model, rows = await service.score([InputRecording("a", tmp_path / "2")], timeline=False)
            assert (model, rows[0].score) == (new, 82.0)
            assert not (tmp_path / "2").exists()

    wait(run())
    assert new.decoder.closed


@pytest.mark.parametrize(("in_flight", "seconds", "full"), [(0, 1, False), (3, 2, True), (10_000, 60, True)])
def test_the_retry_time_is_between_a_second_and_a_minute(in_flight: int, seconds: int, full: bool) -> None:
    service = Service(ServiceSettings(queue=3))
    service.in_flight = in_flight
    assert (service.retry_seconds, service.full) == (seconds, full)


def scored(requests: list[tuple[Any, Any, bool]], cancel: int | None = None) -> list[Any]:
    """Score these concurrently and return the results; `cancel` is the index of one that is cancelled before."""

    async def run() -> list[Any]:
        one = Batcher(Metrics(ServiceSettings()))
        waiting = [
            asyncio.create_task(one.score(scorer, clip, timeline=timeline)) for scorer, clip, timeline in requests
        ]
        await asyncio.sleep(0)
        if cancel is not None:
            waiting[cancel].cancel()
        running = asyncio.create_task(one.run())
        try:
            return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        finally:
            running.cancel()
            one.close()

    return asyncio.run(run())


def test_waiting_clips_are_scored_together_in_order(a_model: Any, a_clip: Any) -> None:
    scorer = a_model().scorer
    answers = scored([(scorer, a_clip(float(n), f"c{n}"), False) for n in range(1, 6)])
    assert scorer.batches == [(["c1", "c2", "c3", "c4", "c5"], False)]
    assert [answer.score for answer in answers] == [61.0, 62.0, 63.0, 64.0, 65.0]


def test_a_batch_has_one_model_one_kind_and_a_limit(a_model: Any, a_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "BATCH_CLIPS", 3)
    first, second = a_model().scorer, a_model(base=80.0).scorer
    asked = [
        *((first, a_clip(1.0, f"a{n}"), False) for n in range(4)),
        (second, a_clip(1.0, "b"), False),
        (first, a_clip(1.0, "c"), True),
        *((first, a_clip(70.0, f"d{n}"), False) for n in range(2)),
        (first, a_clip(900.0, "e"), False),
    ]
    answers = scored(asked)
    assert [names for names, _ in first.batches] == [["a0", "a1", "a2"], ["a3"], ["c"], ["d0"], ["d1"], ["e"]]
    assert [timeline for _, timeline in first.batches] == [False, False, True, False, False, False]
    assert answers[4].score == 81.0
    assert answers[5].timeline is not None
    assert answers[0].timeline is None


def test_cancelled_clips_are_not_scored(a_model: Any, a_clip: Any) -> None:
    scorer = a_model().scorer
    answers = scored([(scorer, a_clip(1.0, f"c{n}"), False) for n in range(3)], cancel=1)
    assert scorer.batches == [(["c0", "c2"], False)]
    assert isinstance(answers[1], asyncio.CancelledError)


def test_an_error_fails_only_its_batch(a_model: Any, a_clip: Any) -> None:
    broken, sound = a_model(error=RuntimeError("no memory")).scorer, a_model().scorer
    answers = scored([(broken, a_clip(1.0), False), (sound, a_clip(1.0), False)])
    assert str(answers[0]) == "no memory"
    assert answers[1].score == 61.0


def test_decoding_waits_at_the_limit_of_decoded_audio(a_model: Any, a_clip: Any, wait: Any) -> None:
    async def run() -> None:
        one, scorer = Batcher(Metrics(ServiceSettings())), a_model().scorer
        await one.wait_for_capacity()
        full = asyncio.create_task(one.score(scorer, a_clip(700.0)))
        await asyncio.sleep(0)
        capacity = asyncio.create_task(one.wait_for_capacity())
        await asyncio.sleep(0.02)
        assert not capacity.done()
        running = asyncio.create_task(one.run())
        await asyncio.gather(capacity, full)
        running.cancel()
        one.close()

    wait(run())
