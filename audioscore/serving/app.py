"""HTTP routes: authentication, scoring, state, and errors as `{"error": "message"}`."""

import asyncio
import logging
import secrets
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import audioscore
from audioscore.serving.model import ServedModel
from audioscore.serving.responses import (
    ErrorResponse,
    Health,
    ModelResponse,
    ScoreResponse,
    ServiceLimits,
    name_of,
    result_of,
)
from audioscore.serving.service import Service
from audioscore.serving.uploads import FIELD, receive_uploads, refuse_large
from audioscore.units import SCORE_BANDS

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
SCALE = (50.0, 99.0)  # range of the 0-100 scale that raters use
POLICY = (
    b"default-src 'self'; media-src 'self' blob:; img-src 'self' data:; worker-src 'self' blob:; "
    b"connect-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY),
    (b"permissions-policy", b"microphone=(self), camera=(), geolocation=()"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "additionalProperties": False,
                "properties": {
                    FIELD: {
                        "description": "Recordings: wav, flac, mp3, m4a, ogg, webm and others, with or without names.",
                        "anyOf": [
                            {"type": "array", "minItems": 1, "items": {"contentMediaType": "application/octet-stream"}},
                            {"not": {"type": "array"}, "contentMediaType": "application/octet-stream"},  # one part
                        ],
                    }
                },
            }
        }
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in (
        (400, "The request is malformed or has no recording."),
        (408, "The body arrived too slowly."),
        (413, "Too many bytes or recordings."),
        (415, "The body is not multipart/form-data."),
        (429, "The queue is full; Retry-After gives the seconds to wait."),
        (500, "Internal error."),
        (503, "No model is loaded yet, or the service is stopping."),
    )
}


def build_app(service: Service) -> FastAPI:
    """Build the application with all routes of the service."""
    app = FastAPI(
        title="audioscore",
        version=audioscore.__version__,
        description="Scores recordings of singing on the 50-99 scale.",
        docs_url=None,  # FastAPI's pages load scripts from other servers
        redoc_url=None,
    )
    _add_scoring(app, service)
    _add_state(app, service)
    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False), name="page")
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_query)
    app.add_middleware(_Middleware, service=service)
    _remove_422(app)
    return app


def _add_scoring(app: FastAPI, service: Service) -> None:
    guards = [Security(HTTPBearer(auto_error=False))] if service.settings.token else []
    responses = dict(REFUSALS)
    if guards:
        responses[401] = {"model": ErrorResponse, "description": "The token is missing or wrong."}

    @app.post(
        "/score", response_model=ScoreResponse, dependencies=guards, responses=responses,
        openapi_extra={"requestBody": BODY}, summary="Score recordings",
    )  # fmt: skip
    async def score(
        request: Request, timeline: Annotated[bool, Query(description="Also return a score every 2.5 s.")] = False
    ) -> Any:
        """Score each part named `file`, in order; a recording that cannot be scored has a message in `error`."""
        _check_request(request, service)
        started = time.perf_counter()
        with service.admitted(), tempfile.TemporaryDirectory(prefix="audioscore-upload-") as folder:
            uploads = await receive_uploads(request, Path(folder), service.settings)
            work = asyncio.create_task(service.score(uploads, timeline=timeline))
            disconnected = asyncio.create_task(_wait_for_disconnect(request))
            try:
                await asyncio.wait({work, disconnected}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ClientDisconnect
                model, rows = work.result()
            finally:
                disconnected.cancel()
                work.cancel()
        service.metrics.latency.observe(time.perf_counter() - started)
        return ScoreResponse(model=name_of(model), results=[result_of(row) for row in rows])


def _check_request(request: Request, service: Service) -> None:
    """Refuse a request before its body is read, where the headers or the state of the service suffice."""
    token = service.settings.token
    if token is not None:
        given = request.headers.get("authorization", "").encode()
        if not secrets.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(
                401, "POST /score: needs the header Authorization: Bearer TOKEN. Ask the operator for the token.",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
    for name in request.query_params:
        if name != "timeline":
            raise HTTPException(400, f"POST /score: unknown parameter {name[:50]!r}. The only one is timeline.")
    _ready_model(service)
    refuse_large(request, service.settings)
    if service.full:
        raise HTTPException(
            429, f"service: {service.in_flight} requests are being processed, and the queue is full. Try again later.",
            headers={"Retry-After": str(service.retry_seconds)},
        )  # fmt: skip


def _ready_model(service: Service) -> ServedModel:
    if service.stopping:
        raise HTTPException(503, "service: is stopping. Try again.", headers={"Retry-After": "1"})
    if service.model is None:
        raise HTTPException(503, "service: no model is loaded yet. Try again later.", headers={"Retry-After": "5"})
    return service.model


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_state(app: FastAPI, service: Service) -> None:
    not_ready: dict[int | str, dict[str, Any]] = {503: REFUSALS[503]}

    @app.get("/healthz", response_model=Health, summary="Liveness: whether the process runs")
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get("/readyz", response_model=Health, responses=not_ready, summary="Readiness: whether a model is loaded")
    async def readyz() -> Health:
        _ready_model(service)
        return Health(status="ok")

    @app.get("/model", response_model=ModelResponse, responses=not_ready, summary="The model, the scale and the limits")
    async def model() -> ModelResponse:
        served, settings = _ready_model(service), service.settings
        minutes = min(settings.max_seconds, served.scorer.limits.max_seconds) / 60
        return ModelResponse(
            **name_of(served).model_dump(),
            plan=served.scorer.description.plan,
            scale=SCALE,
            bands=list(SCORE_BANDS),
            limits=ServiceLimits(megabytes=settings.max_bytes / 2**20, files=settings.max_files, minutes=minutes),
            token_required=settings.token is not None,
        )

    plain: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses=plain, summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        if not (PAGE / "index.html").is_file():
            raise HTTPException(404, "/: the page is not installed. POST recordings to /score.")
        return FileResponse(PAGE / "index.html")


def _remove_422(app: FastAPI) -> None:
    """Remove the 422 responses that FastAPI documents for parameters: this service returns 400."""
    document = app.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404 and message == "Not Found":
        message = f"{request.url.path[:200]}: not found. /openapi.json lists the paths."
    elif error.status_code == 405:
        message = f"{request.url.path[:200]}: does not allow {request.method[:20]}. /openapi.json lists the methods."
    return JSONResponse({"error": message}, error.status_code, headers=error.headers)


async def _refuse_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}. Correct the request."}, 400)


class _Middleware:
    """Outermost middleware: counts responses, adds security headers, and turns an unexpected exception into 500."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = 499  # only for the metrics: nginx's status for a closed connection
            await Response(status_code=400)(scope, receive, send)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status == 0:
                document = {"error": "service: internal error, see its log. Try again later."}
                await JSONResponse(document, 500)(scope, receive, send_with_headers)
        finally:
            self._service.metrics.count_request(scope["method"], scope["path"], status)
