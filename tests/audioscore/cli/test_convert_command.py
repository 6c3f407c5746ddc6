import json
import re
import shutil
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
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve recordings, 1.2 to 2.3 s, from clean to noisy."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(8)
    for number in range(12):
        time = np.arange(round((1.2 + 0.1 * number) * 24_000)) / 24_000
        tone = np.sin(2 * np.pi * (180 + 40 * number) * time + 2 * np.sin(2 * np.pi * 5 * time))
        wave = 0.2 * tone + 0.01 * number * rng.normal(size=len(time))
        encode(wave.astype(np.float32), 24_000, folder / f"clip{number:02d}.wav", codec="pcm_s16le")
    return sorted(folder.iterdir())


def test_a_converted_scorer_ranks_like_generate_tag(judge: Any, recordings: list[Path], tmp_path: Path) -> None:
    result = convert(judge, judge.full, tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("\n") == 1
    assert "25 x generate_tag" in result.stderr
    assert "--data" in result.stderr
    hashed = sha256_of(judge.muq / "config.json", judge.muq / "model.safetensors")
    for part in (str(tmp_path / "new"), "layer 6", hashed, "rank 4", "alpha 6", "0 to 5"):
        assert part in result.stdout
    scored = CliRunner().invoke(app, ["score", *map(str, recordings), "--model", str(tmp_path / "new"), "--json"])
    assert scored.exit_code == 0, scored.output
    results = json.loads(scored.stdout)["results"]
    model = SongEvalGenerator_audio_lora(lora_r=4, lora_alpha=6, muq=judge.muq)
    model.load_model(judge.full)
    tags = np.array([model.generate_tag(path) for path in recordings])
    for figure in ("raw", "score"):
        assert np.argsort([row[figure] for row in results]).tolist() == np.argsort(tags).tolist()
    assert 2 + 2 * np.tanh([row["raw"] for row in results]) == pytest.approx(tags, abs=1e-4)
    assert [row["score"] for row in results] == pytest.approx(25 * tags, abs=0.03)
    assert {tuple(row["interval"]) for row in results} == {(0.0, 100.0)}


def test_data_calibrates_the_scores(judge: Any, recordings: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(recordings[0].parent, data / "audio")
    clips = [
        Clip(f"audio/{path.name}", 95.0 - 3 * number, f"s{number % 4}", sha256=sha256_of(path))
        for number, path in enumerate(recordings)
    ]
    for split, part in (("val", clips), ("train", []), ("test", [])):
        write_index(data / "index" / f"{split}.json", [part])
    result = convert(judge, judge.adapters, tmp_path / "new", "--data", str(data), "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    row = json.loads(result.stdout)
    described = json.loads((tmp_path / "new" / "scorer.json").read_text())
    assert row == {
        "scorer": str(tmp_path / "new"), "muq": described["encoders"]["muq"], "licence": "unknown",
        "tuning": {"mode": "lora", "from_layer": 0, "rank": 4, "alpha": 6, "mix": False}, "calibration_clips": 12,
        "half_width": described["calibration"]["half_width"], "calibrated": True,
    }  # fmt: skip
    assert 0 < row["half_width"] < 100
    assert described["seen_clips"] == sorted(str(clip.sha256) for clip in clips)
    assert described["code_revision"]


def test_a_discriminator_is_left_out_with_a_note(judge: Any, tmp_path: Path) -> None:
    import torch

    shutil.copytree(judge.adapters, tmp_path / "old")
    sizes = {"0.weight": (20, 64), "0.bias": (20,), "3.weight": (10, 20), "3.bias": (10,)}
    speaker = {f"speaker_discriminator.{name}": torch.zeros(size) for name, size in sizes.items()}
    torch.save({**judge.head, **speaker}, tmp_path / "old" / "weights.pt")
    result = convert(judge, tmp_path / "old", tmp_path / "new")
    assert result.exit_code == 0
    assert "discriminator" in result.stderr
    refused = convert(judge, tmp_path / "old", tmp_path / "other", "--no-use-grl")
    assert isinstance(refused.exception, ModelError)
    assert "use_grl=True" in str(refused.exception)


MISSING = r"type\.txt and weights\.pt and muq_lora\.pt"


@pytest.mark.parametrize(
    ("old", "new", "options", "kind", "part"),
    [
        ("none", "new", "", ModelError, f"none: {MISSING}"),
        ("muq", "new", "", ModelError, f"muq: {MISSING}"),
        ("full", "used", "", UsageError, "used"),
        ("full", "new", "--lora-r 5", ModelError, "lora_r=4.* lora_alpha"),
        ("full", "new", "--lora-alpha 0", UsageError, r"lora_r .*lora_alpha .*4 and 0\.0"),
        ("full", "new", "--muq /nowhere", ModelError, "/nowhere"),
        ("full", "new", "--data {tmp}/gone", UsageError, "gone"),
        ("full", "new", "--data {tmp}/data", UsageError, "data: .*index/"),
    ],
)
def test_wrong_arguments_are_named_and_write_nothing(
    judge: Any, tmp_path: Path, old: str, new: str, options: str, kind: type[AudioscoreError], part: str
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "data").mkdir()
    folder = tmp_path / old if old == "none" else getattr(judge, old)
    result = convert(judge, folder, tmp_path / new, *options.format(tmp=tmp_path).split())
    assert type(result.exception) is kind, result.output
    assert result.exception.exit_code == 2
    assert re.search(part, str(result.exception)), result.exception
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "used"]
