"""What the service says, as JSON; these shapes are also its OpenAPI document."""

from typing import TYPE_CHECKING

from pydantic import BaseModel

from audioscore.scoring.results import ClipScore

if TYPE_CHECKING:
    from audioscore.serving.model import ServedModel


class ModelName(BaseModel):
    """Which model answered; a scorer folder has no version."""

    name: str
    version: int | None
    uri: str


class Limits(BaseModel):
    """What one request may hold: bytes in all, recordings, and minutes of each."""

    megabytes: float
    files: int
    minutes: float


class ModelCard(ModelName):
    """The model in use, and what a page needs to show its scores."""

    plan: str
    scale: tuple[float, float]
    bands: list[tuple[float, float]]
    limits: Limits
    token_required: bool


class Moment(BaseModel):
    """The score of what is heard from `start` to `end`, in seconds."""

    start: float
    end: float
    score: float


class Result(BaseModel):
    """One recording's answer; where `error` says why there is none, the rest is null."""

    file: str
    score: float | None
    interval: tuple[float, float] | None
    raw: float | None
    seconds: float | None
    error: str | None
    timeline: list[Moment] | None


class ScoreAnswer(BaseModel):
    """The model, and a result for each recording in the order of the upload."""

    model: ModelName
    results: list[Result]


class Health(BaseModel):
    """`ok`."""

    status: str


class Fault(BaseModel):
    """One sentence: what was wrong with the request."""

    error: str


def name_of(served: "ServedModel") -> ModelName:
    """What a model is called in an answer."""
    return ModelName(name=served.name, version=served.version, uri=served.uri)


def result_of(row: ClipScore) -> Result:
    """A row as JSON."""
    return Result(**row.to_json())
