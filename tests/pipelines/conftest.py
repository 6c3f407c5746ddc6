import contextlib
import csv
import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from audioscore.home import Home, home
from audioscore.tracking.connection import connect
from audioscore.tracking.registry import promote
from pipelines.request import SubmitRequest

MODEL = "singers"
TRUNCATED, MISSING, OUT_OF_RANGE = "audio/c000.wav", "audio/c007.wav", "audio/c014.wav"
SETTINGS = (
    "training.epochs=3", "training.seeds=[1]", "training.plans=[baseline,hybrid,muq_frozen]",
    "evaluation.resamples=200", "evaluation.robustness.clips=3", "validation.min_clips=10",
    "split.val=0.25", "split.test=0.45", f"registry.model={MODEL}",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A call of `pipelines.submit.main`: exit code, streams, and the home that it ran in."""

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


def submit(request: SubmitRequest, folder: Path) -> Run:
    """Run the pipeline from this process with `folder` as its home."""
    from pipelines.submit import main

    with pytest.MonkeyPatch.context() as patch, streams() as (out, err):
        patch.setenv("AUDIOSCORE_HOME", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(sys, "argv", ["submit"])  # not the arguments of pytest
        code = main(request)
        return Run(code, out.getvalue(), err.getvalue(), home())


@pytest.fixture(scope="session")
def faulty_corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus with three errors: a truncated clip, a missing file and a score out of range."""
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
def small_run(faulty_corpus: Path, tiny_encoders: Path) -> SubmitRequest:
    """The request of a small run."""
    sources = [f"encoders.{name}.source={tiny_encoders / f'{name}-small'}" for name in ("muq", "campplus")]
    return SubmitRequest(data=str(faulty_corpus), overrides=[*SETTINGS, *sources], as_json=True)


@pytest.fixture(scope="session")
def first_run(small_run: SubmitRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole pipeline, run once in its own home."""
    return submit(small_run, tmp_path_factory.mktemp("run-home"))


@pytest.fixture(scope="session")
def second_run(first_run: Run, small_run: SubmitRequest) -> Run:
    """The same run again in the same home, with the first version as champion and a promotion required."""
    registered = first_run.result["registered"]
    if "champion" not in registered["aliases"]:
        promote(connect(first_run.home.tracking_uri), MODEL, registered["version"], expected=None)
    return submit(replace(small_run, require_promotion=True), first_run.home.folder)
