import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from audioscore.cli import doctor
from audioscore.cli.app import app
from audioscore.config import SMALL, load_config
from audioscore.encoders.download import PUBLISHED
from audioscore.errors import ModelError, UsageError


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if all(one["ok"] for one in found) else 1)
    assert all(set(one) == {"check", "ok", "found", "remedy"} for one in found)
    assert not (tmp_path / "home").exists()
    return {one["check"]: one for one in found}


def test_checks_match_the_installation(checks: dict[str, dict[str, object]], tmp_path: Path) -> None:
    assert checks["mlflow"] == {"check": "mlflow", "ok": True, "found": version("mlflow"), "remedy": ""}
    assert checks["home"]["found"] == str(tmp_path / "home")
    assert checks["home"]["ok"]
    encoders = load_config(SMALL).encoders
    for check, source in (("encoder muq", encoders.muq.source), ("encoder campplus", encoders.campplus.source)):
        assert checks[check]["found"] == source
        assert checks[check]["ok"] == Path(source).is_dir()
    for name in ("audioscore", "audioscore-demo"):
        assert not re.search(r"\d", str(checks[f"champion {name}"]["found"]))


def test_proxies_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    assert [one.ok for one in doctor.check_proxies()] == [True] * 3
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pw@proxy:3128")
    _, secure, exempt = doctor.check_proxies()
    assert "HTTPS_PROXY (http://proxy:3128)" in secure.found
    assert "127.0.0.1" in exempt.found
    monkeypatch.setenv("HTTPS_PROXY", "proxy:abc")
    with pytest.raises(UsageError, match=r"^HTTPS_PROXY: "):
        doctor.check_proxies()


def test_a_missing_package_and_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    python, torch, missing = doctor.check_python()
    assert python.ok
    assert (torch.ok, torch.found) == (True, version("torch"))
    assert (missing.check, missing.ok) == ("no-such-package", False)
    monkeypatch.setattr(doctor, "FREE_GIB", 1 << 40)
    disk = doctor.check_home()[1]
    assert (disk.check, disk.ok) == ("disk", False)
    assert disk.remedy


def test_missing_encoders_come_with_the_commands_that_fetch_them(
    tiny_encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    config = tmp_path / "run.yaml"
    config.write_text(f"encoders:\n  muq: {{source: ./gone}}\n  campplus: {{source: {tiny_encoders}/campplus-small}}\n")
    monkeypatch.setattr("audioscore.config.SMALL", config)
    muq, campplus, *published = doctor.check_encoders()
    assert (muq.check, muq.ok, muq.found) == ("encoder muq", False, str(tmp_path / "gone"))
    assert "`audioscore data pull`" in muq.remedy
    assert "`audioscore encoders pull`" in muq.remedy
    assert (campplus.ok, campplus.remedy) == (True, "")
    for one, (kind, source) in zip(published, PUBLISHED.items(), strict=True):
        assert (one.check, one.ok) == (f"published {kind}", True)
        assert one.found != source
        assert source in one.found
        assert "`audioscore encoders pull`" in one.remedy
    cached = tmp_path / "hf" / f"models--{PUBLISHED['muq'].replace('/', '--')}" / "snapshots" / "0123"
    shutil.copytree(tiny_encoders / "muq-small", cached)
    here = doctor.check_encoders()[2]
    assert (here.found, here.remedy) == (PUBLISHED["muq"], "")


def test_an_error_is_a_failed_check_with_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_registry() -> list[doctor.DoctorCheck]:
        raise ModelError("mlflow.db is damaged.")

    monkeypatch.setattr(doctor, "CHECKS", (check_registry,))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert re.fullmatch(r"FAIL +registry +mlflow\.db is damaged\.\n", result.stdout)


def test_an_empty_registry_is_listed_without_making_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(app, ["models"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`audioscore demo`" in result.stderr
    assert CliRunner().invoke(app, ["models", "--json"]).stdout == "[]\n"
    assert not (tmp_path / "home").exists()
