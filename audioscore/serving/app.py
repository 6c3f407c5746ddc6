"""The HTTP side: routes, who may ask, and every refusal as `{"error": "one sentence"}`."""

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
from audioscore.serving.responses import Fault, Health, Limits, ModelCard, ScoreAnswer, name_of, result_of
from audioscore.serving.service import Service
from audioscore.serving.uploads import FIELD, receive_uploads, refuse_large
from audioscore.units import SCORE_BANDS

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
IN_USE = (50.0, 99.0)  # of the labels' scale of 0 to 100
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
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                        "description": "Recordings: wav, flac, mp3, m4a, ogg, webm.",
                    }
                },
            }
        }
    },
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Fault, "description": said}
    for status, said in (
        (400, "Malformed, or without a recording."),
        (408, "The body came too slowly."),
        (413, "Too many bytes, or recordings."),
        (415, "Not multipart/form-data."),
        (429, "The queue is full; Retry-After says when to come back."),
        (500, "A fault of the service."),
        (503, "No model yet, or the service is stopping."),
    )
}


def build_app(service: Service) -> FastAPI:
    """The service's routes."""
    app = FastAPI(
        title="audioscore",
        version=audioscore.__version__,
        description="Scores recordings of singing on the 50-99 scale.",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
    )
    _add_scoring(app, service)
    _add_state(app, service)
    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False), name="page")
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_query)
    app.add_middleware(_Outermost, service=service)
    _document(app)
    return app


def _add_scoring(app: FastAPI, service: Service) -> None:
    guards = [Security(HTTPBearer(auto_error=False))] if service.settings.token else []
    responses = {**REFUSALS, 401: {"model": Fault, "description": "The token is missing or wrong."}} if guards else {
        **REFUSALS
    }  # fmt: skip

    @app.post(
        "/score", response_model=ScoreAnswer, dependencies=guards, responses=responses,
        openapi_extra={"requestBody": BODY}, summary="Score recordings",
    )  # fmt: skip
    async def score(
        request: Request, timeline: Annotated[bool, Query(description="Also a score each 2.5 s.")] = False
    ) -> Any:
        """A result for each part named `file`, in their order; what cannot be scored says why in `error`."""
        _let_in(request, service)
        started = time.perf_counter()
        with service.admitted(), tempfile.TemporaryDirectory(prefix="audioscore-upload-") as folder:
            uploads = await receive_uploads(request, Path(folder), service.settings)
            work = asyncio.create_task(service.score(uploads, timeline=timeline))
            gone = asyncio.create_task(_hung_up(request))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ClientDisconnect
                model, rows = work.result()
            finally:
                gone.cancel()
                work.cancel()
        service.metrics.latency.observe(time.perf_counter() - started)
        return ScoreAnswer(model=name_of(model), results=[result_of(row) for row in rows])


def _let_in(request: Request, service: Service) -> None:
    """Refuse, before anything of the body is read, what will not be scored."""
    token = service.settings.token
    if token is not None:
        given = request.headers.get("authorization", "").encode()
        if not secrets.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(
                401, "POST /score: needs the header Authorization: Bearer TOKEN. Ask whoever runs the service.",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
    for name in request.query_params:
        if name != "timeline":
            raise HTTPException(400, f"POST /score: does not know the parameter {name[:50]!r}. It knows timeline.")
    _ready_model(service)
    refuse_large(request, service.settings)
    if service.full:
        raise HTTPException(
            429, f"{service.in_flight} requests are being scored, and no more fit. Try again later.",
            headers={"Retry-After": str(service.retry_seconds)},
        )  # fmt: skip


def _ready_model(service: Service) -> ServedModel:
    if service.stopping:
        raise HTTPException(503, "the service is stopping. Try again.", headers={"Retry-After": "1"})
    if service.model is None:
        raise HTTPException(503, "the service is starting: no model is loaded yet.", headers={"Retry-After": "5"})
    return service.model


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_state(app: FastAPI, service: Service) -> None:
    not_ready: dict[int | str, dict[str, Any]] = {503: REFUSALS[503]}

    @app.get("/healthz", response_model=Health, summary="Whether the process lives")
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get("/readyz", response_model=Health, responses=not_ready, summary="Whether it scores")
    async def readyz() -> Health:
        _ready_model(service)
        return Health(status="ok")

    @app.get("/model", response_model=ModelCard, responses=not_ready, summary="What it scores with")
    async def model() -> ModelCard:
        served, settings = _ready_model(service), service.settings
        minutes = min(settings.max_seconds, served.scorer.limits.max_seconds) / 60
        return ModelCard(
            **name_of(served).model_dump(),
            plan=served.scorer.description.plan,
            scale=IN_USE,
            bands=list(SCORE_BANDS),
            limits=Limits(megabytes=settings.max_bytes / 2**20, files=settings.max_files, minutes=minutes),
            token_required=settings.token is not None,
        )

    plain: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses=plain, summary="Figures for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        if not (PAGE / "index.html").is_file():
            raise HTTPException(404, "/: this installation has no page. POST recordings to /score.")
        return FileResponse(PAGE / "index.html")


def _document(app: FastAPI) -> None:
    """FastAPI writes 422 beside every parameter; here what is malformed is 400."""
    document = app.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


async def _refuse(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    sentence = fault.detail
    if fault.status_code == 404 and sentence == "Not Found":
        sentence = f"{request.url.path[:200]}: there is nothing here. /openapi.json says what there is."
    elif fault.status_code == 405:
        sentence = f"{request.url.path[:200]}: does not take {request.method[:20]}. /openapi.json says what it takes."
    return JSONResponse({"error": sentence}, fault.status_code, headers=fault.headers)


async def _refuse_query(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestValidationError)
    first = fault.errors()[0]
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}. Mend the request."}, 400)


class _Outermost:
    """Around every answer: counts it, adds the headers that keep browsers careful, and turns a fault into 500."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def careful(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        try:
            await self._app(scope, receive, careful)
        except ClientDisconnect:
            status = 499  # nobody reads the answer; the number is nginx's
            await Response(status_code=400)(scope, receive, send)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status == 0:
                said = {"error": "the service has a fault of its own here; its log says which. Try again later."}
                await JSONResponse(said, 500)(scope, receive, careful)
        finally:
            self._service.metrics.answered(scope["method"], scope["path"], status)
