import asyncio
from typing import Any

import pytest

from audioscore.serving import batcher
from audioscore.serving.batcher import Batcher
from audioscore.serving.metrics import Metrics, Settings


def scored(asked: list[tuple[Any, Any, bool]], cancel: int | None = None) -> list[Any]:
    """Score these at once; return the answers. One may be cancelled before its turn."""

    async def run() -> list[Any]:
        one = Batcher(Metrics(Settings()))
        waiting = [asyncio.create_task(one.score(scorer, clip, timeline=timeline)) for scorer, clip, timeline in asked]
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


def test_a_batch_is_of_one_model_one_kind_and_bounded(
    a_model: Any, a_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "BATCH_CLIPS", 3)
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


def test_cancelled_clips_are_left_out(a_model: Any, a_clip: Any) -> None:
    scorer = a_model().scorer
    answers = scored([(scorer, a_clip(1.0, f"c{n}"), False) for n in range(3)], cancel=1)
    assert scorer.batches == [(["c0", "c2"], False)]
    assert isinstance(answers[1], asyncio.CancelledError)


def test_a_fault_ends_its_batch_only(a_model: Any, a_clip: Any) -> None:
    broken, sound = a_model(fault=RuntimeError("no memory")).scorer, a_model().scorer
    answers = scored([(broken, a_clip(1.0), False), (sound, a_clip(1.0), False)])
    assert str(answers[0]) == "no memory"
    assert answers[1].score == 61.0


def test_decoding_waits_while_enough_is_decoded(a_model: Any, a_clip: Any, wait: Any) -> None:
    async def run() -> None:
        one, scorer = Batcher(Metrics(Settings())), a_model().scorer
        await one.room()
        full = asyncio.create_task(one.score(scorer, a_clip(700.0)))
        await asyncio.sleep(0)
        room = asyncio.create_task(one.room())
        await asyncio.sleep(0.02)
        assert not room.done()
        running = asyncio.create_task(one.run())
        await asyncio.gather(room, full)
        running.cancel()
        one.close()

    wait(run())
