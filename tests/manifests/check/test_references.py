from typing import Any

from manifests.check.objects import pods
from manifests.check.references import reference_faults


def faults(tree: Any) -> list[str]:
    return [fault for pod in pods(tree.objects) for fault in reference_faults(pod, tree.objects)]


def own(tree: Any) -> list[str]:
    """Faults of the service's pod, without its name; the training runtime's is left as it was."""
    prefix = "Deployment songs/web: "
    return [fault.removeprefix(prefix) for fault in faults(tree) if fault.startswith(prefix)]


def test_everything_named_is_there(tree: Any) -> None:
    assert faults(tree) == []


def test_settings_and_keys_that_are_not_there(tree: Any) -> None:
    tree.container["env"] = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "place", "key": "bucket"}}},
        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "places", "key": "pail"}}},
        {"name": "C", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
    ]
    tree.container["envFrom"] = [{"secretRef": {"name": "logins"}}]
    assert own(tree) == [
        "Secret logins is not there, nor does an ExternalSecret make it",
        "ConfigMap place is not there",
        "ConfigMap places has no key pail, but bucket",
        "Secret login has no key password, but word",
    ]


def test_a_secret_of_another_namespace_is_not_there(tree: Any) -> None:
    tree["ExternalSecret"]["metadata"]["namespace"] = "other"
    assert own(tree) == ["Secret login is not there, nor does an ExternalSecret make it"]


def test_accounts(tree: Any) -> None:
    tree.pod["serviceAccountName"] = "gone"
    assert own(tree) == ["ServiceAccount gone is not there"]
    del tree.pod["serviceAccountName"]
    assert own(tree) == ["no serviceAccountName: it would run as `default`, which everybody shares"]


def test_volumes_and_what_they_hold(tree: Any) -> None:
    tree.pod["volumes"] = [
        {"name": "settings", "configMap": {"name": "places", "items": [{"key": "pail", "path": "pail"}]}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "disk"}},
        {"name": "login", "secret": {"secretName": "logins"}},
        {"name": "both", "projected": {"sources": [{"secret": {"name": "none"}}]}},
    ]
    assert own(tree) == [
        "container web mounts tmp, which is no volume of the pod",
        "ConfigMap places has no key pail, but bucket",
        "PersistentVolumeClaim disk is not there",
        "Secret logins is not there, nor does an ExternalSecret make it",
        "Secret none is not there, nor does an ExternalSecret make it",
    ]


def test_a_probe_of_a_port_that_is_not_open(tree: Any) -> None:
    tree.container["livenessProbe"] = {"tcpSocket": {"port": "admin"}}
    assert own(tree) == ["container web: livenessProbe asks port admin, which it does not open"]


def test_a_volume_claim_of_a_stateful_set_is_its_pods(tree: Any) -> None:
    tree["Deployment"].update(kind="StatefulSet")
    tree["StatefulSet"]["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "data"}}]
    tree["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [
        {"name": "data", "mountPath": "/data"}
    ]
    assert faults(tree) == []
