"""A killed and resumed training ends with the same weights as an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from audioscore.scoring.trained_plan import read_trained

pytestmark = pytest.mark.services

TIMEOUT = 300.0  # seconds to wait for a checkpoint
FROZEN: dict[str, Any] = {"epochs": 150, "patience": 150}
TUNED: dict[str, Any] = {
    "epochs": 12, "patience": 12, "tuning": "lora", "lora": {"rank": 4, "alpha": 6, "dropout": 0.2},
    "head_warmup_epochs": 6, "adversary": {"weight": 0.5}, "schedule": "cosine", "warmup_share": 0.1,
}  # fmt: skip


def command(corpus: Any, folder: Path, **changed: Any) -> list[str]:
    config = corpus.config(batch_clips=10, checkpoint_steps=2, dropout=0.3, **changed)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    return [
        sys.executable, "-m", "audioscore.training", "--config", str(folder / "config.json"), "--plan", "hybrid",
        "--index", str(corpus.index), "--features", str(corpus.features), "--out", str(folder / "hybrid"), "--single",
        "--device", "cpu", "--set", "split.folds=1",
    ]  # fmt: skip


def killed(given: list[str], sign: Path, later: float) -> int:
    """Run until `later` seconds after a file was written, then kill; return 0 if the program finished before."""
    before = sign.stat().st_mtime_ns if sign.exists() else 0
    process = subprocess.Popen(given, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and not (sign.exists() and sign.stat().st_mtime_ns > before):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.002)
    time.sleep(later)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.parametrize(
    ("changed", "first_sign", "seed"), [(FROZEN, "seed-1.checkpoint", 1), (TUNED, "seed-1.head.checkpoint", 3)]
)
def test_killed_at_random_steps(
    corpus: Any, tmp_path: Path, changed: dict[str, Any], first_sign: str, seed: int
) -> None:
    generator, target = random.Random(seed), tmp_path / "run" / "hybrid"
    given, codes = command(corpus, tmp_path / "run", **changed), []
    codes.append(killed(given, target / first_sign, generator.uniform(0, 0.5)))
    codes.append(killed([*given, "--resume"], target / "seed-1.checkpoint", generator.uniform(0, 0.5)))
    codes.append(killed([*given, "--resume"], target / "seed-1.json", 0.0))  # between the seeds, or soon after
    assert codes == [-signal.SIGKILL] * 3, "a run was over before it could be killed"
    first = (target / "seed-1" / "head.safetensors").stat()
    assert killed([*given, "--resume"], target / "seed-2.checkpoint", generator.uniform(0, 0.3)) == -signal.SIGKILL
    assert not (target / "plan.json").exists()
    subprocess.run([*given, "--resume"], check=True, stderr=subprocess.DEVNULL)
    last = (target / "seed-1" / "head.safetensors").stat()
    assert (last.st_ino, last.st_mtime_ns) == (first.st_ino, first.st_mtime_ns), "a finished seed is not trained again"
    files = ["plan.json", "seed-1", "seed-1.json", "seed-2", "seed-2.json"]
    assert sorted(path.name for path in target.iterdir()) == files
    config = {"batch_clips": 10, "checkpoint_steps": 2, "dropout": 0.3, **changed}
    found, expected = read_trained(target), corpus.train("hybrid", tmp_path / "expected", **config)
    for one in (1, 2):
        for file in sorted(path.name for path in expected.scorer_folder(one).glob("*.safetensors")):
            ours, wanted = (load_file(plan.scorer_folder(one) / file) for plan in (found, expected))
            assert {name for name in wanted if not (ours[name] == wanted[name]).all()} == set()
        losses, uninterrupted = ([entry["train_loss"] for entry in plan.curves[one]] for plan in (found, expected))
        assert losses == uninterrupted
    assert found.validation == expected.validation
    assert found.outcomes[1].speakers == expected.outcomes[1].speakers
