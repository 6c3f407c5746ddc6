"""The objects of a build, and the pods that they would create."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

# Kind -> path of its pod template.
TEMPLATES = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
RUNTIMES = ("TrainingRuntime", "ClusterTrainingRuntime")


@dataclass(frozen=True)
class Pod:
    """A pod that an object would create; `owner` is the object's title, `claims` its volume claim templates."""

    owner: str
    namespace: str
    labels: dict[str, str]
    spec: Object
    claims: tuple[str, ...] = ()

    @property
    def containers(self) -> list[Object]:
        """Init containers first, then the others."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]


def title(one: Object) -> str:
    """Name an object for messages.

    >>> title({"kind": "Service", "metadata": {"name": "mlflow", "namespace": "audioscore"}})
    'Service audioscore/mlflow'
    """
    metadata = one.get("metadata") or {}
    name, namespace = metadata.get("name", "?"), metadata.get("namespace")
    return f"{one.get('kind', '?')} {namespace}/{name}" if namespace else f"{one.get('kind', '?')} {name}"


def namespace_of(one: Object) -> str:
    return str(one["metadata"].get("namespace", ""))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def made_namespaces(objects: list[Object]) -> set[str]:
    """Namespaces that the build itself creates; objects in others cannot be checked."""
    return {one["metadata"]["name"] for one in of_kind(objects, "Namespace")}


def pods(objects: list[Object]) -> list[Pod]:
    """Every pod that the objects would create, including those of a training runtime's jobs."""
    return [pod for one in objects for pod in _pods_of(one)]


def _pods_of(one: Object) -> Iterator[Pod]:
    if one["kind"] in RUNTIMES:
        for job in one["spec"]["template"]["spec"]["replicatedJobs"]:
            yield _pod(one, job["template"]["spec"]["template"])
    elif one["kind"] in TEMPLATES:
        template: Object = one
        for key in TEMPLATES[one["kind"]]:
            template = template[key]
        yield _pod(one, template)


def _pod(owner: Object, template: Object) -> Pod:
    claims = owner["spec"].get("volumeClaimTemplates", []) if owner["kind"] == "StatefulSet" else []
    return Pod(
        owner=title(owner),
        namespace=namespace_of(owner),
        labels=(template.get("metadata") or {}).get("labels") or {},
        spec=template["spec"],
        claims=tuple(claim["metadata"]["name"] for claim in claims),
    )


def selects(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether a label selector, `{matchLabels, matchExpressions}`, matches these labels; an empty one always does.

    >>> selects({"matchLabels": {"name": "mlflow"}}, {"name": "mlflow", "tier": "back"})
    True
    >>> selects({"matchExpressions": [{"key": "name", "operator": "In", "values": ["a", "b"]}]}, {"name": "c"})
    False
    """
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression_holds(one, labels) for one in selector.get("matchExpressions") or [])


def _expression_holds(expression: Object, labels: dict[str, str]) -> bool:
    here, values = labels.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return here in values
        case "NotIn":
            return here not in values
        case "Exists":
            return here is not None
        case _:
            return here is None
