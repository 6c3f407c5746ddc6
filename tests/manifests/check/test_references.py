import re
from typing import Any

from manifests.check.objects import pods
from manifests.check.references import reference_problems

WEB = "Deployment songs/web: "


def problems(tree: Any) -> list[str]:
    return [problem for pod in pods(tree.objects) for problem in reference_problems(pod, tree.objects)]


def check(tree: Any, *starts: str) -> None:
    """The problems of the service's pod match `starts`."""
    own = [problem.removeprefix(WEB) for problem in problems(tree) if problem.startswith(WEB)]
    assert len(own) == len(starts), own
    assert [problem for problem, start in zip(own, starts, strict=True) if not re.match(start, problem)] == []


def test_a_tree_without_missing_objects_has_no_problem(tree: Any) -> None:
    assert problems(tree) == []


def test_missing_settings_and_keys(tree: Any) -> None:
    tree.container["env"] = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "storag", "key": "bucket"}}},
        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "storage", "key": "pail"}}},
        {"name": "C", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
    ]
    tree.container["envFrom"] = [{"secretRef": {"name": "logins"}}]
    check(
        tree,
        "Secret logins ", "ConfigMap storag ", "ConfigMap storage .*pail", "Secret login .*password",
    )  # fmt: skip


def test_a_secret_of_another_namespace(tree: Any) -> None:
    tree["ExternalSecret"]["metadata"]["namespace"] = "other"
    check(tree, "Secret login ")


def test_accounts(tree: Any) -> None:
    tree.pod["serviceAccountName"] = "gone"
    check(tree, "ServiceAccount gone ")
    del tree.pod["serviceAccountName"]
    check(tree, ".*serviceAccountName")


def test_volumes_and_their_content(tree: Any) -> None:
    tree.pod["volumes"] = [
        {"name": "settings", "configMap": {"name": "storage", "items": [{"key": "pail", "path": "pail"}]}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "disk"}},
        {"name": "login", "secret": {"secretName": "logins"}},
        {"name": "both", "projected": {"sources": [{"secret": {"name": "none"}}]}},
    ]
    check(
        tree,
        "container web .*tmp", "ConfigMap storage .*pail", "PersistentVolumeClaim disk ",
        "Secret logins ", "Secret none ",
    )  # fmt: skip


def test_a_health_check_of_a_closed_port(tree: Any) -> None:
    tree.container["livenessProbe"] = {"tcpSocket": {"port": "admin"}}
    check(tree, "container web: livenessProbe ")


def test_a_volume_claim_of_a_stateful_set_belongs_to_its_pods(tree: Any) -> None:
    tree["Deployment"].update(kind="StatefulSet")
    tree["StatefulSet"]["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "data"}}]
    tree["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [
        {"name": "data", "mountPath": "/data"}
    ]
    assert problems(tree) == []
