from collections.abc import Callable
from typing import Any

import pytest

from manifests.check.links import link_problems


def change(kind: str, *path: Any, value: Any) -> Callable[[Any], None]:
    """Set the field at `path` of the object of that kind."""

    def apply(tree: Any) -> None:
        field = tree[kind]
        for key in path[:-1]:
            field = field[key]
        field[path[-1]] = value

    return apply


PORT = ("spec", "ports", 0, "targetPort")
EGRESS = ("spec", "egress", 0)
EXPRESSION = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "gone"]}]}

# A change of one object, and the parts of the one problem that it gives.
PROBLEMS = [
    (change("Service", "spec", "selector", value={"app": "wep"}), ["Service songs/web: ", "app=wep"]),
    (change("Service", *PORT, value="https"), ["Service songs/web: ", "port 80: Deployment songs/web ", "port https"]),
    (change("Service", *PORT, value=8001), ["Service songs/web: ", "port 80: Deployment songs/web ", "port 8001"]),
    (change("Service", "metadata", "namespace", value="other"), ["Service other/web: ", "app=web"]),
    (
        change("PodDisruptionBudget", "spec", "selector", value={"matchLabels": {"app": "old"}}),
        ["PodDisruptionBudget songs/web: ", "app=old"],
    ),
    (
        change("NetworkPolicy", *EGRESS, "to", 0, "podSelector", value=EXPRESSION),
        ["NetworkPolicy songs/itself: egress.to.podSelector ", "app=gone"],
    ),
    (
        change("NetworkPolicy", *EGRESS, "ports", 0, "port", value="metrics"),
        ["NetworkPolicy songs/itself: ", "Deployment songs/web", "port metrics"],
    ),
    (
        change("HorizontalPodAutoscaler", "spec", "scaleTargetRef", "name", value="wep"),
        ["HorizontalPodAutoscaler songs/web: ", "Deployment wep"],
    ),
    (
        change("Deployment", "spec", "replicas", value=2),
        ["HorizontalPodAutoscaler songs/web: ", "Deployment web", "replicas"],
    ),
    (
        change("Deployment", "spec", "selector", value={"matchLabels": {"app": "old"}}),
        ["Deployment songs/web: ", "app=old", " own pods"],
    ),
    (change("RoleBinding", "roleRef", "name", value="see"), ["RoleBinding songs/look: roleRef Role see"]),
]  # fmt: skip


@pytest.mark.parametrize(("apply", "parts"), PROBLEMS)
def test_a_broken_link_is_named(tree: Any, apply: Callable[[Any], None], parts: list[str]) -> None:
    assert link_problems(tree.objects) == []
    apply(tree)
    (problem,) = link_problems(tree.objects)
    assert problem.startswith(parts[0])
    assert [part for part in parts if part not in problem] == []


def test_a_service_port_is_its_own_default_target(tree: Any) -> None:
    tree["Service"]["spec"]["ports"] = [{"port": 8000}]
    assert link_problems(tree.objects) == []


def test_a_missing_account_of_the_own_namespace(tree: Any) -> None:
    for name, namespace in (("gone", "songs"), ("theirs", "kubeflow")):
        tree["RoleBinding"]["subjects"].append({"kind": "ServiceAccount", "name": name, "namespace": namespace})
    (problem,) = link_problems(tree.objects)
    assert problem.startswith("RoleBinding songs/look: subject gone ")


def test_two_deployments_with_the_same_selector(tree: Any) -> None:
    tree.objects.append({**tree["Deployment"], "metadata": {"name": "twin", "namespace": "songs"}})
    for problem, (one, other) in zip(link_problems(tree.objects)[:2], (("web", "twin"), ("twin", "web")), strict=True):
        assert problem.startswith(f"Deployment songs/{one}: selector app=web ")
        assert problem.endswith(f"Deployment songs/{other}")


def test_the_image_of_a_run_is_the_image_of_its_pod(tree: Any) -> None:
    tree.container["env"].append({"name": "AUDIOSCORE_IMAGE", "value": "web:1.1"})
    (problem,) = link_problems(tree.objects)
    assert problem.startswith("Deployment songs/web: AUDIOSCORE_IMAGE ")
    assert "web:1.1" in problem
    assert "registry.example.com/web:1.2" in problem
