import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from audioscore.cli.app import app
from audioscore.data.audio import encode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.errors import AudioscoreError, ModelError, UsageError
from audioscore.files import sha256_of
from audioscore.model import SongEvalGenerator_audio_lora


def convert(judge: Any, old: Path, new: Path, *options: str) -> Result:
    sizes = ("--muq", str(judge.muq), "--lora-r", "4", "--lora-alpha", "6")
    return CliRunner().invoke(app, ["convert", str(old), str(new), *sizes, *options])


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve recordings, 1.2 to 2.3 s, from clean to noisy."""
    folder = tmp_path_factory.mktemp("takes")
    rng = np.random.default_rng(8)
    for place in range(12):
        time = np.arange(round((1.2 + 0.1 * place) * 24_000)) / 24_000
        tone = np.sin(2 * np.pi * (180 + 40 * place) * time + 2 * np.sin(2 * np.pi * 5 * time))
        wave = 0.2 * tone + 0.01 * place * rng.normal(size=len(time))
        encode(wave.astype(np.float32), 24_000, folder / f"take{place:02d}.wav", codec="pcm_s16le")
    return sorted(folder.iterdir())


def test_what_is_converted_scores_in_the_order_of_generate_tag(judge: Any, takes: list[Path], tmp_path: Path) -> None:
    said = convert(judge, judge.full, tmp_path / "new")
    assert said.exit_code == 0, said.output
    assert said.stderr == (
        "note: scores are not calibrated: they are 25 x generate_tag, with the whole scale as their interval; convert "
        "again with --data FOLDER, a sorted data folder, to put them on its scale\n"
    )
    hashed = sha256_of(judge.muq / "config.json", judge.muq / "model.safetensors")
    assert said.stdout.splitlines() == [
        f"scorer       {tmp_path / 'new'}", "MuQ          embedded, layer 6", f"  sha256     {hashed}",
        "  licence    unknown", "adapters     rank 4, alpha 6, layers 0 to 5", "calibration  none",
    ]  # fmt: skip
    scored = CliRunner().invoke(app, ["score", *map(str, takes), "--model", str(tmp_path / "new"), "--json"])
    assert scored.exit_code == 0, scored.output
    results = json.loads(scored.stdout)["results"]
    model = SongEvalGenerator_audio_lora(lora_r=4, lora_alpha=6, muq=judge.muq)
    model.load_model(judge.full)
    tags = np.array([model.generate_tag(path) for path in takes])
    for figure in ("raw", "score"):
        assert np.argsort([row[figure] for row in results]).tolist() == np.argsort(tags).tolist()
    assert 2 + 2 * np.tanh([row["raw"] for row in results]) == pytest.approx(tags, abs=1e-4)
    assert [row["score"] for row in results] == pytest.approx(25 * tags, abs=0.03)
    assert {tuple(row["interval"]) for row in results} == {(0.0, 100.0)}


def test_data_calibrates(judge: Any, takes: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(takes[0].parent, data / "audio")
    clips = [
        Clip(f"audio/{path.name}", 95.0 - 3 * place, f"s{place % 4}", sha256=sha256_of(path))
        for place, path in enumerate(takes)
    ]
    for split, part in (("val", clips), ("train", []), ("test", [])):
        write_index(data / "index" / f"{split}.json", [part])
    said = convert(judge, judge.adapters, tmp_path / "new", "--data", str(data), "--json")
    assert said.exit_code == 0, said.output
    assert said.stderr == ""
    row = json.loads(said.stdout)
    described = json.loads((tmp_path / "new" / "scorer.json").read_text())
    assert row == {
        "scorer": str(tmp_path / "new"), "muq": described["encoders"]["muq"], "licence": "unknown",
        "tuning": {"mode": "lora", "from_layer": 0, "rank": 4, "alpha": 6, "mix": False}, "calibration_clips": 12,
        "half_width": described["calibration"]["half_width"], "calibrated": True,
    }  # fmt: skip
    assert 0 < row["half_width"] < 100
    assert described["seen_clips"] == sorted(str(clip.sha256) for clip in clips)
    assert described["code_revision"]


def test_a_discriminator_that_is_left_out_is_told(judge: Any, tmp_path: Path) -> None:
    import torch

    shutil.copytree(judge.adapters, tmp_path / "old")
    sizes = {"0.weight": (20, 64), "0.bias": (20,), "3.weight": (10, 20), "3.bias": (10,)}
    speaker = {f"speaker_discriminator.{name}": torch.zeros(size) for name, size in sizes.items()}
    torch.save({**judge.head, **speaker}, tmp_path / "old" / "weights.pt")
    said = convert(judge, tmp_path / "old", tmp_path / "new")
    assert "note: the adversary's discriminator is left out; no score depends on it\n" in said.stderr
    refused = convert(judge, tmp_path / "old", tmp_path / "other", "--no-use-grl")
    assert isinstance(refused.exception, ModelError)
    assert "Pass use_grl=True." in str(refused.exception)


def test_bad_input_is_one_sentence_and_leaves_nothing(judge: Any, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "data").mkdir()
    for old, new, options, kind, said in (
        (tmp_path / "none", "new", (), ModelError, "none: type.txt and weights.pt and muq_lora.pt missing"),
        (judge.muq, "new", (), ModelError, "muq: type.txt and weights.pt and muq_lora.pt missing"),
        (judge.full, "used", (), UsageError, "used: exists and is not empty. Name a new folder for the scorer."),
        (judge.full, "new", ("--lora-r", "5"), ModelError, "Pass lora_r=4 and the lora_alpha it was trained with"),
        (judge.full, "new", ("--lora-alpha", "0"), UsageError, "lora_r and lora_alpha must be above 0; got 4 and 0.0"),
        (judge.full, "new", ("--muq", "/nowhere"), ModelError, "/nowhere: not a MuQ folder"),
        (judge.full, "new", ("--data", str(tmp_path / "gone")), UsageError, "gone: no such folder"),
        (judge.full, "new", ("--data", str(tmp_path / "data")), UsageError, "data: is not sorted, index/ missing. Run"),
    ):
        result = convert(judge, old, tmp_path / new, *options)
        assert isinstance(result.exception, AudioscoreError), result.output
        assert type(result.exception) is kind
        assert result.exception.exit_code == 2
        assert said in str(result.exception)
        assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "used"]


def test_the_program_ends_with_2_and_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "audioscore.cli.app", "convert", str(tmp_path / "none"), str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: type.txt and weights.pt and muq_lora.pt missing.")
    assert len(done.stderr.splitlines()) == 1
