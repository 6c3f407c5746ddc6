import re
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from audioscore.errors import ModelError
from audioscore.evaluation.gate.decision import Decision
from audioscore.tracking import provenance
from audioscore.tracking.provenance import (
    Provenance,
    RobustnessOutcome,
    interval_text,
    refusing_tests_of,
    tag_promotion_decision,
    version_tags,
)
from audioscore.tracking.registry import version_of

DIGEST = "d751713988987e9331980363e24189ce.dir"


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ({"value": 0.5, "lo": 0.25, "hi": 0.75}, "0.500 (0.250 to 0.750)"),
        ({"value": 0.5, "lo": None, "hi": None}, "0.500 (no interval)"),
        ({"value": None, "lo": None, "hi": None}, "undefined"),
    ],
)
def test_an_interval_as_text(figure: dict[str, float | None], text: str) -> None:
    assert interval_text(figure) == text


@pytest.mark.parametrize(
    ("robustness", "tag"),
    [
        (None, "not run"),
        (RobustnessOutcome((), ()), '{"flagged": [], "refusing": []}'),
        (RobustnessOutcome(("a", "low_pass"), ("a",)), '{"flagged": ["a", "low_pass"], "refusing": ["a"]}'),
    ],
)
def test_the_tags_of_a_version(monkeypatch: pytest.MonkeyPatch, robustness: RobustnessOutcome | None, tag: str) -> None:
    monkeypatch.setattr(provenance, "read_description", lambda folder: SimpleNamespace(licence="cc-by-nc-4.0"))
    winner: Any = SimpleNamespace(plan="hybrid", scorer_folder=lambda: "folder")
    champion: Any = SimpleNamespace(version=3)
    figure = {"value": 0.5, "lo": 0.25, "hi": 0.75}
    figures = {"spearman": figure, "spearman_within_source": {**figure, "value": 0.4}}
    decision = Decision(True, "better")
    tags = version_tags(winner, figures, decision, champion, Provenance("run-7", DIGEST, None, "12ab"), robustness)
    assert tags == {
        "plan": "hybrid", "run_id": "run-7", "decision": "better", "promoted": "true", "data_digest": DIGEST,
        "dvc_rev": provenance.NO_DVC, "code_rev": "12ab", "licence_of_weights": "cc-by-nc-4.0", "compared_with": "v3",
        "test_spearman": "0.500 (0.250 to 0.750)", "test_spearman_within_source": "0.400 (0.250 to 0.750)",
        "probes": tag,
    }  # fmt: skip
    assert refusing_tests_of(tags) == (list(robustness.refusing) if robustness else [])


@pytest.mark.parametrize("tag", ["clipping", "[]", "{}"])
def test_an_invalid_robustness_tag_is_refused(tag: str) -> None:
    with pytest.raises(ModelError, match=re.escape(repr(tag))):
        refusing_tests_of({"probes": tag})


def test_a_later_decision_keeps_the_first(client: MlflowClient) -> None:
    client.set_model_version_tag("singers", "2", "decision", "first")
    tag_promotion_decision(client, "singers", 2, Decision(False, "worse"), version_of(client, "singers", 1), DIGEST)
    tags = version_of(client, "singers", 2).tags
    assert tags["decision"] == "first"
    decision_tags = {key: tags["judged_" + key] for key in ("decision", "promoted", "data_digest", "compared_with")}
    assert decision_tags == {"decision": "worse", "promoted": "false", "data_digest": DIGEST, "compared_with": "v1"}
    assert tags["judged_at"].endswith("+00:00")
