import asyncio
from pathlib import Path
from typing import Any

from audioscore.serving.service import Service
from audioscore.serving.settings import Settings
from audioscore.serving.uploads import Upload


def test_what_was_begun_with_a_model_is_finished_with_it(a_model: Any, tmp_path: Path, wait: Any) -> None:
    """The old model's processes end only once its last request is through."""
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


def test_when_to_come_back_is_between_a_second_and_a_minute() -> None:
    service = Service(Settings(queue=3))
    assert service.retry_seconds == 1
    assert not service.full
    service.in_flight = 3
    assert service.retry_seconds == 2
    assert service.full
    service.in_flight = 10_000
    assert service.retry_seconds == 60
