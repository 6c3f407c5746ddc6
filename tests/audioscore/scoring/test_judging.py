import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from audioscore.errors import ModelError
from audioscore.scoring.input import Take
from audioscore.scoring.scorer import Scorer


def test_nan_is_an_error_of_its_recording_alone(scorer: Scorer, recordings: list[Path]) -> None:
    clips = [scorer.decode(Take(path.name, path)) for path in recordings[:2]]
    expected = scorer.score_batch(clips)
    first, second = scorer.score_batch([replace(clips[0], voice=np.full_like(clips[0].voice, np.nan)), clips[1]])
    assert isinstance(first, ModelError)
    assert re.search(r"clip0\.flac: .*\bnan\b", str(first))
    assert second == expected[1]


def test_no_recordings_give_no_scores(scorer: Scorer) -> None:
    assert (scorer.score_batch([]), list(scorer.score_many([]))) == ([], [])
