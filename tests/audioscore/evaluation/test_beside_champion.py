from collections.abc import Callable
from dataclasses import replace

import pytest
from scipy import stats

from audioscore.config import EvaluationSection
from audioscore.errors import DataError
from audioscore.evaluation.beside_champion import CHAMPION, beside_champion
from audioscore.evaluation.predictions import Prediction

Make = Callable[..., list[Prediction]]
BOTH = {"baseline": 0, "hybrid": 1}
SETTINGS = EvaluationSection(resamples=100)


def champion_rows(rows: list[Prediction]) -> list[Prediction]:
    test = [row for row in rows if (row.plan, row.seed, row.split) == ("baseline", 1, "test")]
    return [replace(row, plan="models:/scorer@champion", seed=7) for row in test]


def test_everything_is_judged_on_the_champions_clips(make_predictions: Make) -> None:
    rows = make_predictions()
    champion = champion_rows(rows)[8:]
    found = beside_champion(rows, BOTH, champion, SETTINGS)
    assert (found["counts"]["clips"], found["dropped"]) == (40, 8)
    assert list(found["plans"]) == ["baseline", "hybrid", CHAMPION]
    human = [row.human for row in champion]
    old = stats.spearmanr(human, [row.predicted for row in champion]).statistic
    judged = {row.clip for row in champion}
    new = stats.spearmanr(
        *zip(
            *(
                (row.human, row.predicted)
                for row in rows
                if (row.plan, row.seed) == ("hybrid", 1) and row.clip in judged
            ),
            strict=True,
        )
    ).statistic
    assert found["plans"][CHAMPION]["spearman"]["value"] == pytest.approx(old)
    compared = found["variants"]["compared"]["hybrid"]["spearman"]
    assert found["variants"]["reference"] == CHAMPION
    assert compared["delta"] == pytest.approx(new - old)
    assert compared["lo"] < compared["delta"] < compared["hi"]


def test_clips_that_are_no_test_clips_are_refused(make_predictions: Make) -> None:
    rows = make_predictions()
    stranger = replace(champion_rows(rows)[0], sha256="f" * 64)
    with pytest.raises(DataError, match="1 of the champion's 49 clips are no test clips"):
        beside_champion(rows, BOTH, [*champion_rows(rows), stranger], SETTINGS)


def test_a_champion_that_knows_all_test_clips_is_refused(make_predictions: Make) -> None:
    with pytest.raises(DataError, match="None of 48 test clips is new to the champion and the plans"):
        beside_champion(make_predictions(), BOTH, [], SETTINGS)
