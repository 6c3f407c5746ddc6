import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from audioscore.config import SMALL, Config, load_config
from audioscore.data.storage import ACCEPTED
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
    ("arguments", "sentence"),
    [
        (["--set", "training.epoch=3", "--data", "."], "training.epoch: there is no such key"),
        (["--set", "nonsense"], "--set nonsense: expected a.b=value"),
        ([], "no data: pass --data FOLDER (or s3://…, or a git repository with @REV), or set data.uri."),
        (["--data", "gone"], f"gone: no such folder. Give {ACCEPTED}."),
        (["--data", "gone[red]"], "gone[red]: no such folder."),
        (["--config", "gone.yaml"], "gone.yaml: no such configuration."),
        (["--data", "tests"], "tests holds no labels table. Put one of labels.csv, "),
        (["--data", "tests", "--dry-run"], "tests holds no labels table. Put one of labels.csv, "),
        (["--resume"], "nothing to resume: no run was started in "),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_sentence_and_leaves_nothing(
    arguments: list[str], sentence: str, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert sentence in streams.err
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
    assert f"would run 4 plans on {tiny_corpus}; nothing was run." in streams.err
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("fault", "place", "code", "said"),
    [
        (Interrupted(15), "local", 143, "no step runs any more, and the same command with --resume goes on from here"),
        (Interrupted(2), "docker", 130, "no container runs any more, and the same command with --resume goes on from"),
        (KeyboardInterrupt(), "local", 130, "no step was running"),
        (Signalled(15), "local", 143, "no step was running"),
        (KeyboardInterrupt(), "cluster", 130, "what was started on the cluster goes on there"),
    ],
)
def test_what_an_interrupt_leaves_is_told(
    fault: KeyboardInterrupt, place: str, code: int, said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken_off(*_: object) -> None:
        raise fault

    monkeypatch.setattr(submit, "run", broken_off)
    assert submit.main(["--on", place]) == code
    assert capsys.readouterr().err.startswith(f"interrupted; {said}")


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
    assert "was started with other settings (training.epochs)" in capsys.readouterr().err


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
        assert "run 20260101-000000-aaaa was started with --on docker, not local." in capsys.readouterr().err


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


@pytest.mark.parametrize("value", ["s3://bucket/corpus", "git+https://host/songs@v1", "team/songs@main"])
def test_an_address_is_not_taken_for_a_folder(value: str) -> None:
    assert submit._data_uri(value) == value


@pytest.mark.parametrize(("promoted", "required", "code"), [(False, False, 0), (False, True, 1), (True, True, 0)])
def test_a_promotion_counts_only_where_it_is_required(
    promoted: bool, required: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"decision": {"promoted": promoted, "reason": "challenger and champion are [equal]"}}
    monkeypatch.setattr(submit, "run", lambda *_: result)
    assert submit.main(["--json", *["--require-promotion"] * required]) == code
    streams = capsys.readouterr()
    assert json.loads(streams.out) == result
    assert streams.err == ("not promoted: challenger and champion are [equal]\n" if code else "")


def test_too_many_rejected_clips_stop_the_run(
    arguments: list[str], own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main([*arguments, "--set", "validation.max_rejected_share=0.01"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "Traceback" not in streams.err
    (error,) = [line for line in streams.err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: data gate: 3 of 48 rows are rejected")
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
        assert "no such folder. Give a folder, s3://" in capsys.readouterr().err
    assert not own_home.exists()


@pytest.mark.parametrize("address", ["/srv/songs@v1", "git+file:///srv/songs@v1", "git+/srv/songs@v1#corpus"])
def test_a_repository_of_this_machine_is_refused_for_containers_before_anything_starts(
    address: str, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--dry-run"]):
        assert submit.main(["--data", address, "--on", "docker", *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {address}: /srv/songs is a git repository of this machine, which steps in")
        assert said.count("\n") == 1
    assert not own_home.exists()


@pytest.mark.parametrize(("revision", "told"), [("12ab", False), ("34cd", True)])
def test_the_images_code_is_recorded_and_another_checkout_told(
    revision: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOSCORE_CODE_REVISION", "12ab")
    monkeypatch.setattr(containers, "code_in", lambda image: containers.ImageCode(f"{image} 0123", revision))
    config, said = load_config(SMALL), io.StringIO()
    image = config.containers.image
    code = submit._code(config, "docker", Console(file=said))
    assert code == {"code_rev": revision, "on": "docker", "image": f"{image} 0123"}
    assert (f"revision {revision}; this checkout is 12ab. `make image`" in said.getvalue()) == told
    local = submit._code(config, "local", Console(file=said))
    assert local == {"code_rev": "12ab", "on": "local", "image": image, "digest": code_digest(submit.REPOSITORY)}
