import contextlib
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from audioscore.data.labels import read_labels
from audioscore.data.split.assign import assign_splits
from audioscore.data.split.sort import write_sorted
from audioscore.files import sha256_of


@pytest.fixture(scope="session")
def sorted_corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Copy the tiny corpus and sort it with the given share of test clips."""

    def sort(*, test: float, with_hashes: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("sorted") / "data"
        shutil.copytree(tiny_corpus, folder)
        clips = read_labels(folder / "labels.csv").clips
        hashed = [replace(clip, sha256=sha256_of(folder / clip.audio_file)) for clip in clips]
        write_sorted(folder, hashed if with_hashes else clips, assign_splits(hashed, val=0.2, test=test, seed=7))
        return folder

    return sort


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty git and DVC repository as the working folder."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    root = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of DVC's own, about its pygtrie
        from dvc.repo import Repo

        with contextlib.closing(Repo.init(str(root))):
            pass
        monkeypatch.chdir(root)
        yield root


@pytest.fixture(scope="session")
def scorer_directory(tiny_encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer folder with an untrained head."""
    import torch

    from audioscore.encoders.campplus import load_campplus
    from audioscore.encoders.features import Kind
    from audioscore.encoders.muq import load_muq
    from audioscore.scoring.calibration import Calibration
    from audioscore.scoring.checkpoint import save_scorer
    from audioscore.scoring.head import ScoreHead
    from audioscore.scoring.network import ScoreNetwork
    from audioscore.scoring.scorer import Description

    folders: dict[Kind, Path] = {"muq": tiny_encoders / "muq-small", "campplus": tiny_encoders / "campplus-small"}
    muq, campplus = load_muq(str(folders["muq"]), layer=2), load_campplus(str(folders["campplus"]))
    shape = {"dims": {"muq": 32, "campplus": 64}, "width": 8, "hidden": 8, "dropout": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        head = ScoreHead(dims={"muq": 32, "campplus": 64}, width=8, hidden=8, dropout=0.0)
    description = Description(
        plan="hybrid",
        seed=5,
        encoders={"muq": muq.reference, "campplus": campplus.reference},
        head=shape,
        calibration=Calibration((-1.0, 1.0), (60.0, 90.0), 5.0),
        seen_clips=(),
        data_digest="0.dir",
        code_revision="unknown",
    )
    folder = tmp_path_factory.mktemp("scorer") / "hybrid"
    save_scorer(ScoreNetwork(head), description, folders, folder)
    return folder
