from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audioscore.scoring.scorer import Scorer, Tuning


def wave(seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    time = np.arange(round(seconds * 24_000)) / 24_000
    tone = 0.2 * np.sin(2 * np.pi * 220 * time + 3 * np.sin(2 * np.pi * 5 * time))
    return np.asarray(tone + 0.02 * np.random.default_rng(0).normal(size=len(time)) * (time / seconds), np.float32)


def test_a_short_recording_has_one_segment_with_its_score(scorer: Scorer, recordings: list[Path]) -> None:
    scored = scorer.score(recordings[0], timeline=True)
    assert scored.timeline is not None
    (only,) = scored.timeline
    assert (only.start, only.end) == (0.0, scored.seconds)
    assert only.score == pytest.approx(scored.score, abs=1e-4)
    assert scorer.score(recordings[0]).timeline is None


@pytest.mark.parametrize("tuned", [False, True])
def test_segments_cover_the_recording(scorer: Scorer, make_tuned: Callable[..., Any], tuned: bool) -> None:
    if tuned:
        made = make_tuned(Tuning("lora", 1, 4, 6), window=7.0)
        scorer = Scorer(made.network, made.description, made.encoders)
    scored = scorer.score(wave(16.0), 24_000, timeline=True)
    segments = scored.timeline or ()
    assert [(one.start, one.end) for one in segments] == [(0, 10), (2.5, 12.5), (5, 15), (6, 16)]
    assert len({one.score for one in segments}) == 4
    assert scorer.score(wave(16.0), 24_000).raw == scored.raw


def test_campplus_alone_has_no_timeline(make_scorer: Callable[[str], Scorer], recordings: list[Path]) -> None:
    assert make_scorer("campplus_only").score(recordings[0], timeline=True).timeline == ()
