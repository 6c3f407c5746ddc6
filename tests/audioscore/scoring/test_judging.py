from pathlib import Path

import pytest
import torch

from audioscore.errors import ModelError
from audioscore.scoring.intake import Take
from audioscore.scoring.scorer import Scorer


def test_no_number_is_no_score_and_hurts_no_other(
    scorer: Scorer, recordings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [scorer.decode(Take(path.name, path)) for path in recordings[:2]]
    expected = scorer.score_batch(clips)
    hear = scorer._hear

    def broken(some: object) -> object:
        heard = hear(clips)
        heard[0] = {**heard[0], "campplus": torch.full_like(heard[0]["campplus"], torch.nan)}
        return heard

    monkeypatch.setattr(scorer, "_hear", broken)
    first, second = scorer.score_batch(clips)
    assert isinstance(first, ModelError)
    assert str(first) == "take0.flac: the model gives nan for it. Its weights are of no use."
    assert second == expected[1]


def test_no_recordings_no_answers(scorer: Scorer) -> None:
    assert scorer.score_batch([]) == []
    assert list(scorer.score_many([])) == []
