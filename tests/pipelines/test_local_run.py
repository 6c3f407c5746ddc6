import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from audioscore.config import SMALL, load_config
from pipelines import local_run
from pipelines.container_engine import ImageCode
from pipelines.local_run import _environment, output_of
from pipelines.request import REPOSITORY
from pipelines.resume import code_digest
from pipelines.steplog import StepFailed


def test_an_output_is_found_by_step_and_name(tmp_path: Path) -> None:
    outcome = tmp_path / "audioscore-2026" / "register-winner" / "outcome"
    outcome.mkdir(parents=True)
    assert output_of(tmp_path, "register_winner", "outcome") == outcome


def test_no_output_and_two_outputs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"sort_data: .*\b0 .*index.*\b1\b"):
        output_of(tmp_path, "sort_data", "index")
    for run in ("a", "b"):
        (tmp_path / run / "sort-data" / "index").mkdir(parents=True)
    with pytest.raises(StepFailed, match=r"sort_data: .*\b2 .*index"):
        output_of(tmp_path, "sort_data", "index")


def test_the_users_variables_are_kept_and_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.delenv("GX_ANALYTICS_ENABLED", raising=False)
    before = dict(os.environ)
    with _environment({"TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}):
        assert (os.environ["TQDM_DISABLE"], os.environ["GX_ANALYTICS_ENABLED"]) == ("0", "false")
    assert dict(os.environ) == before


@pytest.mark.parametrize(("revision", "printed"), [("12ab", False), ("34cd", True)])
def test_the_code_revision_is_of_the_image(revision: str, printed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOSCORE_CODE_REVISION", "12ab")
    monkeypatch.setattr(local_run, "code_in", lambda image: ImageCode(f"{image} 0123", revision))
    config, screen = load_config(SMALL), io.StringIO()
    image = config.containers.image
    code = local_run._code(config, "docker", Console(file=screen))
    assert code == {"code_rev": revision, "on": "docker", "image": f"{image} 0123"}
    assert (revision in screen.getvalue()) == printed
    assert ("12ab" in screen.getvalue()) == printed
    local = local_run._code(config, "local", Console(file=screen))
    assert local == {"code_rev": "12ab", "on": "local", "image": image, "digest": code_digest(REPOSITORY)}
