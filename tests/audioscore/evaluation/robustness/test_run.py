import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from audioscore.config import EvaluationSection, Plan, RobustnessSection
from audioscore.data.audio import Recording, decode
from audioscore.data.clips import Clip
from audioscore.data.index import write_index
from audioscore.encoders.campplus import load_campplus
from audioscore.encoders.extract import extract_features, write_extraction
from audioscore.encoders.features import Encoders
from audioscore.encoders.inference import EncoderOutput
from audioscore.encoders.muq import MuQEncoder, load_muq
from audioscore.encoders.store import FeatureStore
from audioscore.errors import DataError, ModelError
from audioscore.evaluation.robustness.degradations import DEGRADATIONS, degrade, with_headroom
from audioscore.evaluation.robustness.run import (
    OFF,
    ROBUSTNESS_FILE,
    failed,
    flagged,
    read_robustness,
    run_robustness_tests,
)
from audioscore.files import sha256_of
from audioscore.scoring.calibration import Calibration
from audioscore.scoring.checkpoint import build_network, load_scorer, save_scorer
from audioscore.scoring.scorer import BRANCHES, Description, Tuning
from audioscore.scoring.trained_plan import Outcome, TrainedPlan, write_trained

DIMS = {"muq": 32, "campplus": 64}
SEED = 3


def settings(**robustness: Any) -> EvaluationSection:
    return EvaluationSection.model_validate({"resamples": 200, "robustness": robustness})


@pytest.fixture(scope="module")
def encoders(tiny_encoders: Path) -> Encoders:
    return {
        "muq": load_muq(str(tiny_encoders / "muq-small"), layer=2),
        "campplus": load_campplus(str(tiny_encoders / "campplus-small")),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, encoders: Encoders) -> Path:
    """Make an index whose test split is 12 clips of the corpus, and their features."""
    folder = tmp_path_factory.mktemp("run")
    names = [f"audio/c{number:03d}.wav" for number in range(12)]
    clips = [
        Clip(name, 90.0 - index, f"s{index // 3}", source=("ktv", "acapella")[index // 3 % 2],
        sha256=sha256_of(tiny_corpus / name)) for index, name in enumerate(names)
    ]  # fmt: skip
    for split in ("train", "val", "test"):
        write_index(folder / "sorted" / "index" / f"{split}.json", [clips if split == "test" else []])
    extraction = extract_features(clips, tiny_corpus, encoders, FeatureStore(folder / "store"), prefix_layer=1)
    write_extraction(extraction, encoders, folder / "features")
    return folder


def trained_plan(folder: Path, plan: Plan, encoders: Encoders, tiny_encoders: Path, tuned: bool = False) -> Path:
    """Save an untrained scorer as training does."""
    kinds = BRANCHES[plan]
    head = {"dims": {kind: DIMS[kind] for kind in kinds}, "width": 8, "hidden": 8, "dropout": 0.0}
    tuning = Tuning("frozen", 1, mix=True) if tuned else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        muq = encoders["muq"]
        assert isinstance(muq, MuQEncoder)
        network = build_network(head, tuning, muq if tuned else None)
    description = Description(
        plan, SEED, {kind: encoders[kind].reference for kind in kinds}, head,
        Calibration((-1.0, 1.0), (60.0, 90.0), 4.0), (), "0.dir", "unknown", tuning=tuning
    )  # fmt: skip
    folders = {kind: tiny_encoders / f"{kind}-small" for kind in kinds}
    save_scorer(network, description, folders, folder / plan / f"seed-{SEED}")
    write_trained(TrainedPlan(plan, folder / plan, SEED, {SEED: Outcome(0.5, 0.5, [], 10, ("w",))}))
    return folder / plan


@pytest.fixture
def plans(tmp_path: Path, encoders: Encoders, tiny_encoders: Path) -> list[Path]:
    listed: tuple[Plan, ...] = ("baseline", "hybrid", "muq_frozen")
    return [trained_plan(tmp_path, plan, encoders, tiny_encoders) for plan in listed]


def test_every_score_is_the_scorers_own(
    tmp_path: Path, run: Path, plans: list[Path], tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[EncoderOutput] = []
    encode = EncoderOutput.encode

    def counted(part: EncoderOutput, recording: Recording) -> tuple[torch.Tensor, int]:
        encoded.append(part)
        return encode(part, recording)

    monkeypatch.setattr(EncoderOutput, "encode", counted)
    document = run_robustness_tests(
        plans, run / "sorted", run / "features", tiny_corpus, tmp_path / "out", settings(clips=2)
    )
    assert document == read_robustness(tmp_path / "out") == json.loads((tmp_path / "out" / ROBUSTNESS_FILE).read_text())
    assert ({clip["source"] for clip in document["probed"]}, document["reason"]) == ({"ktv", "acapella"}, None)
    # Two clips and two encoders; the three plans share the outputs.
    left_out = {(one["probe"], one["audio_file"]) for one in document["left_out"]}
    assert len(encoded) == 2 * (2 * (1 + len(DEGRADATIONS)) - len(left_out))
    assert set(document["plans"]) == {"baseline", "hybrid", "muq_frozen"}
    for plan in ("baseline", "hybrid"):
        scorer, scores = load_scorer(tmp_path / plan / f"seed-{SEED}"), document["plans"][plan]["scores"]
        for index, clip in enumerate(document["probed"]):
            recording = decode(tiny_corpus / clip["audio_file"])
            wave, seed = with_headroom(recording.wave), int(clip["sha256"][:8], 16)
            assert scores["clean"][index] == pytest.approx(scorer.score(wave, recording.rate).score, abs=1e-4)
            for name in ("noise_10db", "trailing_silence", "reencoding"):
                changed = degrade(wave, recording.rate, name, seed)
                assert scores[name][index] == pytest.approx(scorer.score(changed, recording.rate).score, abs=1e-4)


def test_the_figures_follow_from_the_scores(tmp_path: Path, run: Path, plans: list[Path], tiny_corpus: Path) -> None:
    document = run_robustness_tests(
        plans[:1], run / "sorted", run / "features", tiny_corpus, tmp_path, settings(clips=2)
    )
    of_plan = document["plans"]["baseline"]
    assert (of_plan["seed"], list(of_plan["degradations"])) == (SEED, list(DEGRADATIONS))
    clean = np.array(of_plan["scores"]["clean"], dtype=float)
    for name, figures in of_plan["degradations"].items():
        effects = np.array(of_plan["scores"][name], dtype=float) - clean
        effects = effects[np.isfinite(effects)]
        assert (figures["clips"], figures["title"]) == (len(effects), DEGRADATIONS[name].title)
        if len(effects):
            assert figures["effect"]["value"] == pytest.approx(effects.mean())
        if figures["expected"] == "same":
            assert figures["violations"]["value"] == pytest.approx((np.abs(effects) > 1.0).mean())
    assert "2 singers" in document["warnings"][0]
    again = run_robustness_tests(plans[:1], run / "sorted", run / "features", tiny_corpus, tmp_path, settings(clips=2))
    assert again == document


def test_a_plan_with_tuned_layers_is_encoded_separately(
    tmp_path: Path, run: Path, encoders: Encoders, tiny_encoders: Path, tiny_corpus: Path
) -> None:
    frozen = trained_plan(tmp_path, "muq_frozen", encoders, tiny_encoders)
    tuned = trained_plan(tmp_path, "baseline", encoders, tiny_encoders, tuned=True)
    document = run_robustness_tests(
        [frozen, tuned], run / "sorted", run / "features", tiny_corpus, tmp_path, settings(clips=1)
    )
    assert document["plans"]["muq_frozen"]["degradations"] == {}  # no other plan uses MuQ's output
    assert document["plans"]["muq_frozen"]["domain"]["chance"] == document["plans"]["baseline"]["domain"]["chance"]
    (clip,) = document["probed"]
    recording = decode(tiny_corpus / clip["audio_file"])
    scorer = load_scorer(tmp_path / "baseline" / f"seed-{SEED}")
    expected = scorer.score(with_headroom(recording.wave), recording.rate).score
    assert document["plans"]["baseline"]["scores"]["clean"] == [pytest.approx(expected, abs=1e-4)]


def test_without_clips_nothing_is_degraded(tmp_path: Path, run: Path, plans: list[Path], tiny_corpus: Path) -> None:
    document = run_robustness_tests(
        plans[:1], run / "sorted", run / "features", tiny_corpus, tmp_path, settings(clips=0)
    )
    assert (document["reason"], document["probed"], document["warnings"]) == (OFF, [], [])
    of_plan = document["plans"]["baseline"]
    assert (of_plan["degradations"], of_plan["scores"]) == ({}, {})
    assert flagged(of_plan) == []
    assert "reason" in of_plan["domain"]  # the store has what it asks for


def test_a_refusing_test_without_interval(tmp_path: Path, run: Path, plans: list[Path], tiny_corpus: Path) -> None:
    asked = settings(clips=1, refuse=["gain_up"])  # one clip: no interval
    document = run_robustness_tests(plans[:1], run / "sorted", run / "features", tiny_corpus, tmp_path, asked)
    assert any(re.search(r"gain_up .*baseline.*\b1 singer", text) for text in document["warnings"])
    assert failed(document["plans"]["baseline"], document["refuse"]) == []


def test_the_domain_probe_of_all_clips(tmp_path: Path, run: Path, plans: list[Path], tiny_corpus: Path) -> None:
    clips = [
        Clip(f"audio/c{number:03d}.wav", 82.0, f"s{number // 3}", source=("ktv", "acapella")[number // 3 % 2],
        sha256=sha256_of(tiny_corpus / f"audio/c{number:03d}.wav")) for number in range(12)
    ]  # fmt: skip
    write_index(tmp_path / "index" / "test.json", [clips])
    document = run_robustness_tests(plans, tmp_path, run / "features", tiny_corpus, tmp_path, settings(clips=0))
    for of_plan in document["plans"].values():
        domain = of_plan["domain"]
        assert (domain["clips"], domain["chance"], domain["reason"]) == (12, 0.5, None)
        assert domain["bands"] == {"80-85": {"acapella": 6, "ktv": 6}}
        assert 0 <= domain["balanced_accuracy"]["value"] <= 1
    write_index(tmp_path / "index" / "test.json", [[replace(clip, score=None) for clip in clips]])
    with pytest.raises(DataError, match="test split"):
        run_robustness_tests(plans, tmp_path, run / "features", tiny_corpus, tmp_path, settings(clips=0))


def test_only_what_the_configuration_names_refuses() -> None:
    figures = {"noise_10db": {"flagged": True}, "gain_up": {"flagged": True}, "clipping": {"flagged": False}}
    of_plan = {"degradations": figures}
    assert (flagged(of_plan), failed(of_plan, [])) == (["noise_10db", "gain_up"], [])
    assert (failed(of_plan, ["clipping"]), failed(of_plan, ["clipping", "gain_up"])) == ([], ["gain_up"])
    assert failed({"degradations": {}}, ["gain_up"]) == []


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape("probes.json")):
        read_robustness(tmp_path)


def test_the_robustness_section_is_validated() -> None:
    for nothing in ("none", None):
        assert RobustnessSection.model_validate({"refuse": nothing}).refuse == []
    with pytest.raises(ValidationError, match=r"low_pass.* clips .*\b0\b"):
        RobustnessSection(refuse=["low_pass"], clips=0)
    for wrong in ({"refuse": ["hiss"]}, {"refuse": "all"}, {"clips": -1}, {"tolerance_points": -0.1}):
        with pytest.raises(ValidationError):
            RobustnessSection.model_validate(wrong)
