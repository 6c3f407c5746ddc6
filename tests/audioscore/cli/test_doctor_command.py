import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from audioscore.cli import doctor_command
from audioscore.cli.app import app
from audioscore.config import SMALL, load_config
from audioscore.encoders.pull import PUBLISHED
from audioscore.errors import ModelError


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    said = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(said.stdout)
    assert said.exit_code == (0 if all(one["ok"] for one in found) else 1)
    assert all(set(one) == {"check", "ok", "found", "remedy"} for one in found)
    assert not (tmp_path / "home").exists()
    return {one["check"]: one for one in found}


def test_what_is_found_is_true(findings: dict[str, dict[str, object]], tmp_path: Path) -> None:
    assert findings["mlflow"] == {"check": "mlflow", "ok": True, "found": version("mlflow"), "remedy": ""}
    assert findings["home"]["found"] == str(tmp_path / "home")
    assert findings["home"]["ok"]
    encoders = load_config(SMALL).encoders
    for check, source in (("encoder muq", encoders.muq.source), ("encoder campplus", encoders.campplus.source)):
        assert findings[check]["found"] == source
        assert findings[check]["ok"] == Path(source).is_dir()
    for name in ("audioscore", "audioscore-demo"):
        assert findings[f"champion {name}"]["found"] == "none yet"


def test_a_missing_package_and_a_full_disk_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_command, "PACKAGES", ("torch", "no-such-package"))
    python, torch, missing = doctor_command.check_python()
    assert python.ok
    assert (torch.ok, torch.found) == (True, version("torch"))
    assert (missing.check, missing.ok, missing.found) == ("no-such-package", False, "not installed")
    monkeypatch.setattr(doctor_command, "FREE_GIB", 1 << 40)
    disk = doctor_command.check_home()[1]
    assert (disk.check, disk.ok, disk.remedy) == ("disk", False, "Free some space.")


def test_encoders_that_are_missing_come_with_the_commands_that_bring_them(
    tiny_encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    config = tmp_path / "run.yaml"
    config.write_text(f"encoders:\n  muq: {{source: ./gone}}\n  campplus: {{source: {tiny_encoders}/campplus-small}}\n")
    monkeypatch.setattr("audioscore.config.SMALL", config)
    muq, campplus, *published = doctor_command.check_encoders()
    assert (muq.check, muq.ok, muq.found) == ("encoder muq", False, str(tmp_path / "gone"))
    assert muq.remedy == (
        "Run `audioscore data pull` in the repository; `audioscore encoders pull` fetches the published ones."
    )
    assert (campplus.ok, campplus.remedy) == (True, "")
    remedy = "Run `audioscore encoders pull` before a configuration names it."
    assert [(one.check, one.ok, one.found, one.remedy) for one in published] == [
        (f"published {kind}", True, f"{source}, not in the cache", remedy) for kind, source in PUBLISHED.items()
    ]
    place = tmp_path / "hf" / f"models--{PUBLISHED['muq'].replace('/', '--')}" / "snapshots" / "0123"
    shutil.copytree(tiny_encoders / "muq-small", place)
    here = doctor_command.check_encoders()[2]
    assert (here.found, here.remedy) == (PUBLISHED["muq"], "")


def test_a_fault_becomes_a_finding_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_registry() -> list[doctor_command.Finding]:
        raise ModelError("the registry cannot be read.")

    monkeypatch.setattr(doctor_command, "CHECKS", (check_registry,))
    said = CliRunner().invoke(app, ["doctor"])
    assert said.exit_code == 1
    assert said.stdout == f"FAIL  {'registry':<24} the registry cannot be read.\n"


def test_nothing_registered_is_said_and_no_database_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    said = CliRunner().invoke(app, ["models"])
    assert (said.exit_code, said.stdout) == (0, "")
    assert said.stderr == "nothing is registered yet; `audioscore demo` registers a first model\n"
    assert CliRunner().invoke(app, ["models", "--json"]).stdout == "[]\n"
    assert not (tmp_path / "home").exists()
