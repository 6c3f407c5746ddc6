import os
from pathlib import Path

import pytest

from pipelines.local_run import StepFailed, _environment, output_of


def test_an_output_is_found_by_step_and_name(tmp_path: Path) -> None:
    outcome = tmp_path / "audioscore-2026" / "register-winner" / "outcome"
    outcome.mkdir(parents=True)
    assert output_of(tmp_path, "register_winner", "outcome") == outcome


def test_no_output_and_two_of_them_are_faults(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"sort_data .*\b0 .*index.*\b1\b"):
        output_of(tmp_path, "sort_data", "index")
    for run in ("a", "b"):
        (tmp_path / run / "sort-data" / "index").mkdir(parents=True)
    with pytest.raises(StepFailed, match=r"sort_data .*\b2 .*index"):
        output_of(tmp_path, "sort_data", "index")


def test_the_users_variables_win_and_the_old_state_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.delenv("GX_ANALYTICS_ENABLED", raising=False)
    before = dict(os.environ)
    with _environment({"TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}):
        assert (os.environ["TQDM_DISABLE"], os.environ["GX_ANALYTICS_ENABLED"]) == ("0", "false")
    assert dict(os.environ) == before
