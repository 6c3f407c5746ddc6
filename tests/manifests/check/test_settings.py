from typing import Any

import pytest

from manifests.check.settings import settings_faults

DIGEST = f"sha256:{'1' * 64}"
RUN = """
encoders: {muq: {source: a/b}, campplus: {source: c/d}}
cluster:
  namespace: songs
  secrets: [{name: login, env: {word: WORD}}]
  env: {AWS_ENDPOINT_URL: "http://s3", AWS_DEFAULT_REGION: here}
"""


@pytest.fixture
def running(tree: Any) -> Any:
    """The tree, whose pod starts a run with settings from a ConfigMap."""
    metadata = {"name": "settings", "namespace": "songs"}
    store = {"AWS_ENDPOINT_URL": "http://s3", "AWS_DEFAULT_REGION": "here", "bucket": "songs"}
    tree["ConfigMap"]["data"] = store
    tree.objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"run.yaml": RUN}})
    tree.container.update(
        command=["audioscore", "run", "--on", "cluster"],
        args=["--config=/etc/audioscore/run.yaml", "--set=cluster.image=$(AUDIOSCORE_IMAGE)"],
        env=[{"name": "AUDIOSCORE_IMAGE", "value": f"web@{DIGEST}"}],
        volumeMounts=[{"name": "settings", "mountPath": "/etc/audioscore"}],
    )
    tree.pod["volumes"] = [{"name": "settings", "configMap": {"name": "settings"}}]
    return tree


def write(running: Any, text: str) -> None:
    running["ConfigMap"]["data"]["run.yaml"] = text


def test_settings_that_a_run_would_start_with(running: Any) -> None:
    assert settings_faults(running.objects) == []


def test_a_key_that_the_configuration_does_not_know(running: Any) -> None:
    write(running, RUN + "  gpu: 4\n")
    (fault,) = settings_faults(running.objects)
    assert fault.startswith("Deployment songs/web: its settings are refused: ")
    assert fault.endswith("run.yaml: 1 wrong: cluster.gpu: there is no such key; there is gpus.")


def test_an_image_that_the_configuration_does_not_take(running: Any) -> None:
    running.container["env"][0]["value"] = "web:1.2"
    (fault,) = settings_faults(running.objects)
    assert "cluster.image: Value error, web:1.2 may be another image tomorrow" in fault


def test_a_run_without_settings(running: Any) -> None:
    running.pod["volumes"] = []
    (fault,) = settings_faults(running.objects)
    assert fault.endswith("names no --config that a ConfigMap of the pod holds")


def test_secrets_of_the_steps_lie_where_the_steps_run(running: Any) -> None:
    write(running, RUN.replace("word: WORD", "wort: WORD"))
    assert settings_faults(running.objects) == ["Deployment songs/web: cluster.secrets: songs/login has no wort"]
    write(running, RUN.replace("namespace: songs", "namespace: kubeflow"))
    assert settings_faults(running.objects) == ["Deployment songs/web: cluster.secrets: kubeflow/login has no word"]


def test_the_steps_write_where_the_others_read(running: Any) -> None:
    write(running, RUN.replace("http://s3", "http://s4"))
    assert settings_faults(running.objects) == [
        "Deployment songs/web: cluster.env.AWS_ENDPOINT_URL is http://s4, but ConfigMap songs/places says http://s3"
    ]
