import json
import re

import pytest

from audioscore.config import SMALL, load_config
from audioscore.errors import UsageError
from pipelines.request import CompileRequest, SubmitRequest, cluster_parameters, pipeline_parameters, read_request


def test_options_of_both_programs() -> None:
    options = {"data": "/songs", "overrides": ["a=1", "b=2"], "on": "docker", "require_promotion": True}
    expected = SubmitRequest(data="/songs", overrides=["a=1", "b=2"], on="docker", require_promotion=True)
    assert read_request(["submit", json.dumps(options)]) == ("submit", expected)
    assert read_request(["submit", "{}"]) == ("submit", SubmitRequest())
    document = json.dumps({"out": "a.yaml", "kubernetes": True})
    assert read_request(["compile", document]) == ("compile", CompileRequest(out="a.yaml", kubernetes=True))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], r"submit.*compile.*\b0\b"),
        (["submit"], r"\b1\b"),
        (["train", "{}"], "submit.*compile"),
        (["submit", "--data"], "submit: .*JSON"),
        (["submit", "[]"], "submit: .*list"),
        (["submit", '{"loud": 1, "out": "a.yaml"}'], "submit: .*loud, out"),
        (["compile", '{"kubernetes": true}'], "compile: .*out"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_request(arguments)
    assert re.search(named, str(refused.value))


def test_parameters_leave_out_where_a_run_runs() -> None:
    config = load_config(SMALL, ["data.uri=/songs", "cluster.shards=2", "training.plans=[baseline,hybrid]"])
    local = pipeline_parameters(config, "run-1", "12ab")
    assert (local["data_uri"], local["run_id"], local["code_rev"]) == ("/songs", "run-1", "12ab")
    assert (local["plans"], len(local["shards"])) == (["baseline", "hybrid"], 1)
    assert not {"cluster", "containers"} & set(local["settings"])
    cluster = cluster_parameters(config, "run-1", "12ab")
    assert cluster["shards"] == ["0/2", "1/2"]
    assert cluster["settings"] == local["settings"]
    assert set(cluster) - set(local) == {"feature_store", "tracking_uri", "artifact_root", "image"}
