import io
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from audioscore.config import SMALL, Config, load_config
from audioscore.data.versions.storage import ACCEPTED
from audioscore.files import write_json
from pipelines import containers, submit
from pipelines.interrupt import Interrupted, Signalled
from pipelines.resume import CODE, code_digest


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")  # a sentence is one line however narrow the terminal
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--set", "training.epoch=3", "--data", "."], ("training.epoch: ",)),
        (["--set", "nonsense"], ("--set nonsense: ", "a.b=value")),
        ([], ("--data", "data.uri")),
        (["--data", "gone"], ("gone: ", ACCEPTED)),
        (["--data", "gone[red]"], ("gone[red]: ",)),
        (["--config", "gone.yaml"], ("gone.yaml: ",)),
        (["--data", "tests"], ("tests ", "labels.csv, ")),
        (["--data", "tests", "--dry-run"], ("tests ", "labels.csv, ")),
        (["--resume"], ("resume", "{home}")),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_leaves_nothing(
    arguments: list[str], names: tuple[str, ...], own_home: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(submit.REPOSITORY)
    assert submit.main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert [name for name in names if name.format(home=own_home) not in streams.err] == []
    assert streams.err.count("\n") == 1
    assert not own_home.exists()


def test_an_unknown_option_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        submit.main(["--on", "the moon"])
    assert ended.value.code == 2
    assert "invalid choice: 'the moon'" in capsys.readouterr().err


def test_a_dry_run_says_what_would_run(
    tiny_corpus: Path, own_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_corpus.parent)
    options = ["--data", tiny_corpus.name, "--set", "training.epochs=4", "--dry-run", "--require-promotion"]
    assert submit.main([*options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    overrides = ["training.epochs=4", f"data.uri={json.dumps(str(tiny_corpus))}"]
    assert document["config"] == load_config(SMALL, overrides).model_dump(mode="json")
    assert (document["dry_run"], document["home"]) == (True, str(own_home))
    assert submit.main(options) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["training"]["epochs"] == 4
    assert re.search(rf"\b4 plans .*{tiny_corpus}", streams.err)
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("fault", "place", "code", "named"),
    [
        (Interrupted(15), "local", 143, ("step", "--resume")),
        (Interrupted(2), "docker", 130, ("container", "--resume")),
        (KeyboardInterrupt(), "local", 130, ("step",)),
        (Signalled(15), "local", 143, ("step",)),
        (KeyboardInterrupt(), "cluster", 130, ("cluster",)),
    ],
)
def test_what_an_interrupt_leaves_is_printed(
    fault: KeyboardInterrupt, place: str, code: int, named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*_: object) -> None:
        raise fault

    monkeypatch.setattr(submit, "run", interrupted)
    assert submit.main(["--on", place]) == code
    err = capsys.readouterr().err
    assert [name for name in named if name not in err] == []
    assert ("--resume" in err) == ("--resume" in named)


def test_resume_alone_is_of_the_newest_run_as_it_was_started(
    tiny_corpus: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = load_config(SMALL, ["training.epochs=4", f"data.uri={json.dumps(str(tiny_corpus))}"])
    write_json(own_home / "runs" / "20260101-000000-aaaa" / "config.json", started.model_dump(exclude_none=True))
    runs: list[Config] = []

    def run_here(config: Config, *_: object) -> dict[str, Any]:
        runs.append(config)
        return {"decision": {"promoted": True, "reason": ""}}

    monkeypatch.setattr(submit, "_run_here", run_here)
    monkeypatch.setattr(submit, "pull_missing", lambda *_: None)
    assert submit.main(["--resume"]) == 0
    assert submit.main(["--resume", "--data", str(tiny_corpus), "--set", "training.epochs=4"]) == 0
    assert [config.model_dump() for config in runs] == [started.model_dump()] * 2
    assert submit.main(["--resume", "--data", str(tiny_corpus)]) == 2
    assert "(training.epochs)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "code"),
    [([], 0), (["--on", "docker"], 0), (["--on", "local"], 2)],
    ids=["as it was", "there", "elsewhere"],
)
def test_a_run_is_resumed_where_its_steps_ran(
    asked: list[str], code: int, tiny_corpus: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    started = load_config(SMALL, [f"data.uri={json.dumps(str(tiny_corpus))}"])
    folder = own_home / "runs" / "20260101-000000-aaaa"
    write_json(folder / "config.json", started.model_dump(exclude_none=True))
    write_json(folder / CODE, {"code_rev": "12ab", "on": "docker", "image": "songs 0123"})
    places: list[tuple[str, Path]] = []

    def run_here(config: Config, options: Any, folder: Path, *_: object) -> dict[str, Any]:
        places.append((options.on, folder))
        return {"decision": {"promoted": True, "reason": ""}}

    monkeypatch.setattr(submit, "_run_here", run_here)
    monkeypatch.setattr(submit, "pull_missing", lambda *_: None)
    assert submit.main(["--resume", *asked]) == code
    assert places == ([] if code else [("docker", folder)])
    if code:
        assert re.search("20260101-000000-aaaa .*--on docker.* local", capsys.readouterr().err)


def test_a_request_to_end_closes_what_was_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    def run(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            closed.append(True)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(submit, "run", run)
    assert submit.main([]) == 143
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(("promoted", "required", "code"), [(False, False, 0), (False, True, 1), (True, True, 0)])
def test_a_promotion_counts_only_where_it_is_required(
    promoted: bool, required: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"decision": {"promoted": promoted, "reason": "[equal]"}}
    monkeypatch.setattr(submit, "run", lambda *_: result)
    assert submit.main(["--json", *["--require-promotion"] * required]) == code
    streams = capsys.readouterr()
    assert json.loads(streams.out) == result
    assert streams.err == ("not promoted: [equal]\n" if code else "")


def test_too_many_rejected_clips(arguments: list[str], own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main([*arguments, "--set", "validation.max_rejected_share=0.01"]) == 1
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
def test_data_that_cannot_be_there_are_refused_before_anything_is_set_up(
    address: str, own_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_home.parent)
    for options in ([], ["--dry-run"]):
        assert submit.main(["--data", address, *options]) == 2
        assert re.search(f"{address}: .*s3://", capsys.readouterr().err)
    assert not own_home.exists()


@pytest.mark.parametrize("address", ["/srv/songs@v1", "git+file:///srv/songs@v1", "git+/srv/songs@v1#corpus"])
def test_containers_refuse_a_local_repository(address: str, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--dry-run"]):
        assert submit.main(["--data", address, "--on", "docker", *more]) == 2
        err = capsys.readouterr().err
        assert re.match(re.escape(f"error: {address}: /srv/songs") + ".* git ", err)
        assert err.count("\n") == 1
    assert not own_home.exists()


@pytest.mark.parametrize(("revision", "told"), [("12ab", False), ("34cd", True)])
def test_the_code_revision_is_of_the_image(revision: str, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_CODE_REVISION", "12ab")
    monkeypatch.setattr(containers, "code_in", lambda image: containers.ImageCode(f"{image} 0123", revision))
    config, screen = load_config(SMALL), io.StringIO()
    image = config.containers.image
    code = submit._code(config, "docker", Console(file=screen))
    assert code == {"code_rev": revision, "on": "docker", "image": f"{image} 0123"}
    assert (revision in screen.getvalue()) == told
    assert ("12ab" in screen.getvalue()) == told
    local = submit._code(config, "local", Console(file=screen))
    assert local == {"code_rev": "12ab", "on": "local", "image": image, "digest": code_digest(submit.REPOSITORY)}
