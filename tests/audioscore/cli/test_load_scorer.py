from pathlib import Path

import pytest

import audioscore
from audioscore.errors import ModelError, UsageError
from audioscore.scoring.checkpoint import load_scorer


def test_a_folder_is_loaded_and_gives_the_same_score(scorer_directory: Path, tiny_corpus: Path) -> None:
    clip = tiny_corpus / "audio" / "c003.wav"
    expected = load_scorer(scorer_directory).score(clip)
    assert audioscore.load_scorer(scorer_directory, device="cpu").score(clip) == expected
    assert audioscore.load_scorer(str(scorer_directory), device="cpu").score(clip) == expected


def test_the_fast_mode_is_close(scorer_directory: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audioscore.muq_cpu.matmul.MIN_WIDTH", 1)  # as for layers of the published width
    for module in ("audioscore.muq_cpu.inference", "audioscore.scoring.scorer"):
        monkeypatch.setattr(f"{module}.quick_numbers", lambda device: "int16")
    clip = tiny_corpus / "audio" / "c003.wav"
    exact, fast = (
        audioscore.load_scorer(scorer_directory, device="cpu", fast=fast).score(clip) for fast in (False, True)
    )
    assert fast.raw != exact.raw
    assert fast.score == pytest.approx(exact.score, abs=0.5)


def test_a_model_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="champion"):
        audioscore.load_scorer()
    with pytest.raises(UsageError, match="nowhere"):
        audioscore.load_scorer("nowhere")
    with pytest.raises(ModelError, match=r"scorer\.json missing"):
        audioscore.load_scorer(tmp_path)
