import csv
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch on import, also in subprocesses

SINGERS, CLIPS, RATE = 16, 3, 24_000  # CLIPS: of each singer
TINY_MUQ = {"dim": 32, "depth": 2, "conv_dim": 8, "codebook": 64}
TINY_CAMPPLUS = {"dim": 64, "growth": 4, "channels": 16}

LONGEST = (  # the files that take a minute or more, longest first
    "pipelines/test_end_to_end.py",
    "services/test_serve.py",
    "services/test_promotion.py",
    "services/test_feature_store.py",
    "pipelines/test_resume.py",
    "audioscore/training/test_killed.py",
    "audioscore/training/test_together.py",
    "audioscore/training/test_trainjob_pods.py",
    "audioscore/tracking/test_registry.py",
    "services/test_mlflow.py",
    "pipelines/test_compile.py",
    "audioscore/encoders/speakers/test_ge2e.py",
    "audioscore/scoring/legacy/test_convert.py",
    "services/test_add_killed.py",
    "services/page/test_score_page.py",
    "audioscore/scoring/test_scorer.py",
    "audioscore/scoring/legacy/test_model.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that no worker ends late; the order within a file is unchanged.

    It runs after the hooks of plugins that shuffle, such as pytest-randomly.
    """
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    order: dict[Path, int] = {}
    for item in items:
        order.setdefault(item.path, len(order))
    items.sort(key=lambda item: (rank.get(item.path, len(rank)), order[item.path]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many files the tests compared with other programs."""
    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    properties = [one for report in reports if getattr(report, "when", "") == "call" for one in report.user_properties]
    if counts := [int(value) for name, value in properties if name == "files compared"]:
        terminalreporter.write_line(f"{sum(counts)} files compared with other programs")


@pytest.fixture(autouse=True)
def _own_process_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own home and one core, and restore process-wide state afterwards."""
    environment, folder = dict(os.environ), Path.cwd()
    loggers = [logging.getLogger(name) for name in ("", "audioscore")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    monkeypatch.setenv("AUDIOSCORE_HOME", str(tmp_path_factory.mktemp("home")))
    if "torch" in sys.modules:  # do not import torch for tests that do not need it
        sys.modules["torch"].set_num_threads(1)
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
    if "mlflow" in sys.modules:  # a connection sets these for the whole process
        sys.modules["mlflow"].set_tracking_uri(None)
        sys.modules["mlflow"].set_registry_uri(None)
    monkeypatch.undo()
    if os.environ != environment:
        os.environ.clear()
        os.environ.update(environment)
    os.chdir(folder)


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `muq-small/` and `campplus-small/`: published layouts, smallest sizes, random weights.

    Every LayerNorm is random too: with the initial values, a test would not notice an additional norm.
    """
    import torch

    from audioscore.demo.pretrain import build_campplus, build_muq, muq_config, save_campplus, save_muq

    folder = tmp_path_factory.mktemp("encoders")
    config = muq_config(**TINY_MUQ)
    with torch.random.fork_rng(devices=[]):
        muq = build_muq(config, seed=1)
        for module in muq.modules():
            if isinstance(module, torch.nn.LayerNorm):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        save_muq(muq, config, folder / "muq-small")
        save_campplus(build_campplus(**TINY_CAMPPLUS, seed=1), folder / "campplus-small", dim=TINY_CAMPPLUS["dim"])
    return folder


def sung(score: float, pitch: float, seconds: float, source: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """A held note whose pitch deviation and noise grow as its score falls. Shape: -> [T], 24 kHz."""
    time = np.arange(round(seconds * RATE)) / RATE
    error = (100.0 - score) / 50.0
    wander = np.interp(time, np.linspace(0, seconds, 9), rng.normal(0, 1.5 * error, 9))  # semitones
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (wander / 12)) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = rng.normal(0, 1, len(time))
    rumble = 0.02 * np.cumsum(rng.normal(0, 1, len(time))) / 150 if source == "ktv" else 0.0
    wave = voice + 0.8 * error * noise + rumble
    return np.asarray(0.08 * wave / np.sqrt(np.mean(wave**2)), dtype=np.float32)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that a scorer can learn from: 48 clips of 1.5 to 2 s, 16 singers, ktv 50-85 and acapella 85-99."""
    return sung_corpus(tmp_path_factory.mktemp("corpus"), SINGERS)


@pytest.fixture(scope="session")
def larger_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 48 singers and 144 clips: enough for a significant difference between two models."""
    return sung_corpus(tmp_path_factory.mktemp("larger"), 3 * SINGERS)


def sung_corpus(folder: Path, singers: int) -> Path:
    """Write a corpus with three clips of each singer into `folder`."""
    from audioscore.data.audio import encode

    rng = np.random.default_rng(11)
    rows = []
    for index in range(singers * CLIPS):
        singer, clip = divmod(index, CLIPS)
        source, (low, high) = (("ktv", (50, 85)), ("acapella", (85, 99)))[singer % 2]
        score = round(float(low + (high - low) * (rng.permutation(CLIPS)[clip] + rng.random()) / CLIPS), 1)
        wave = sung(score, 180 + 12 * (singer % SINGERS), float(rng.uniform(1.5, 2.0)), source, rng)
        name = f"audio/c{index:03d}.wav"
        encode(wave, RATE, folder / name, codec="pcm_s16le")
        rows.append((name, score, f"singer{singer:02d}", f"song{index % 7}", source))
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("audio_file", "score", "singer_id", "song_id", "source"))
        writer.writerows(rows[i] for i in rng.permutation(len(rows)))
    return folder
