"""Runs on a cluster: KFP's own client against a local server with the responses of the KFP API."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import cluster_run, submit
from pipelines.request import SubmitRequest

IMAGE = "registry.example/audioscore-python@sha256:" + "a" * 64
SETTINGS = (
    f"cluster.image={IMAGE}", "cluster.feature_store=s3://features/audioscore", "data.uri=s3://corpus/songs",
    "encoders.muq.source=OpenMuQ/MuQ-large-msd-iter", "cluster.shards=2",
    "encoders.campplus.source=iic/speech_campplus_sv_zh-cn_16k-common",
)  # fmt: skip
RESULT = {"run_id": "x", "decision": {"promoted": True, "reason": "better"}}
TASKS = [
    [("fetch-data", "RUNNING")],
    [("fetch-data", "SUCCEEDED"), ("validate-data", "CACHED"), ("sort-data", "RUNNING")],
    [("fetch-data", "SUCCEEDED"), ("validate-data", "CACHED"), ("sort-data", "SUCCEEDED")],
]


class Api:
    """The part of the KFP API that a run needs; `requested` is the run that was created."""

    def __init__(self, last: str = "SUCCEEDED", refuse: int = 0) -> None:
        self.last, self.refuse, self.requested, self.polls = last, refuse, {}, 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.respond(api.get(self.path))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                self.respond(api.post(self.path, json.loads(self.rfile.read(length))))

            def respond(self, document: Any) -> None:
                body = json.dumps(document).encode()
                self.send_response(api.refuse if api.refuse and "/runs" in self.path else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def get(self, path: str) -> Any:
        if "/runs/" in path:
            tasks = TASKS[min(self.polls, len(TASKS) - 1)]
            ended = self.polls >= len(TASKS) - 1
            self.polls += 1
            details = [{"display_name": name, "state": state} for name, state in tasks]
            state = self.last if ended else "RUNNING"
            return {"run_id": "run-1", "state": state, "run_details": {"task_details": details}}
        if "/experiments" in path:
            return {"experiments": [{"experiment_id": "e-1", "display_name": "audioscore"}]}
        return {"multi_user": False}

    def post(self, path: str, document: Any) -> Any:
        if path.endswith("/runs"):
            self.requested = document
            return {"run_id": "run-1", "display_name": document["display_name"]}
        return {"experiment_id": "e-1"}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Api]:
    monkeypatch.setattr(cluster_run, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cluster_run, "_fetch_result", lambda config, run_id: {**RESULT, "run_id": run_id})
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))  # where KFP's client stores its login
    served = Api()
    yield served
    served.server.shutdown()
    served.server.server_close()


def run(api: Api, *more: str) -> int:
    settings = [*SETTINGS, "cluster.tracking_uri=https://mlflow.example", f"cluster.host={api.address}", *more]
    return submit.main(SubmitRequest(on="cluster", overrides=settings, as_json=True))


def test_a_run_is_created_followed_and_its_result_fetched(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(api) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["decision"] == RESULT["decision"]
    assert json.loads(streams.out)["run_id"] == api.requested["display_name"]
    for line in ("running   fetch_data", "succeeded fetch_data", "kept      validate_data", "succeeded sort_data"):
        assert line.replace("_", "-") in streams.err
    assert streams.err.count("fetch-data") == 2
    parameters = api.requested["runtime_config"]["parameters"]
    assert parameters["image"] == IMAGE
    assert parameters["shards"] == ["0/2", "1/2"]
    assert parameters["feature_store"] == "s3://features/audioscore"
    assert parameters["data_uri"] == "s3://corpus/songs"
    assert not {"cluster", "containers"} & set(parameters["settings"])
    specification = api.requested["pipeline_spec"]
    pipeline = specification.get("pipeline_spec", specification)
    assert pipeline["pipelineInfo"]["name"] == "audioscore"
    assert "platforms" in yaml.safe_dump(specification)


def test_a_failed_run_is_an_error(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.last = "FAILED"
    assert run(api) == cluster_run.ClusterRunFailed.exit_code
    assert "(run-1): failed" in capsys.readouterr().err


def test_an_api_that_refuses_is_one_error(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.refuse = 403
    assert run(api) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "(403)" in line
    assert run(api, "cluster.host=http://127.0.0.1:9") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "(403)" not in line
    assert "cluster.host" in line


TRACKED = "cluster.tracking_uri=https://mlflow.example"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([], ("cluster.tracking_uri", "database")),
        ([TRACKED, "data.uri=/songs"], ("/songs: ",)),
        ([TRACKED, "encoders.muq.source=/models/muq"], ("encoders.muq.source /models/muq",)),
        (["cluster.tracking_uri=sqlite:///x"], ("cluster.tracking_uri: ", "pattern")),
    ],
)
def test_settings_of_this_machine_only_are_refused(
    settings: list[str], names: tuple[str, ...], api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(SubmitRequest(on="cluster", overrides=[*SETTINGS, *settings])) == 2
    err = capsys.readouterr().err
    assert [name for name in names if name not in err] == []
    assert api.requested == {}


def test_encoders_on_the_volume_are_accepted(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(api, "cluster.volume={claim: encoders}", "encoders.muq.source=/cache/muq") == 0
    assert json.loads(capsys.readouterr().out)["decision"]["promoted"]
