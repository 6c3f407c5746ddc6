import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from audioscore.serving import app as app_module
from audioscore.serving.app import build_app
from audioscore.serving.metrics import ServiceSettings
from audioscore.serving.service import Service

Ask = Callable[..., Awaitable[httpx.Response]]


def run_requests(settings: ServiceSettings, model: Any, asking: Callable[[Ask, Service], Awaitable[None]]) -> Service:
    """Run requests against a service in process; a `model` of None is one that is still loading."""

    async def run() -> Service:
        service = Service(settings)
        service.model = model
        transport = httpx.ASGITransport(app=build_app(service))
        async with service.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def ask(method: str, path: str, **options: Any) -> httpx.Response:
                return await asyncio.wait_for(client.request(method, path, **options), 10)

            await asking(ask, service)
        return service

    return asyncio.run(run())


def recordings(*seconds: str) -> Any:
    return [("file", (f"r{number}.wav", text.encode())) for number, text in enumerate(seconds, start=1)]


def test_rows_come_in_the_order_of_the_parts(a_model: Any) -> None:
    async def asking(ask: Ask, _: Service) -> None:
        response = await ask("POST", "/score?timeline=true", files=recordings("2.5", "noise", "1.25"))
        assert response.status_code == 200
        same = {"interval": [50.0, 99.0], "raw": 0.123456789, "notes": ["Noisy."], "error": None}
        timeline = [{"start": 0.0, "end": 1.0, "score": 70.0}]
        none = dict.fromkeys(("score", "interval", "raw", "seconds", "timeline"))
        assert response.json() == {
            "model": {"name": "singers", "version": 1, "uri": "models:/singers@champion"},
            "results": [
                {"file": "r1.wav", "score": 62.5, "seconds": 2.5, **same, "timeline": timeline},
                {"file": "r2.wav", **none, "notes": [], "error": "the recording: not a number."},
                {"file": "r3.wav", "score": 61.25, "seconds": 1.25, **same, "timeline": timeline},
            ],
        }
        plain = await ask("POST", "/score", files=recordings("2"))
        assert plain.json()["results"][0]["timeline"] is None
        figures = (await ask("GET", "/metrics")).text
        assert 'audioscore_recordings_total{outcome="scored"} 3.0' in figures
        assert 'audioscore_recordings_total{outcome="refused"} 1.0' in figures
        assert 'audioscore_requests_total{method="POST",path="/score",status="200"} 2.0' in figures

    service = run_requests(ServiceSettings(), a_model(), asking)
    assert service.in_flight == 0
    assert service.model is not None
    assert service.model.users == 0
    assert service.model.decoder.closed


def test_requests_at_the_same_time_share_batches(a_model: Any) -> None:
    served = a_model()

    async def asking(ask: Ask, _: Service) -> None:
        answers = await asyncio.gather(*(ask("POST", "/score", files=recordings(str(n))) for n in range(1, 9)))
        assert [answer.json()["results"][0]["score"] for answer in answers] == [60.0 + n for n in range(1, 9)]

    run_requests(ServiceSettings(processes=8), served, asking)
    assert sum(len(names) for names, _ in served.scorer.batches) == 8
    assert len(served.scorer.batches) < 8


NEED_A_MODEL = (("POST", "/score"), ("GET", "/readyz"), ("GET", "/model"))


def test_a_full_stopping_or_starting_service_refuses_requests(a_model: Any) -> None:
    async def full(ask: Ask, service: Service) -> None:
        service.in_flight = 4
        response = await ask("POST", "/score", files=recordings("1"))
        assert response.status_code == 429
        assert " 4 requests" in response.json()["error"]
        assert 1 <= int(response.headers["retry-after"]) <= 60
        service.in_flight = 0
        service.stopping = True
        for method, path in NEED_A_MODEL:
            response = await ask(method, path)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert list(response.json()) == ["error"]
        assert (await ask("GET", "/healthz")).json() == {"status": "ok"}

    async def starting(ask: Ask, _: Service) -> None:
        for method, path in NEED_A_MODEL:
            response = await ask(method, path)
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            assert list(response.json()) == ["error"]

    run_requests(ServiceSettings(queue=4), a_model(), full)
    run_requests(ServiceSettings(), None, starting)


def test_a_token_is_required_to_score(a_model: Any) -> None:
    async def guarded(ask: Ask, _: Service) -> None:
        for given in ({}, {"Authorization": "Bearer nay"}, {"Authorization": "Bearer "}, {"Authorization": "yea"}):
            response = await ask("POST", "/score", files=recordings("1"), headers=given)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert "Authorization: Bearer" in response.json()["error"]
        key = {"Authorization": "Bearer yea"}
        assert (await ask("POST", "/score", files=recordings("1"), headers=key)).status_code == 200
        assert (await ask("GET", "/model")).json()["token_required"] is True

    run_requests(ServiceSettings(token="yea"), a_model(), guarded)


def test_invalid_requests_name_their_error(a_model: Any) -> None:
    async def asking(ask: Ask, _: Service) -> None:
        for method, path, status, names in (
            ("POST", "/score?timeline=perhaps", 400, ["query.timeline"]),
            ("POST", "/score?timelime=1", 400, ["'timelime'", " timeline"]),
            ("POST", "/score", 415, ["multipart/form-data"]),
            ("GET", "/score", 405, ["/score: ", "GET"]),
            ("GET", "/nothing", 404, ["/nothing: "]),
            ("GET", "/page/nothing.js", 404, ["/page/nothing.js: "]),
        ):
            response = await ask(method, path)
            assert (response.status_code, response.headers["x-content-type-options"]) == (status, "nosniff")
            assert [name for name in names if name not in response.json()["error"]] == []
        figures = (await ask("GET", "/metrics")).text
        assert 'path="other",status="404"' in figures
        assert "/nothing" not in figures

    run_requests(ServiceSettings(), a_model(), asking)


def test_an_internal_error_is_logged_and_not_sent(a_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def asking(ask: Ask, service: Service) -> None:
        response = await ask("POST", "/score", files=recordings("1"))
        assert response.status_code == 500
        assert "no memory" not in response.json()["error"]
        assert service.in_flight == 0

    run_requests(ServiceSettings(), a_model(error=RuntimeError("no memory")), asking)
    assert "POST /score" in caplog.text
    assert "no memory" in caplog.text


def test_the_openapi_document(a_model: Any) -> None:
    async def asking(ask: Ask, _: Service) -> None:
        document = (await ask("GET", "/openapi.json")).json()
        assert set(document["paths"]) == {"/score", "/healthz", "/readyz", "/model", "/metrics"}
        score = document["paths"]["/score"]["post"]
        assert set(score["responses"]) == {"200", "400", "408", "413", "415", "429", "500", "503"}
        assert list(score["requestBody"]["content"]) == ["multipart/form-data"]
        assert "422" not in json.dumps(document["paths"])
        assert "ValidationError" not in document["components"]["schemas"]
        assert (await ask("GET", "/docs")).status_code == 404

    run_requests(ServiceSettings(), a_model(), asking)


def test_an_installation_without_the_page(a_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(app_module, "PAGE", tmp_path)

    async def asking(ask: Ask, _: Service) -> None:
        response = await ask("GET", "/")
        assert response.status_code == 404
        assert "/score" in response.json()["error"]
        (tmp_path / "index.html").write_text("<!doctype html>")
        response = await ask("GET", "/")
        assert (response.status_code, response.text) == (200, "<!doctype html>")
        assert response.headers["content-security-policy"].startswith("default-src 'self'; media-src 'self' blob:")

    run_requests(ServiceSettings(), a_model(), asking)
