import re
from pathlib import Path
from typing import Any

import pytest

from audioscore.config import DEMO, SMALL, load_config
from audioscore.home import Home
from pipelines.summary import next_commands, print_summary, singer_probe_lines

SPEARMAN = {"value": 0.51234, "lo": 0.3, "hi": 0.7}
RESULT: dict[str, Any] = {
    "data": {"clips": 45, "train": 25, "val": 8, "test": 12, "rejected": 3},
    "plans": {
        "baseline": {"spearman": SPEARMAN, "mae": {"value": 7.25, "lo": None, "hi": None}},
        "hybrid": {"spearman": {"value": None, "lo": None, "hi": None}},
    },
    "controls": {"seconds": {"spearman": {"value": -0.1, "lo": -0.3, "hi": 0.1}}},
    "comparison": {"delta": 0.05, "lo": -0.01, "hi": 0.11, "within_source": {"delta": 0.2, "lo": 0.1, "hi": 0.3}},
    "winner": "hybrid",
    "decision": {"promoted": False, "reason": "difference [bold] not shown"},
    "registered": {"name": "singers", "version": 4, "aliases": ["challenger"]},
    "warnings": ["2 singers [unknown] are left out"],
    "report": "/home/[old]/report.html",
}


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "160")
    print_summary(RESULT, load_config(SMALL), Home(Path("/home/state")), 90.0)
    return capsys.readouterr().out


def test_figures_have_their_intervals(shown: str) -> None:
    for figure in ("45 clips", "25 train", "8 validation", "12 test", "3 rejected", "95%"):
        assert figure in shown
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert rows["Spearman"].split()[-1] == "-"
    assert "0.512 (0.300, 0.700)" in rows["Spearman"]
    assert "7.250" in rows["MAE (points)"]
    assert "-0.100 (-0.300, 0.100)" in rows["seconds"]
    both = r"\+0\.050 \(-0\.010, \+0\.110\).*\+0\.200 \(\+0\.100, \+0\.300\) within.*: hybrid\b"
    assert re.search(both, " ".join(shown.split()))


def test_a_name_in_brackets_is_no_markup(shown: str) -> None:
    for text in ("[bold]", "singers v4 (challenger)", "[unknown]", "/home/[old]/report.html", "1.5 minutes"):
        assert text in shown
    assert "Not promoted" in shown


def test_the_next_commands_fit_the_workspace() -> None:
    workspace = Home(Path("/home/state"))
    score, interface = next_commands(load_config(SMALL), workspace)
    assert score.endswith("score RECORDING")
    assert interface.endswith("--backend-store-uri sqlite:////home/state/mlflow.db")
    assert next_commands(load_config(DEMO), workspace)[0].endswith("score data/audio/c0001.m4a")


def test_singer_accuracies_are_listed_where_they_were_measured() -> None:
    accuracies = {"before": 0.45, "after": 0.2, "singers": 19, "chance": 1 / 19}
    plans = {"baseline": {"speaker_probe": accuracies}, "hybrid": {"speaker_probe": None}}
    (line,) = singer_probe_lines({"plans": plans})
    assert line.startswith("baseline: ")
    assert re.search(r"\b20%.*\b45%.*\b5%", line)
