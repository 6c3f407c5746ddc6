import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from audioscore.serving import app as app_module
from audioscore.serving.app import build_app
from audioscore.serving.service import Service
from audioscore.serving.settings import Settings

Ask = Callable[..., Awaitable[httpx.Response]]


def through(settings: Settings, model: Any, asking: Callable[[Ask, Service], Awaitable[None]]) -> Service:
    """A service with stand-ins, asked in process; a `model` of None is one that is still loading."""
    service_seen: list[Service] = []

    async def run() -> None:
        service = Service(settings)
        service_seen.append(service)
        service.model = model
        transport = httpx.ASGITransport(app=build_app(service))
        async with service.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def ask(method: str, path: str, **options: Any) -> httpx.Response:
                return await asyncio.wait_for(client.request(method, path, **options), 10)

            await asking(ask, service)

    asyncio.run(run())
    return service_seen[0]


def takes(*seconds: str) -> Any:
    return [("file", (f"take{number}.wav", text.encode())) for number, text in enumerate(seconds, start=1)]


def test_rows_come_in_the_order_of_the_parts(a_model: Any) -> None:
    async def asking(ask: Ask, _: Service) -> None:
        said = await ask("POST", "/score?timeline=true", files=takes("2.5", "noise", "1.25"))
        assert said.status_code == 200
        assert said.json() == {
            "model": {"name": "singers", "version": 1, "uri": "models:/singers@champion"},
            "results": [
                {
                    "file": "take1.wav", "score": 62.5, "interval": [50.0, 99.0], "raw": 0.123456789, "seconds": 2.5,
                    "error": None, "timeline": [{"start": 0.0, "end": 1.0, "score": 70.0}],
                },
                {
                    "file": "take2.wav", "score": None, "interval": None, "raw": None, "seconds": None,
                    "error": "the recording: cannot be decoded. Export it again.", "timeline": None,
                },
                {
                    "file": "take3.wav", "score": 61.25, "interval": [50.0, 99.0], "raw": 0.123456789, "seconds": 1.25,
                    "error": None, "timeline": [{"start": 0.0, "end": 1.0, "score": 70.0}],
                },
            ],
        }  # fmt: skip
        plain = await ask("POST", "/score", files=takes("2"))
        assert plain.json()["results"][0]["timeline"] is None
        figures = (await ask("GET", "/metrics")).text
        assert 'audioscore_recordings_total{outcome="scored"} 3.0' in figures
        assert 'audioscore_recordings_total{outcome="refused"} 1.0' in figures
        assert 'audioscore_requests_total{method="POST",path="/score",status="200"} 2.0' in figures

    service = through(Settings(), a_model(), asking)
    assert service.in_flight == 0
    assert service.model is not None
    assert service.model.users == 0
    assert service.model.decoder.closed


def test_requests_at_the_same_time_share_batches(a_model: Any) -> None:
    served = a_model()

    async def asking(ask: Ask, _: Service) -> None:
        answers = await asyncio.gather(*(ask("POST", "/score", files=takes(str(n))) for n in range(1, 9)))
        assert [answer.json()["results"][0]["score"] for answer in answers] == [60.0 + n for n in range(1, 9)]

    through(Settings(processes=8), served, asking)
    assert sum(len(names) for names, _ in served.scorer.batches) == 8
    assert len(served.scorer.batches) < 8


def test_who_is_not_let_in(a_model: Any) -> None:
    async def full(ask: Ask, service: Service) -> None:
        service.in_flight = 4
        said = await ask("POST", "/score", files=takes("1"))
        assert (said.status_code, said.json()) == (
            429, {"error": "4 requests are being scored, and no more fit. Try again later."},
        )  # fmt: skip
        assert 1 <= int(said.headers["retry-after"]) <= 60
        service.in_flight = 0
        service.stopping = True
        for method, path in (("POST", "/score"), ("GET", "/readyz"), ("GET", "/model")):
            said = await ask(method, path)
            assert (said.status_code, said.json()) == (503, {"error": "the service is stopping. Try again."})
        assert (await ask("GET", "/healthz")).json() == {"status": "ok"}

    async def starting(ask: Ask, _: Service) -> None:
        for method, path in (("POST", "/score"), ("GET", "/readyz"), ("GET", "/model")):
            said = await ask(method, path)
            assert (said.status_code, "is starting" in said.json()["error"]) == (503, True)

    async def guarded(ask: Ask, _: Service) -> None:
        for given in ({}, {"Authorization": "Bearer nay"}, {"Authorization": "Bearer "}, {"Authorization": "yea"}):
            said = await ask("POST", "/score", files=takes("1"), headers=given)
            assert said.status_code == 401
            assert said.headers["www-authenticate"] == "Bearer"
            assert "needs the header Authorization: Bearer TOKEN" in said.json()["error"]
        key = {"Authorization": "Bearer yea"}
        assert (await ask("POST", "/score", files=takes("1"), headers=key)).status_code == 200
        assert (await ask("GET", "/model")).json()["token_required"] is True

    through(Settings(queue=4), a_model(), full)
    through(Settings(), None, starting)
    through(Settings(token="yea"), a_model(), guarded)


def test_what_is_asked_wrongly_is_one_sentence(a_model: Any) -> None:
    async def asking(ask: Ask, _: Service) -> None:
        for method, path, status, sentence in (
            ("POST", "/score?timeline=perhaps", 400, "query.timeline: Input should be a valid boolean"),
            ("POST", "/score?timelime=1", 400, "does not know the parameter 'timelime'. It knows timeline."),
            ("POST", "/score", 415, "needs multipart/form-data"),
            ("GET", "/score", 405, "/score: does not take GET."),
            ("GET", "/nothing", 404, "/nothing: there is nothing here."),
            ("GET", "/page/nothing.js", 404, "/page/nothing.js: there is nothing here."),
        ):
            said = await ask(method, path)
            assert (said.status_code, sentence in said.json()["error"]) == (status, True), said.text
            assert said.headers["x-content-type-options"] == "nosniff"
        figures = (await ask("GET", "/metrics")).text
        assert 'path="other",status="404"' in figures
        assert "/nothing" not in figures

    through(Settings(), a_model(), asking)


def test_a_fault_of_ours_is_told_and_logged(a_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def asking(ask: Ask, service: Service) -> None:
        said = await ask("POST", "/score", files=takes("1"))
        assert (said.status_code, said.json()["error"][:36]) == (500, "the service has a fault of its own h")
        assert service.in_flight == 0

    through(Settings(), a_model(fault=RuntimeError("no memory")), asking)
    assert "POST /score failed" in caplog.text
    assert "no memory" in caplog.text


def test_the_document_says_what_is_true(a_model: Any) -> None:
    async def asking(ask: Ask, _: Service) -> None:
        document = (await ask("GET", "/openapi.json")).json()
        assert set(document["paths"]) == {"/score", "/healthz", "/readyz", "/model", "/metrics"}
        said = document["paths"]["/score"]["post"]
        assert set(said["responses"]) == {"200", "400", "408", "413", "415", "429", "500", "503"}
        assert list(said["requestBody"]["content"]) == ["multipart/form-data"]
        assert "422" not in json.dumps(document["paths"])
        assert "ValidationError" not in document["components"]["schemas"]
        assert (await ask("GET", "/docs")).status_code == 404

    through(Settings(), a_model(), asking)


def test_an_installation_without_the_page_says_so(a_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(app_module, "PAGE", tmp_path)

    async def asking(ask: Ask, _: Service) -> None:
        said = await ask("GET", "/")
        assert (said.status_code, said.json()) == (
            404, {"error": "/: this installation has no page. POST recordings to /score."},
        )  # fmt: skip
        (tmp_path / "index.html").write_text("<!doctype html>")
        said = await ask("GET", "/")
        assert (said.status_code, said.text) == (200, "<!doctype html>")
        assert said.headers["content-security-policy"].startswith("default-src 'self'; media-src 'self' blob:")

    through(Settings(), a_model(), asking)
