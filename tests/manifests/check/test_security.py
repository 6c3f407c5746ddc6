import re
from typing import Any

import pytest

from manifests.check.security import pod_problems, quantity, secret_problems

WEB = "Deployment songs/web: "
CONTAINER = f"{WEB}container web: "


def check(tree: Any, *expected: tuple[str, ...]) -> None:
    """The problems of the pods begin with the first part of each entry and contain the others."""
    problems = pod_problems(tree.objects)
    assert len(problems) == len(expected), problems
    for problem, (start, *parts) in zip(problems, expected, strict=True):
        assert problem.startswith(start)
        assert [part for part in parts if part not in problem.removeprefix(start)] == [], problem


@pytest.mark.parametrize("image", ["host:5000/a/web:1.2", f"web@sha256:{'a' * 64}", "web:1"])
def test_a_valid_pod_with_a_version_or_a_digest_has_no_problem(tree: Any, image: str) -> None:
    check(tree)
    tree.container["image"] = image
    check(tree)


@pytest.mark.parametrize(
    ("image", "part"),
    [
        ("web:latest", "web:latest is `latest`"),
        ("host:5000/web", "host:5000/web has no tag"),
        ("web@sha256:123", "web@sha256:123 has a digest"),
        (f"web:latest@sha256:{'0' * 64}", f"web:latest@sha256:{'0' * 64} is `latest`"),
        ("", "image ''"),
    ],
)
def test_an_image_without_a_fixed_version_is_refused(tree: Any, image: str, part: str) -> None:
    tree.container["image"] = image
    check(tree, (CONTAINER, part))


def test_every_container_has_requests_and_limits(tree: Any) -> None:
    del tree.container["resources"]["limits"]["memory"]
    tree.pod["initContainers"] = [{**tree.container, "name": "first", "resources": {}}]
    check(
        tree,
        (f"{WEB}container first: ", "cpu", "memory", "resources.requests"),
        (f"{WEB}container first: ", "cpu", "memory", "resources.limits"),
        (f"{CONTAINER}no memory", "resources.limits"),
    )


def test_a_request_above_its_limit_and_an_invalid_quantity(tree: Any) -> None:
    tree.container["resources"]["requests"] = {"cpu": "1500m", "memory": "128M"}
    check(tree, (CONTAINER, "1500m of cpu", "limit 1"))
    tree.container["resources"] = {"requests": {"cpu": "1", "memory": "1"}, "limits": {"cpu": "1", "memory": "256MB"}}
    check(tree, (CONTAINER, "memory: '256MB'"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"runAsNonRoot": False}, "runAsNonRoot"),
        ({"runAsUser": 0}, "runAsUser"),
        ({"seccompProfile": {"type": "Unconfined"}}, "seccompProfile"),
        ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation"),
        ({"privileged": True}, "privileged"),
        ({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}, "capabilities"),
        ({"capabilities": None}, "capabilities"),
        ({"readOnlyRootFilesystem": False}, "readOnlyRootFilesystem"),
    ],
)
def test_a_privileged_container_is_refused(tree: Any, change: dict[str, Any], field: str) -> None:
    tree.container["securityContext"].update(change)
    check(tree, (CONTAINER, field))


def test_a_pod_without_a_security_context_may_run_as_root(tree: Any) -> None:
    del tree.pod["securityContext"]
    assert [one for one in pod_problems(tree.objects) if one.startswith(CONTAINER) and "runAsNonRoot" in one]


def test_a_pod_with_access_to_its_node_is_refused(tree: Any) -> None:
    tree.pod["hostNetwork"] = True
    tree.pod["volumes"] += [{"name": "node", "hostPath": {"path": "/"}}, {"name": "much", "emptyDir": {}}]
    tree.container["ports"][0]["hostPort"] = 80
    del tree.pod["automountServiceAccountToken"]
    expected = ("hostNetwork", "volume node .*hostPath", "volume much .*sizeLimit", "container web: hostPort")
    problems = [problem.removeprefix(WEB) for problem in pod_problems(tree.objects)]
    assert len(problems) == 5
    for name in (*expected, "automountServiceAccountToken"):
        assert len([problem for problem in problems if re.match(name, problem)]) == 1, name


def test_the_pods_of_a_training_runtime_have_the_same_rules(tree: Any) -> None:
    job = tree["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["containers"][0]["image"] = "web"
    check(tree, ("TrainingRuntime songs/torch: container web: ", " web has no tag"))


def test_a_password_in_the_manifest_is_refused(tree: Any) -> None:
    tree.container["env"] = [
        {"name": "DB_PASSWORD", "value": "hunter2"},
        {"name": "TOKEN_PATH", "value": "/var/run/token"},
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "login", "key": "word"}}},
    ]
    check(tree, (f"{CONTAINER}DB_PASSWORD", "secret"))
    metadata = {"name": "login", "namespace": "songs"}
    tree.objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"word": "aHVudGVyMg=="}})
    (problem,) = secret_problems(tree.objects)
    assert problem.startswith("Secret songs/login: ")
    assert "word" in problem
    assert "aHVudGVyMg" not in problem


@pytest.mark.parametrize(
    ("text", "number"), [("250m", 0.25), ("2Gi", 2.0 * 1024**3), ("1.5k", 1500.0), (4, 4.0), ("64Mi", 64.0 * 1024**2)]
)
def test_quantities(text: str | int, number: float) -> None:
    assert quantity(text) == number
