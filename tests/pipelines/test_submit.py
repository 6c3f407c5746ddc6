import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, UNAUTHENTICATED

from audioscore.cli import app
from audioscore.config import SMALL, Config, load_config
from audioscore.data.versions.repository import pull_missing
from audioscore.data.versions.storage import DATA_URI_FORMS
from audioscore.errors import GateRefused
from audioscore.files import write_json
from pipelines import submit
from pipelines.interrupt import Interrupted, Signalled
from pipelines.local_run import local_sources
from pipelines.request import SubmitRequest
from pipelines.resume import CODE


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")  # a message is one line in a narrow terminal too
    return tmp_path / "home"


@pytest.fixture(scope="module", autouse=True)
def _encoders() -> None:
    """The small encoders, which a fresh clone has not pulled: a run reports that it pulls them."""
    for source in local_sources(load_config(SMALL)):
        pull_missing(source, lambda *_: None)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error on standard error, where libraries may log too."""
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (len(lines), "Traceback" in err) == (1, False), err
    return lines[0]


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (SubmitRequest(overrides=["training.epoch=3"], data="."), ("training.epoch: ",)),
        (SubmitRequest(overrides=["nonsense"]), ("--set nonsense: ", "a.b=value")),
        (SubmitRequest(), ("--data", "data.uri")),
        (SubmitRequest(data="gone"), ("gone: ", DATA_URI_FORMS)),
        (SubmitRequest(data="gone[red]"), ("gone[red]: ",)),
        (SubmitRequest(config="gone.yaml"), ("gone.yaml: ",)),
        (SubmitRequest(data="tests"), ("tests", "labels.csv, ")),
        (SubmitRequest(data="tests", dry_run=True), ("tests", "labels.csv, ")),
        (SubmitRequest(resume=True), ("resume", "{home}")),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_creates_no_file(
    request_: SubmitRequest, names: tuple[str, ...], own_home: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(submit.REPOSITORY)
    assert submit.main(request_) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert [name for name in names if name.format(home=own_home) not in streams.err] == []
    assert streams.err.count("\n") == 1
    assert not own_home.exists()


def test_a_dry_run_prints_the_configuration(
    tiny_corpus: Path, own_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_corpus.parent)
    request = SubmitRequest(
        data=tiny_corpus.name, overrides=["training.epochs=4"], dry_run=True, require_promotion=True
    )
    assert submit.main(replace(request, as_json=True)) == 0
    document = json.loads(capsys.readouterr().out)
    overrides = ["training.epochs=4", f"data.uri={json.dumps(str(tiny_corpus))}"]
    assert document["config"] == load_config(SMALL, overrides).model_dump(mode="json")
    assert (document["dry_run"], document["home"]) == (True, str(own_home))
    assert submit.main(request) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["training"]["epochs"] == 4
    assert re.search(rf"\b4 plans .*{tiny_corpus}", streams.err)
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MlflowException("why", UNAUTHENTICATED), 2),
        (MlflowException("why", INVALID_PARAMETER_VALUE), 70),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "why"), 2),
        (UnicodeEncodeError("ascii", "歌", 0, 1, "why"), 70),
        (FileNotFoundError(2, "why", "/srv/x"), 2),
        (GateRefused("a: b. c."), 1),
    ],
)
def test_faults_of_the_program_have_an_exit_code_of_their_own(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setattr(submit, "run", failing)
    assert submit.main(SubmitRequest()) == code
    assert capsys.readouterr().err.startswith("error: ") == (code != 70)
    monkeypatch.setattr(app, "app", failing)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("error: ") == (code != 70)


@pytest.mark.parametrize(
    ("error", "on", "code", "resumable"),
    [
        (Interrupted(15), "local", 143, True),
        (Interrupted(2), "docker", 130, True),
        (KeyboardInterrupt(), "local", 130, False),
        (Signalled(15), "local", 143, False),
        (KeyboardInterrupt(), "cluster", 130, False),
    ],
)
def test_an_interrupt_is_reported_with_the_way_to_continue(
    error: KeyboardInterrupt, on: Literal["local", "docker", "cluster"], code: int, resumable: bool,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(submit, "run", interrupted)
    assert submit.main(SubmitRequest(on=on)) == code
    err = capsys.readouterr().err
    assert ("--resume" in err) == resumable
    assert ("cluster" in err) == (on == "cluster")


def test_resume_alone_continues_the_newest_run_with_its_settings(
    tiny_corpus: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = load_config(SMALL, ["training.epochs=4", f"data.uri={json.dumps(str(tiny_corpus))}"])
    write_json(own_home / "runs" / "20260101-000000-aaaa" / "config.json", started.model_dump(exclude_none=True))
    runs: list[Config] = []

    def run_on_machine(config: Config, *_: object) -> dict[str, Any]:
        runs.append(config)
        return {"decision": {"promoted": True, "reason": ""}}

    monkeypatch.setattr(submit, "run_on_machine", run_on_machine)
    monkeypatch.setattr(submit, "pull_missing", lambda *_: None)
    assert submit.main(SubmitRequest(resume=True)) == 0
    assert submit.main(SubmitRequest(resume=True, data=str(tiny_corpus), overrides=["training.epochs=4"])) == 0
    assert [config.model_dump() for config in runs] == [started.model_dump()] * 2
    assert submit.main(SubmitRequest(resume=True, data=str(tiny_corpus))) == 2
    assert "(training.epochs)" in capsys.readouterr().err


@pytest.mark.parametrize(("on", "code"), [(None, 0), ("docker", 0), ("local", 2)])
def test_a_run_is_resumed_where_its_steps_ran(
    on: Literal["local", "docker"] | None, code: int, tiny_corpus: Path, own_home: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    started = load_config(SMALL, [f"data.uri={json.dumps(str(tiny_corpus))}"])
    folder = own_home / "runs" / "20260101-000000-aaaa"
    write_json(folder / "config.json", started.model_dump(exclude_none=True))
    write_json(folder / CODE, {"code_rev": "12ab", "on": "docker", "image": "songs 0123"})
    calls: list[tuple[str, Path]] = []

    def run_on_machine(config: Config, request: SubmitRequest, on: str, folder: Path, *_: object) -> dict[str, Any]:
        calls.append((on, folder))
        return {"decision": {"promoted": True, "reason": ""}}

    monkeypatch.setattr(submit, "run_on_machine", run_on_machine)
    monkeypatch.setattr(submit, "pull_missing", lambda *_: None)
    assert submit.main(SubmitRequest(resume=True, on=on)) == code
    assert calls == ([] if code else [("docker", folder)])
    if code:
        assert re.search(r"20260101-000000-aaaa\b.*--on docker.* local", capsys.readouterr().err)


def test_sigterm_runs_the_cleanup(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    def run(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            closed.append(True)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(submit, "run", run)
    assert submit.main(SubmitRequest()) == 143
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(("promoted", "required", "code"), [(False, False, 0), (False, True, 1), (True, True, 0)])
def test_a_missing_promotion_is_an_error_only_if_required(
    promoted: bool, required: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"decision": {"promoted": promoted, "reason": "[equal]"}}
    monkeypatch.setattr(submit, "run", lambda *_: result)
    assert submit.main(SubmitRequest(as_json=True, require_promotion=required)) == code
    streams = capsys.readouterr()
    assert json.loads(streams.out) == result
    assert streams.err == ("not promoted: [equal]\n" if code else "")


def test_too_many_rejected_clips(small_run: SubmitRequest, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strict = [*small_run.overrides, "validation.max_rejected_share=0.01"]
    assert submit.main(replace(small_run, overrides=strict)) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "Traceback" not in streams.err
    (error,) = [line for line in streams.err.splitlines() if line.startswith("error: ")]
    assert "3 of 48" in error
    assert streams.err.rstrip().endswith(error)
    (folder,) = (own_home / "runs").iterdir()
    logs = sorted(path.name for path in (folder / "logs").iterdir())
    assert logs == ["01-fetch_data.log", "02-validate_data.log"]
    (page,) = folder.glob("steps/*/validate-data/report")
    assert str(page) in error
    assert "audio/c007.wav" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("address", ["ftp://host/data", "gone/data"])
def test_missing_data_are_refused_before_the_home_is_created(
    address: str, own_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_home.parent)
    for dry_run in (False, True):
        assert submit.main(SubmitRequest(data=address, dry_run=dry_run)) == 2
        assert re.search(f"{address}: .*s3://", capsys.readouterr().err)
    assert not own_home.exists()


@pytest.mark.parametrize("address", ["/srv/songs@v1", "git+file:///srv/songs@v1", "git+/srv/songs@v1#corpus"])
def test_containers_refuse_a_local_repository(address: str, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dry_run in (False, True):
        assert submit.main(SubmitRequest(data=address, on="docker", dry_run=dry_run)) == 2
        assert re.match(re.escape(f"error: {address}: /srv/songs") + ".* git ", error_line(capsys))
    assert not own_home.exists()


@pytest.mark.parametrize(
    "setting",
    [
        "training.init=warm:/gone/scorer", "encoders.muq.source=/gone/muq", "encoders.campplus.source=/gone/campplus",
        "data.singer_from='('", "validation.severity.gone=off", "registry.model=team/singing",
    ],
)  # fmt: skip
def test_settings_that_a_later_step_refuses_end_the_run_before_the_first_step(
    setting: str, tiny_corpus: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(SubmitRequest(data=str(tiny_corpus), overrides=[setting])) == 2
    line = error_line(capsys)
    assert setting.partition("=")[2].removeprefix("warm:") in line or "gone" in line
    assert not own_home.exists()


def test_a_home_that_is_too_deep_ends_the_run_before_the_first_step(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path.joinpath(*["d" * 79] * 7)))
    assert submit.main(SubmitRequest(data=str(tiny_corpus))) == 2
    line = error_line(capsys)
    assert line.startswith("error: AUDIOSCORE_HOME: ")
    assert list(tmp_path.iterdir()) == []
