"""JSON responses of the service; these models are also its OpenAPI schema."""

from typing import TYPE_CHECKING

from pydantic import BaseModel

from audioscore.scoring.results import ClipScore

if TYPE_CHECKING:
    from audioscore.serving.model import ServedModel


class ModelName(BaseModel):
    """The model that computed the scores; a scorer folder has no version."""

    name: str
    version: int | None
    uri: str


class ServiceLimits(BaseModel):
    """Limits of one request: total size, number of recordings, and length of each recording."""

    megabytes: float
    files: int
    minutes: float


class ModelResponse(ModelName):
    """The model in use, with the scale, the bands and the limits that a client needs to show scores."""

    plan: str
    scale: tuple[float, float]
    bands: list[tuple[float, float]]
    limits: ServiceLimits
    token_required: bool


class SegmentResponse(BaseModel):
    """The score of the recording from `start` to `end`, in seconds."""

    start: float
    end: float
    score: float


class Result(BaseModel):
    """The result of one recording; if `error` is not null, the recording was not scored and the rest is null.

    `notes`: why the score is less reliable than its interval; empty for most recordings.
    """

    file: str
    score: float | None
    interval: tuple[float, float] | None
    raw: float | None
    seconds: float | None
    notes: list[str]
    error: str | None
    timeline: list[SegmentResponse] | None


class ScoreResponse(BaseModel):
    """The model, and a result for each recording, in the order of the upload."""

    model: ModelName
    results: list[Result]


class Health(BaseModel):
    """`status` is always `ok`; other states are error responses."""

    status: str


class ErrorResponse(BaseModel):
    """Message with the reason why a request was refused."""

    error: str


def name_of(served: "ServedModel") -> ModelName:
    """Return the name of a model in a response."""
    found = served.reference
    return ModelName(name=found.name, version=found.version, uri=found.uri)


def result_of(row: ClipScore) -> Result:
    """Convert a result to its JSON model, with rounded values."""
    return Result(**row.to_json())
