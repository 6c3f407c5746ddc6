"""Whole pipeline runs with one registry: only a better model becomes champion."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audioscore.tracking.connection import connect
from audioscore.tracking.registry import promote

pytestmark = pytest.mark.services

MODEL = "singers"
SETTINGS = (
    "training.seeds=[1]", "training.plans=[baseline,hybrid]", "training.patience=40", "evaluation.resamples=500",
    "evaluation.robustness.clips=0", "split.val=0.2", "split.test=0.4", f"registry.model={MODEL}",
)  # fmt: skip
GOOD, POOR = (
    ("training.epochs=40", "training.learning_rate=0.003"),
    ("training.epochs=1", "training.learning_rate=1e-9"),
)


def call(home: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the installed program with its own home."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "audioscore"), *arguments],
        env={**os.environ, "AUDIOSCORE_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def run(home: Path, data: Path, encoders: Path, how: tuple[str, ...]) -> dict[str, Any]:
    """The JSON document of a whole run."""
    sources = [f"encoders.{name}.source={encoders / f'{name}-small'}" for name in ("muq", "campplus")]
    settings = [part for one in (*SETTINGS, *sources, *how) for part in ("--set", one)]
    code, out, err = call(home, "run", "--data", str(data), "--json", *settings)
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def test_only_a_better_model_is_promoted(larger_corpus: Path, tiny_encoders: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    poor = run(home, larger_corpus, tiny_encoders, POOR)
    if not poor["decision"]["promoted"]:  # this test needs a first champion in any case
        promote(connect(f"sqlite:///{home / 'mlflow.db'}"), MODEL, 1, expected=None, why="by hand")
    good = run(home, larger_corpus, tiny_encoders, GOOD)
    assert good["decision"]["promoted"], good["decision"]["reason"]
    assert good["decision"]["lo"] > 0
    assert good["registered"]["aliases"] == ["champion"]
    worse = run(home, larger_corpus, tiny_encoders, POOR)
    assert not worse["decision"]["promoted"]
    assert worse["decision"]["hi"] < 0
    assert worse["registered"]["aliases"] == ["challenger"]

    code, _, err = call(home, "promote", "3", "--model", MODEL)
    assert code == 1
    assert f"{MODEL} v3 " in err
    code, _, err = call(home, "promote", "2", "--model", MODEL)
    assert (code, err.count("\n")) == (1, 1)
    assert f"models:/{MODEL}/2" in err
    assert "champion" in err
    code, out, _ = call(home, "rollback", "--model", MODEL, "--why", "as a drill", "--json")
    assert (code, json.loads(out)) == (0, {"name": MODEL, "champion": 1, "previous": 2})
    code, out, _ = call(home, "promote", "2", "--model", MODEL, "--json")
    again = json.loads(out)
    assert (code, again["compared_with"], again["decision"]["promoted"]) == (0, "v1", True)
    # The same clips, models and resamples give the same difference.
    assert again["decision"]["delta"] == pytest.approx(good["decision"]["delta"])
    code, out, _ = call(home, "models", "--history")
    assert code == 0
    assert "as a drill" in out
