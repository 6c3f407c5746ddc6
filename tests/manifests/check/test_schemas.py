from typing import Any

import pytest

from manifests.check.schemas import schema_faults


def faults(tree: Any) -> list[str]:
    return [fault for one in tree.objects for fault in schema_faults(one)]


def test_sound_objects_have_no_fault(tree: Any) -> None:
    assert faults(tree) == []


def test_an_unknown_field_of_kubernetes_is_named(tree: Any) -> None:
    tree.container["imagePullPolice"] = "Always"
    assert faults(tree) == [
        (
            "Deployment songs/web: spec.template.spec.containers.0: Additional properties are not allowed "
            "('imagePullPolice' was unexpected)"
        )
    ]


def test_a_wrong_type_is_named(tree: Any) -> None:
    tree["Service"]["spec"]["ports"][0]["port"] = "eighty"
    (fault,) = faults(tree)
    assert fault.startswith("Service songs/web: spec.ports.0.port: 'eighty' is not of type")


def test_an_api_that_kubernetes_does_not_have_is_no_mere_warning(tree: Any) -> None:
    tree["PodDisruptionBudget"]["apiVersion"] = "policy/v1beta1"
    assert faults(tree) == [
        (
            "PodDisruptionBudget songs/web: policy/v1beta1 PodDisruptionBudget is not an API of Kubernetes 1.34, "
            "nor one checked here"
        )
    ]


def test_fields_that_the_trainer_models_would_drop_are_named(tree: Any) -> None:
    runtime = tree["TrainingRuntime"]["spec"]
    runtime["mlPolicy"]["torch"]["numProcPerNode"] = "auto"
    job = runtime["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["containers"][0]["resources"]["limit"] = {"cpu": 1}
    where = "TrainingRuntime songs/torch: spec.template.spec.replicatedJobs.0.template.spec.template.spec.containers.0"
    assert faults(tree) == [
        "TrainingRuntime songs/torch: spec.mlPolicy.torch.numProcPerNode: unknown field",
        f"{where}.resources.limit: unknown field",
    ]


def test_a_wrong_type_in_a_trainer_object_is_named(tree: Any) -> None:
    tree["TrainingRuntime"]["spec"]["mlPolicy"]["numNodes"] = "two"
    (fault,) = faults(tree)
    assert fault == "TrainingRuntime songs/torch: numNodes: Input should be a valid integer"


def test_a_kind_that_the_trainer_does_not_have(tree: Any) -> None:
    tree["TrainingRuntime"]["kind"] = "TrainingRunTime"
    assert faults(tree) == ["TrainingRunTime songs/torch: trainer.kubeflow.org/v1alpha1 has no kind TrainingRunTime"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refreshIntervall": "1h"}, "spec: Additional properties are not allowed ('refreshIntervall' was unexpected)"),
        ({"refreshInterval": "hourly"}, "spec.refreshInterval: 'hourly' does not match '^([0-9]+(h|m|s))+$'"),
        ({"data": []}, "spec.data: [] should be non-empty"),
    ],
)
def test_external_secrets_are_held_to_a_schema_of_our_own(tree: Any, change: dict[str, Any], message: str) -> None:
    tree["ExternalSecret"]["spec"].update(change)
    assert faults(tree) == [f"ExternalSecret songs/login: {message}"]


def test_what_is_no_object_is_said() -> None:
    assert schema_faults({"kind": "Pod"}) == ["{'kind': 'Pod'}: not an object with apiVersion, kind and metadata"]
