from collections.abc import Callable
from dataclasses import replace

import pytest
from scipy import stats

from audioscore.config import EvaluationSection
from audioscore.errors import DataError
from audioscore.evaluation.gate.decision import CHAMPION, beside_champion
from audioscore.evaluation.predictions import Prediction

Make = Callable[..., list[Prediction]]
BOTH = {"baseline": 0, "hybrid": 1}
SETTINGS = EvaluationSection(resamples=100)


def champion_rows(rows: list[Prediction]) -> list[Prediction]:
    test = [row for row in rows if (row.plan, row.seed, row.split) == ("baseline", 1, "test")]
    return [replace(row, plan="models:/scorer@champion", seed=7) for row in test]


def test_every_model_is_evaluated_on_the_champions_clips(make_predictions: Make) -> None:
    rows = make_predictions()
    champion = champion_rows(rows)[8:]
    found = beside_champion(rows, BOTH, champion, SETTINGS)
    assert (found["counts"]["clips"], found["dropped"]) == (40, 8)
    assert list(found["plans"]) == ["baseline", "hybrid", CHAMPION]
    human = [row.human for row in champion]
    old = stats.spearmanr(human, [row.predicted for row in champion]).statistic
    judged = {row.clip for row in champion}
    ours = [row for row in rows if (row.plan, row.seed) == ("hybrid", 1) and row.clip in judged]
    new = stats.spearmanr([row.human for row in ours], [row.predicted for row in ours]).statistic
    assert found["plans"][CHAMPION]["spearman"]["value"] == pytest.approx(old)
    compared = found["variants"]["compared"]["hybrid"]["spearman"]
    assert found["variants"]["reference"] == CHAMPION
    assert compared["delta"] == pytest.approx(new - old)
    assert compared["lo"] < compared["delta"] < compared["hi"]


def test_a_clip_outside_the_test_split_is_an_error(make_predictions: Make) -> None:
    rows = make_predictions()
    stranger = replace(champion_rows(rows)[0], sha256="f" * 64)
    with pytest.raises(DataError, match=r"\b1 of .*\b49 clips"):
        beside_champion(rows, BOTH, [*champion_rows(rows), stranger], SETTINGS)


def test_a_champion_trained_on_all_test_clips_is_an_error(make_predictions: Make) -> None:
    with pytest.raises(DataError, match="of 48 test clips"):
        beside_champion(make_predictions(), BOTH, [], SETTINGS)
