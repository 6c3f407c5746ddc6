import re
import shlex
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
    "decision": {"promoted": False, "delta": 0.05, "reason": "difference [bold] not shown"},
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
    assert rows["Spearman overall"].split()[-1] == "-"
    assert "0.512 (0.300, 0.700)" in rows["Spearman overall"]
    assert list(rows).index("Spearman within source") < list(rows).index("Spearman overall")
    assert "7.250" in rows["MAE (points)"]
    assert "-0.100 (-0.300, 0.100)" in rows["seconds"]
    both = r"\+0\.200 \(\+0\.100, \+0\.300\).* within.*\+0\.050 \(-0\.010, \+0\.110\) overall.*: hybrid\b"
    assert re.search(both, " ".join(shown.split()))


def test_a_name_in_brackets_is_no_markup(shown: str) -> None:
    for text in ("[bold]", "singers v4 (challenger)", "[unknown]", "/home/[old]/report.html", "1.5 minutes"):
        assert text in shown
    assert "Not promoted" in shown


def outcome(*, promoted: bool, delta: float | None) -> dict[str, Any]:
    return {"registered": {"version": 4}, "decision": {"promoted": promoted, "delta": delta}}


def test_the_next_commands_fit_the_workspace() -> None:
    workspace, done = Home(Path("/home/state")), outcome(promoted=True, delta=None)
    score, interface = next_commands(load_config(SMALL), workspace, done)
    assert score.endswith("score RECORDING")
    assert interface.endswith("--backend-store-uri sqlite:////home/state/mlflow.db")
    assert next_commands(load_config(DEMO), workspace, done)[0].endswith("score data/audio/c0001.m4a")


@pytest.mark.parametrize(
    ("promoted", "delta", "models"),
    [(True, None, ["@champion"]), (True, 0.1, ["@champion"]), (False, 0.1, ["@champion", "/4"]), (False, None, ["/4"])],
)
def test_the_first_and_later_versions_are_named_where_they_exist(
    promoted: bool, delta: float | None, models: list[str]
) -> None:
    config = load_config(SMALL, ["registry.model=我的 model"])
    *score, interface = next_commands(config, Home(Path("/a b")), outcome(promoted=promoted, delta=delta))
    assert [shlex.split(line)[-1] for line in score] == [f"models:/我的 model{end}" for end in models]
    assert shlex.split(interface)[-1] == "sqlite:////a b/mlflow.db"


def test_the_default_name_is_given_where_there_is_no_champion() -> None:
    score, _ = next_commands(load_config(SMALL), Home(Path("/home/state")), outcome(promoted=False, delta=None))
    assert score.endswith("score RECORDING --model models:/audioscore/4")


def test_singer_accuracies_are_listed_where_they_were_measured() -> None:
    accuracies = {"before": 0.45, "after": 0.2, "singers": 19, "chance": 1 / 19}
    plans = {"baseline": {"speaker_probe": accuracies}, "hybrid": {"speaker_probe": None}}
    (line,) = singer_probe_lines({"plans": plans})
    assert line.startswith("baseline: ")
    assert re.search(r"\b20%.*\b45%.*\b5%", line)
