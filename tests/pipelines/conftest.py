import contextlib
import csv
import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from audioscore.home import Home, home
from audioscore.tracking.connection import connect
from audioscore.tracking.registry import promote

MODEL = "singers"
TRUNCATED, MISSING, OUT_OF_RANGE = "audio/c000.wav", "audio/c007.wav", "audio/c014.wav"
SETTINGS = (
    "training.epochs=3", "training.seeds=[1]", "training.plans=[baseline,hybrid,muq_frozen]",
    "evaluation.resamples=200", "evaluation.probes.clips=3", "validation.min_clips=10",
    "split.val=0.25", "split.test=0.3", f"registry.model={MODEL}",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One call of `pipelines.submit.main`: its exit code and streams, and the home it ran in."""

    code: int
    out: str
    err: str
    home: Home

    @property
    def result(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def folder(self) -> Path:
        return self.home.runs / str(self.result["run_id"])

    def step(self, name: str) -> Path:
        """The folder of a step that ran once."""
        (found,) = self.folder.glob(f"steps/*/{name}")
        return found


@contextlib.contextmanager
def streams() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def submit(arguments: Sequence[str], folder: Path) -> Run:
    """Run the pipeline in this process with `folder` as its home."""
    from pipelines.submit import main

    with pytest.MonkeyPatch.context() as patch, streams() as (out, err):
        patch.setenv("AUDIOSCORE_HOME", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(sys, "argv", ["submit"])  # what the steps of a terminal's user would see
        code = main(arguments)
        return Run(code, out.getvalue(), err.getvalue(), home())


@pytest.fixture(scope="session")
def faulty_corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus with three planted faults: a truncated clip, a missing file and a score out of range."""
    folder = tmp_path_factory.mktemp("faulty") / "data"
    shutil.copytree(tiny_corpus, folder)
    whole = (folder / TRUNCATED).read_bytes()
    (folder / TRUNCATED).write_bytes(whole[: len(whole) // 2])
    (folder / MISSING).unlink()
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        if row["audio_file"] == OUT_OF_RANGE:
            row["score"] = "150"
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="session")
def arguments(faulty_corpus: Path, tiny_encoders: Path) -> list[str]:
    """Command line of a small run."""
    sources = [f"encoders.{name}.source={tiny_encoders / f'{name}-small'}" for name in ("muq", "campplus")]
    settings = [part for setting in (*SETTINGS, *sources) for part in ("--set", setting)]
    return ["--data", str(faulty_corpus), "--json", *settings]


@pytest.fixture(scope="session")
def first_run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole pipeline, once, in a home of its own."""
    return submit(arguments, tmp_path_factory.mktemp("run-home"))


@pytest.fixture(scope="session")
def second_run(first_run: Run, arguments: list[str]) -> Run:
    """The same run again in the same home, where the first run's version is champion; a promotion is required."""
    registered = first_run.result["registered"]
    if "champion" not in registered["aliases"]:
        promote(connect(first_run.home.tracking_uri), MODEL, registered["version"], expected=None)
    return submit([*arguments, "--require-promotion"], first_run.home.folder)
