from typing import Any

import pytest

from manifests.check.security import pod_faults, quantity, secret_faults


def test_a_sound_pod_has_no_fault(tree: Any) -> None:
    assert pod_faults(tree.objects) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("web:latest", "image web:latest is `latest`, which is another image tomorrow: name a version or a digest"),
        ("host:5000/web", "image host:5000/web has no tag: name a version or a digest"),
        ("web@sha256:123", "image web@sha256:123 has a digest that is not sha256 and 64 digits"),
        (f"web:latest@sha256:{'0' * 64}", f"image web:latest@sha256:{'0' * 64} is `latest`"),
        ("", "image '' names nothing"),
    ],
)
def test_an_image_that_may_be_another_tomorrow_is_refused(tree: Any, image: str, message: str) -> None:
    tree.container["image"] = image
    (fault,) = pod_faults(tree.objects)
    assert fault.startswith(f"Deployment songs/web: container web: {message}")


@pytest.mark.parametrize("image", ["host:5000/a/web:1.2", f"web@sha256:{'a' * 64}", "web:1"])
def test_a_version_or_a_digest_is_enough(tree: Any, image: str) -> None:
    tree.container["image"] = image
    assert pod_faults(tree.objects) == []


def test_every_container_has_requests_and_limits(tree: Any) -> None:
    del tree.container["resources"]["limits"]["memory"]
    tree.pod["initContainers"] = [{**tree.container, "name": "first", "resources": {}}]
    assert pod_faults(tree.objects) == [
        "Deployment songs/web: container first: no cpu and no memory in resources.requests",
        "Deployment songs/web: container first: no cpu and no memory in resources.limits",
        "Deployment songs/web: container web: no memory in resources.limits",
    ]


def test_a_request_above_its_limit_is_refused(tree: Any) -> None:
    tree.container["resources"]["requests"] = {"cpu": "1500m", "memory": "128M"}
    assert pod_faults(tree.objects) == [
        "Deployment songs/web: container web: requests 1500m of cpu, more than its limit 1"
    ]


def test_a_quantity_that_is_none_is_said(tree: Any) -> None:
    tree.container["resources"]["limits"]["memory"] = "256MB"
    (fault,) = pod_faults(tree.objects)
    assert fault == "Deployment songs/web: container web: memory: '256MB' is not a quantity: 250m, 2, 512Mi"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runAsNonRoot": False}, "may run as root: runAsNonRoot must be true"),
        ({"runAsUser": 0}, "runs as root or as the image likes: runAsUser must be a number above 0"),
        ({"seccompProfile": {"type": "Unconfined"}}, "seccompProfile must be RuntimeDefault"),
        ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation must be false"),
        ({"privileged": True}, "privileged is not allowed"),
        ({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}, "capabilities must drop ALL and add none"),
        ({"capabilities": None}, "capabilities must drop ALL and add none"),
        ({"readOnlyRootFilesystem": False}, "readOnlyRootFilesystem must be true"),
    ],
)
def test_a_container_that_takes_more_than_it_may(tree: Any, change: dict[str, Any], message: str) -> None:
    tree.container["securityContext"].update(change)
    assert pod_faults(tree.objects) == [f"Deployment songs/web: container web: {message}"]


def test_a_pod_without_a_security_context_may_run_as_root(tree: Any) -> None:
    del tree.pod["securityContext"]
    assert "Deployment songs/web: container web: may run as root: runAsNonRoot must be true" in pod_faults(tree.objects)


def test_a_pod_that_reaches_its_node(tree: Any) -> None:
    tree.pod["hostNetwork"] = True
    tree.pod["volumes"] += [{"name": "node", "hostPath": {"path": "/"}}, {"name": "much", "emptyDir": {}}]
    tree.container["ports"][0]["hostPort"] = 80
    assert pod_faults(tree.objects) == [
        "Deployment songs/web: hostNetwork is not allowed",
        "Deployment songs/web: volume node is a hostPath, which the restricted standard does not allow",
        "Deployment songs/web: volume much has no sizeLimit: it could fill its node",
        "Deployment songs/web: container web: hostPort is not allowed",
    ]


def test_a_token_for_the_cluster_that_nobody_needs(tree: Any) -> None:
    del tree.pod["automountServiceAccountToken"]
    (fault,) = pod_faults(tree.objects)
    assert fault == (
        "Deployment songs/web: automountServiceAccountToken must be false: no pod here talks to the cluster"
    )


def test_the_pods_of_a_training_runtime_are_held_to_the_same(tree: Any) -> None:
    job = tree["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["containers"][0]["image"] = "web"
    (fault,) = pod_faults(tree.objects)
    assert fault.startswith("TrainingRuntime songs/torch: container web: image web has no tag")


def test_a_password_that_is_written_out(tree: Any) -> None:
    tree.container["env"] = [
        {"name": "DB_PASSWORD", "value": "hunter2"},
        {"name": "TOKEN_PATH", "value": "/var/run/token"},
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "login", "key": "word"}}},
    ]
    assert pod_faults(tree.objects) == [
        "Deployment songs/web: container web: DB_PASSWORD is written out: take it from a secret"
    ]


def test_a_secret_with_its_values_is_named_without_them(tree: Any) -> None:
    metadata = {"name": "login", "namespace": "songs"}
    tree.objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"word": "aHVudGVyMg=="}})
    assert secret_faults(tree.objects) == ["Secret songs/login: holds its values (word): use an ExternalSecret"]


@pytest.mark.parametrize(
    ("text", "number"), [("250m", 0.25), ("2Gi", 2.0 * 1024**3), ("1.5k", 1500.0), (4, 4.0), ("64Mi", 64.0 * 1024**2)]
)
def test_quantities(text: str | int, number: float) -> None:
    assert quantity(text) == number
