"""What a run or a compilation is requested with, and the pipeline parameters that follow from a configuration.

The command line does not import KFP: it passes its options to `python -m pipelines` as one JSON document.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audioscore.errors import UsageError

if TYPE_CHECKING:
    from audioscore.config import Config

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class SubmitRequest:
    """Options of `audioscore run` and, with `demo`, of `audioscore demo`; see audioscore/cli/run.py for each.

    `overrides` are settings as `a.b=value`. `on` is None where the user did not choose.
    """

    demo: bool = False
    config: str | None = None
    data: str | None = None
    overrides: Sequence[str] = ()
    on: Literal["local", "docker", "cluster"] | None = None
    resume: bool = False
    dry_run: bool = False
    require_promotion: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class CompileRequest:
    """Options of `audioscore compile`."""

    out: str
    config: str | None = None
    overrides: Sequence[str] = ()
    kubernetes: bool = False


REQUESTS: dict[str, type[SubmitRequest | CompileRequest]] = {"submit": SubmitRequest, "compile": CompileRequest}


def read_request(arguments: Sequence[str]) -> tuple[str, SubmitRequest | CompileRequest]:
    """Parse the arguments of `python -m pipelines`: a program's name and a JSON document of its options.

    Raises:
        UsageError: another number of arguments, an unknown program, no JSON object, or unknown or missing keys.

    >>> read_request(["compile", '{"out": "pipeline.yaml"}'])
    ('compile', CompileRequest(out='pipeline.yaml', config=None, overrides=(), kubernetes=False))
    """
    if len(arguments) != 2 or arguments[0] not in REQUESTS:
        raise UsageError(
            f"python -m pipelines: expected {' or '.join(REQUESTS)} and a JSON document, got {len(arguments)} "
            "arguments. Use `audioscore run`, `audioscore demo` or `audioscore compile`."
        )
    name, document = arguments
    request = REQUESTS[name]
    try:
        values = json.loads(document)
    except ValueError as error:
        raise UsageError(f"pipelines {name}: the argument is not a JSON document ({error}). Correct it.") from error
    if not isinstance(values, dict):
        raise UsageError(f"pipelines {name}: expected a JSON object, got {type(values).__name__}. Correct it.")
    if unknown := sorted(values.keys() - {field.name for field in fields(request)}):
        raise UsageError(f"pipelines {name}: unknown keys {', '.join(unknown)}. Remove them.")
    try:
        return name, request(**values)
    except TypeError as error:
        raise UsageError(f"pipelines {name}: {error}. Correct it.") from error


def pipeline_parameters(config: "Config", run_id: str, code_rev: str, *, on_cluster: bool = False) -> dict[str, Any]:
    """The pipeline's parameters that do not depend on where its state is stored.

    The settings exclude the sections `containers` and `cluster`, so that a step has the same cache key everywhere.
    """
    from audioscore.encoders.extract import shards_of

    return {
        "data_uri": config.data.uri,
        "run_id": run_id,
        "code_rev": code_rev,
        "settings": config.model_dump(mode="json", exclude_none=True, exclude={"containers", "cluster"}),
        "plans": list(config.training.plans),
        "shards": shards_of(config.cluster.shards if on_cluster else 1),
    }


def cluster_parameters(config: "Config", run_id: str, code_rev: str) -> dict[str, Any]:
    """All parameters of the pipeline on a cluster; those that the configuration leaves open are None."""
    section = config.cluster
    return pipeline_parameters(config, run_id, code_rev, on_cluster=True) | {
        "feature_store": section.feature_store,
        "tracking_uri": section.tracking_uri,
        "artifact_root": section.artifact_root,
        "image": section.image,
    }
