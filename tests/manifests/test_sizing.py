from pathlib import Path

import pytest

from manifests.sizing import FRONT_END, SIX_LAYERS, Assumptions, gpu_hours, table

CLUSTER = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"


def test_the_documentation_has_the_current_table() -> None:
    assert table() in CLUSTER.read_text(encoding="utf-8")


def test_one_second_of_audio_by_hand() -> None:
    """At one operation a second, the hours of one second of audio equal its operations."""
    one = Assumptions(clip_seconds=1, rate=1 / 3600, train_share=1, tuned_plans=1, seeds=1, epochs=1, passes=1)
    assert gpu_hours(1, one) == pytest.approx((FRONT_END + SIX_LAYERS, SIX_LAYERS))


def test_hours_grow_with_clips_and_shrink_with_the_rate() -> None:
    extraction, training = gpu_hours(1_000)
    assert gpu_hours(3_000) == pytest.approx((3 * extraction, 3 * training))
    assert gpu_hours(1_000, Assumptions(rate=40e12)) == pytest.approx((extraction / 2, training / 2))
