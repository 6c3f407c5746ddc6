"""Namespaces: set on every object, restricted Pod Security Standard, quota, and default-deny network policy."""

from collections.abc import Iterator

from manifests.check.objects import Object, made_namespaces, namespace_of, of_kind, title
from manifests.check.schemas import KUBERNETES

CLUSTER_WIDE = {
    "Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "PriorityClass", "StorageClass",
    "PersistentVolume", "ClusterTrainingRuntime",
}  # fmt: skip
ENFORCE = "pod-security.kubernetes.io/enforce"


def policy_problems(objects: list[Object]) -> list[str]:
    """Problems of namespaces, and objects without a namespace."""
    problems = [
        f"{title(one)}: no namespace" for one in objects if one["kind"] not in CLUSTER_WIDE and not namespace_of(one)
    ]
    for one in of_kind(objects, "Namespace"):
        problems += [f"{title(one)}: {problem}" for problem in _namespace_problems(one, objects)]
    if not made_namespaces(objects):
        problems.append("no Namespace: no Pod Security Standard is set")
    return problems


def _namespace_problems(namespace: Object, objects: list[Object]) -> Iterator[str]:
    name, labels = namespace["metadata"]["name"], namespace["metadata"].get("labels") or {}
    if labels.get(ENFORCE) != "restricted":
        yield f"{ENFORCE} must be restricted"
    if labels.get(f"{ENFORCE}-version") != f"v{KUBERNETES}":
        yield f"{ENFORCE}-version must be v{KUBERNETES}, the version of the schemas of this check"
    inside = [one for one in objects if namespace_of(one) == name]
    for kind in ("ResourceQuota", "LimitRange"):
        if not of_kind(inside, kind):
            yield f"has no {kind}"
    if not any(_denies_everything(one["spec"]) for one in of_kind(inside, "NetworkPolicy")):
        yield "has no NetworkPolicy that denies everything by default"


def _denies_everything(spec: Object) -> bool:
    return (
        not spec.get("podSelector")
        and set(spec.get("policyTypes", [])) == {"Ingress", "Egress"}
        and not spec.get("ingress")
        and not spec.get("egress")
    )
