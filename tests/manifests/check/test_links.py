from typing import Any

import pytest

from manifests.check.links import link_faults


def test_sound_links_have_no_fault(tree: Any) -> None:
    assert link_faults(tree.objects) == []


def test_a_service_that_selects_nobody(tree: Any) -> None:
    tree["Service"]["spec"]["selector"] = {"app": "wep"}
    assert link_faults(tree.objects) == ["Service songs/web: selector app=wep selects no pod"]


@pytest.mark.parametrize("target", ["https", 8001])
def test_a_service_whose_port_no_container_opens(tree: Any, target: str | int) -> None:
    tree["Service"]["spec"]["ports"][0]["targetPort"] = target
    assert link_faults(tree.objects) == [
        f"Service songs/web: port 80: Deployment songs/web has no container port {target}"
    ]


def test_a_service_port_is_its_own_target_unless_told(tree: Any) -> None:
    tree["Service"]["spec"]["ports"] = [{"port": 8000}]
    assert link_faults(tree.objects) == []


def test_pods_of_another_namespace_are_not_selected(tree: Any) -> None:
    tree["Service"]["metadata"]["namespace"] = "other"
    assert link_faults(tree.objects) == ["Service other/web: selector app=web selects no pod"]


def test_a_budget_and_a_policy_that_select_nobody(tree: Any) -> None:
    tree["PodDisruptionBudget"]["spec"]["selector"] = {"matchLabels": {"app": "old"}}
    tree["NetworkPolicy"]["spec"]["egress"][0]["to"][0]["podSelector"] = {
        "matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "gone"]}]
    }
    assert link_faults(tree.objects) == [
        "NetworkPolicy songs/itself: egress.to.podSelector names app=gone, which no pod has",
        "PodDisruptionBudget songs/web: selector app=old selects no pod",
    ]


def test_a_policy_for_a_port_that_its_pods_do_not_have(tree: Any) -> None:
    tree["NetworkPolicy"]["spec"]["egress"][0]["ports"][0]["port"] = "metrics"
    assert link_faults(tree.objects) == [
        "NetworkPolicy songs/itself: Deployment songs/web has no container port metrics"
    ]


def test_a_scaler_of_something_that_is_not_there(tree: Any) -> None:
    tree["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] = "wep"
    assert link_faults(tree.objects) == ["HorizontalPodAutoscaler songs/web: scales Deployment wep, which is not there"]


def test_replicas_and_a_scaler_do_not_go_together(tree: Any) -> None:
    tree["Deployment"]["spec"]["replicas"] = 2
    assert link_faults(tree.objects) == [
        "HorizontalPodAutoscaler songs/web: Deployment web sets replicas too: every apply would undo the scaling"
    ]


def test_a_binding_to_a_role_or_an_account_that_is_not_there(tree: Any) -> None:
    tree["RoleBinding"]["roleRef"]["name"] = "see"
    tree["RoleBinding"]["subjects"].append({"kind": "ServiceAccount", "name": "gone", "namespace": "songs"})
    tree["RoleBinding"]["subjects"].append({"kind": "ServiceAccount", "name": "theirs", "namespace": "kubeflow"})
    assert link_faults(tree.objects) == [
        "RoleBinding songs/look: roleRef Role see is not there",
        "RoleBinding songs/look: subject gone is no ServiceAccount of songs",
    ]


def test_two_deployments_that_would_fight_over_pods(tree: Any) -> None:
    twin = {**tree["Deployment"], "metadata": {"name": "twin", "namespace": "songs"}}
    tree.objects.append(twin)
    assert link_faults(tree.objects)[:2] == [
        "Deployment songs/web: selector app=web also selects the pods of Deployment songs/twin",
        "Deployment songs/twin: selector app=web also selects the pods of Deployment songs/web",
    ]


def test_a_selector_that_misses_its_own_pods(tree: Any) -> None:
    tree["Deployment"]["spec"]["selector"] = {"matchLabels": {"app": "old"}}
    assert link_faults(tree.objects) == ["Deployment songs/web: selector app=old does not select its own pods"]


def test_one_place_says_which_image_a_run_hands_on(tree: Any) -> None:
    tree.container["env"].append({"name": "AUDIOSCORE_IMAGE", "value": "web:1.1"})
    assert link_faults(tree.objects) == [
        "Deployment songs/web: AUDIOSCORE_IMAGE is web:1.1, not registry.example.com/web:1.2"
    ]
