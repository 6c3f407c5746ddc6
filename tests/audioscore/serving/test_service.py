import asyncio
from pathlib import Path
from typing import Any

import pytest

from audioscore.serving.metrics import Settings
from audioscore.serving.service import Service
from audioscore.serving.uploads import Upload


def test_a_replaced_model_finishes_its_requests_before_it_closes(a_model: Any, tmp_path: Path, wait: Any) -> None:
    (tmp_path / "1").write_text("2.0")
    old, new = a_model(1), a_model(2, base=80.0)

    async def run() -> None:
        service = Service(Settings())
        async with service.running():
            await service.use(old)
            begun = asyncio.create_task(service.score([Upload("a", tmp_path / "1")], timeline=False))
            await asyncio.sleep(0)
            await service.use(new)
            model, rows = await begun
            assert (model, rows[0].score) == (old, 62.0)
            assert old.decoder.closed
            assert not new.decoder.closed
            (tmp_path / "2").write_text("2.0")
            model, rows = await service.score([Upload("a", tmp_path / "2")], timeline=False)
            assert (model, rows[0].score) == (new, 82.0)
            assert not (tmp_path / "2").exists()

    wait(run())
    assert new.decoder.closed


@pytest.mark.parametrize(("in_flight", "seconds", "full"), [(0, 1, False), (3, 2, True), (10_000, 60, True)])
def test_the_retry_time_is_between_a_second_and_a_minute(in_flight: int, seconds: int, full: bool) -> None:
    service = Service(Settings(queue=3))
    service.in_flight = in_flight
    assert (service.retry_seconds, service.full) == (seconds, full)
