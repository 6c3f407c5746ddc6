"""Several real processes: the same results as one process, logged once, and no process is left running."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audioscore.data.index import write_index
from audioscore.data.split.sort import read_split
from audioscore.encoders.extract import read_extraction
from audioscore.encoders.store import FeatureStore
from audioscore.encoders.stored_features import StoredFeatures
from audioscore.scoring.checkpoint import load_scorer
from audioscore.scoring.trained_plan import TrainedPlan, read_trained

pytestmark = pytest.mark.services

TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--nnodes=1"]
LORA = {"tuning": "lora", "lora": {"rank": 4, "alpha": 6}}


def run(command: list[str], config: Any, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program in a session of its own, of which no process may remain."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    process = subprocess.Popen(
        [*command, "--config", str(folder / "config.json"), "--out", str(folder / "out"), "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    out, err = process.communicate(timeout=900)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def torchrun(processes: int, *more: str) -> list[str]:
    return [*TORCHRUN, f"--nproc_per_node={processes}", "-m", "audioscore.training", *more]


def inputs(corpus: Any) -> list[str]:
    return ["--index", str(corpus.index), "--features", str(corpus.features)]


def losses(trained: TrainedPlan) -> list[float]:
    return [entry["train_loss"] for seed in trained.curves for entry in trained.curves[seed]]


def data_folder(corpus: Any, target: Path) -> Path:
    """Return a sorted copy of the corpus."""
    shutil.copytree(corpus.data, target)
    shutil.copytree(corpus.index / "index", target / "index")
    return target


def test_torchrun_trains_both_plans_like_one_process_with_dropout(corpus: Any, tmp_path: Path) -> None:
    """Extraction shared by two processes, then two plans of two seeds; each process runs one pass of 5 clips."""
    data = data_folder(corpus, tmp_path / "data")
    changed = {"plans": ["baseline", "hybrid"], "epochs": 2, "batch_clips": 10, "dropout": 0.3}
    command = torchrun(2, "--data", str(data), "--store", str(tmp_path / "store"))
    done = run(command, corpus.config(**changed), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for plan in ("baseline", "hybrid"):
        found = read_trained(tmp_path / "run" / "out" / plan)
        files = sorted(path.name for path in found.folder.iterdir())
        assert files == ["plan.json", "seed-1", "seed-1.json", "seed-2", "seed-2.json"]
        assert done.stderr.count(f"{plan}, seed 1: 30 clips") == 1, "only the main process logs"
        expected = corpus.train(plan, tmp_path / "expected" / plan, **changed, micro_clips=5)
        assert losses(found) == losses(expected)
        assert found.validation == expected.validation
        for seed in (1, 2):
            ours, wanted = (load_file(one.scorer_folder(seed) / "head.safetensors") for one in (found, expected))
            assert {name for name in wanted if not (ours[name] == wanted[name]).all()} == set()


def test_two_processes_give_the_learning_curve_of_one_process(corpus: Any, tmp_path: Path) -> None:
    changed = {"seeds": [1], "epochs": 3, "batch_clips": 7, "dropout": 0.0, **LORA, "adversary": {"weight": 0.5}}
    changed["head_warmup_epochs"] = 2
    done = run(torchrun(2, *inputs(corpus), "--plan", "hybrid"), corpus.config(**changed), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    found = read_trained(tmp_path / "run" / "out" / "hybrid")
    expected = corpus.train("hybrid", tmp_path / "expected", **changed)
    assert losses(found) == pytest.approx(losses(expected), abs=1e-5)
    extraction, clips = read_extraction(corpus.features), read_split(corpus.index, "test")
    features = StoredFeatures(
        clips, extraction.encoders, ("muq", "campplus"), FeatureStore(extraction.store), prefix_layer=0
    )
    # The loss does not determine the mean of the outputs: rounding does.
    ours, wanted = (load_scorer(one.scorer_folder()).raw(features) for one in (found, expected))
    np.testing.assert_allclose(ours - ours.mean(), wanted - wanted.mean(), rtol=0, atol=1e-4)


def test_batches_smaller_than_the_number_of_processes_or_without_pairs(corpus: Any, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        clips = read_split(corpus.index, split)
        rounded = [replace(clip, score=15.0 * ((clip.score or 0.0) // 15)) for clip in clips]
        write_index(tmp_path / "index" / f"{split}.json", [rounded if split == "train" else clips])
    tied = replace(corpus, index=tmp_path)
    changed = {"seeds": [1], "epochs": 2, "batch_clips": 2, "dropout": 0.3}
    done = run(torchrun(3, *inputs(tied), "--plan", "baseline"), tied.config(**changed), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    expected = tied.train("baseline", tmp_path / "expected", **changed, micro_clips=1)
    assert losses(read_trained(tmp_path / "run" / "out" / "baseline")) == pytest.approx(losses(expected), abs=1e-5)


def test_if_all_fail_one_prints_the_reason(corpus: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audioscore.training", "--processes", "2", *inputs(corpus), "--plan", "baseline"]
    config = corpus.config(seeds=[1], learning_rate=1e30, clip_norm=1e30, batch_clips=10)
    done = run(command, config, tmp_path / "run")
    assert done.returncode == 2, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith("baseline, seed 1: 30 clips")]
    assert sentence.startswith("error: seed 1, epoch 1, step ")
    assert "(audio/c" in sentence
    assert not (tmp_path / "run" / "out" / "baseline" / "plan.json").exists()


def test_an_error_of_the_main_process_ends_all(corpus: Any, tmp_path: Path) -> None:
    """Only the main process computes the statistics of the training clips; the other waits for them."""
    store, extraction = tmp_path / "store", read_extraction(corpus.features)
    shutil.copytree(corpus.store, store)
    shutil.copytree(corpus.features, tmp_path / "features")
    about = json.loads((tmp_path / "features" / "extraction.json").read_text())
    (tmp_path / "features" / "extraction.json").write_text(json.dumps({**about, "store": str(store)}))
    clip = read_split(corpus.index, "train")[0]
    broken = torch.full_like(FeatureStore(store).get(extraction.encoders["muq"], str(clip.sha256)), float("nan"))
    FeatureStore(store).path(extraction.encoders["muq"], str(clip.sha256)).unlink()
    FeatureStore(store).put(extraction.encoders["muq"], str(clip.sha256), broken)
    given = ["--index", str(corpus.index), "--features", str(tmp_path / "features"), "--plan", "baseline"]
    command = [sys.executable, "-m", "audioscore.training", "--processes", "2", *given]
    done = run(command, corpus.config(seeds=[1]), tmp_path / "run")
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("baseline, seed 1: 30 clips")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert clip.audio_file in errors[0]


@pytest.mark.parametrize("start", ["own", "torchrun"])
def test_an_error_of_another_process_ends_all(corpus: Any, tmp_path: Path, start: str) -> None:
    """The second process finds a recording that changed since it was validated, while the first waits for it."""
    data = data_folder(corpus, tmp_path / "data")
    clips = [clip for split in ("train", "val", "test") for clip in read_split(corpus.index, split)]
    changed = data / sorted(clips, key=lambda clip: str(clip.sha256))[1].audio_file
    changed.write_bytes(changed.read_bytes() + b"\0\0")
    own = [sys.executable, "-m", "audioscore.training", "--processes", "2"]
    command = [*(own if start == "own" else torchrun(2)), "--data", str(data), "--store", str(tmp_path / "store")]
    done = run(command, corpus.config(), tmp_path / "run")
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {changed.relative_to(data)}: ")
    if start == "own":
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
    else:  # torchrun's own report follows, and its own exit code
        assert done.returncode != 0
