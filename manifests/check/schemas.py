"""Validation of every field: Kubernetes' published schemas, Kubeflow Trainer's models, and a schema of this project."""

import warnings
from collections.abc import Iterator
from typing import Any

from manifests.check.objects import Object, title

KUBERNETES = "1.34"  # version of the schemas and of pod-security.kubernetes.io/enforce-version
TRAINER = "trainer.kubeflow.org/v1alpha1"
EXTERNAL_SECRETS = "external-secrets.io/v1"

# The part of ExternalSecret that is used here, closed to other fields: no package contains its schema.
# Source: external-secrets.io, API v1, ExternalSecret.
_NAME = {"type": "string", "minLength": 1}
EXTERNAL_SECRET: Object = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": EXTERNAL_SECRETS},
        "kind": {"const": "ExternalSecret"},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "namespace"],
            "properties": {"name": _NAME, "namespace": _NAME, "labels": {"type": "object"}},
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["secretStoreRef", "target", "data"],
            "properties": {
                "refreshInterval": {"type": "string", "pattern": "^([0-9]+(h|m|s))+$"},
                "secretStoreRef": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name", "kind"],
                    "properties": {"name": _NAME, "kind": {"enum": ["SecretStore", "ClusterSecretStore"]}},
                },
                "target": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": {"name": _NAME, "creationPolicy": {"enum": ["Owner", "Orphan", "Merge", "None"]}},
                },
                "data": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["secretKey", "remoteRef"],
                        "properties": {
                            "secretKey": _NAME,
                            "remoteRef": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["key"],
                                "properties": {"key": _NAME, "property": _NAME, "version": _NAME},
                            },
                        },
                    },
                },
            },
        },
    },
}


def schema_problems(one: Object) -> list[str]:
    """What the object's API would refuse: unknown fields, wrong types, missing fields. Empty for a valid object."""
    if not isinstance(one, dict) or not {"apiVersion", "kind", "metadata"} <= set(one):
        return [f"{str(one)[:60]}: not an object with apiVersion, kind and metadata"]
    if one["apiVersion"] == TRAINER:
        found = _trainer_problems(one)
    elif one["apiVersion"] == EXTERNAL_SECRETS and one["kind"] == "ExternalSecret":
        found = _external_secret_problems(one)
    else:
        found = _kubernetes_problems(one)
    return [f"{title(one)}: {problem}" for problem in found]


def _kubernetes_problems(one: Object) -> list[str]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [_sentence(list(error.path), error.message)]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{one['apiVersion']} {one['kind']} is not an API of Kubernetes {KUBERNETES} or of another schema here"]
    return []


def _external_secret_problems(one: Object) -> list[str]:
    import jsonschema

    return [
        _sentence(list(problem.absolute_path), problem.message)
        for problem in jsonschema.Draft202012Validator(EXTERNAL_SECRET).iter_errors(one)
    ]


def _trainer_problems(one: Object) -> list[str]:
    """Validate with Trainer's models, which refuse wrong types but drop unknown fields: compare their output."""
    from kubeflow_trainer_api import models
    from pydantic import ValidationError

    model = getattr(models, f"TrainerV1alpha1{one['kind']}", None)
    if model is None:
        return [f"{TRAINER} has no kind {one['kind']}"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from the generated models
            read = model.from_dict(one)
            back = read.to_dict()
    except ValidationError as error:
        return [_sentence(list(part["loc"]), part["msg"]) for part in error.errors()]
    return [_sentence(path, "unknown field") for path in lost(one, back)]


def lost(given: Any, back: Any) -> Iterator[list[str | int]]:
    """Paths of the values that are in `given` but not in `back`.

    >>> list(lost({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}))
    [['a', 0, 'c']]
    """
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            if key not in back:
                yield [key]
            else:
                yield from ([key, *rest] for rest in lost(value, back[key]))
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for position, (one, other) in enumerate(zip(given, back, strict=True)):
            yield from ([position, *rest] for rest in lost(one, other))
    elif given != back:
        yield []


def _sentence(path: list[Any], message: str) -> str:
    where = ".".join(map(str, path))
    return f"{where}: {message}" if where else message
