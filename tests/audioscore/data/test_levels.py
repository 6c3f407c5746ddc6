import numpy as np
import pytest

from audioscore.data.levels import BLOCK_SECONDS, FLOOR_DB, clipping_share, decibels, level_and_silence


def test_decibels_end_at_the_floor() -> None:
    np.testing.assert_allclose(decibels(np.array([1.0, 0.1, 0.0])), [0, -10, FLOOR_DB])


def test_no_samples_are_all_silence() -> None:
    assert level_and_silence(np.zeros(0, dtype=np.float32), 24_000, 0.0) == (FLOOR_DB, 1.0)


@pytest.mark.parametrize("extra", [0, 1, 39, 41])
def test_pieces_give_what_the_whole_gives(extra: int) -> None:
    rate = 2_000
    wave = np.random.default_rng(0).normal(0, 0.1, 2 * BLOCK_SECONDS * rate + extra).astype(np.float32)
    level, silence = level_and_silence(wave, rate, 0.0)
    assert level == pytest.approx(10 * np.log10(np.mean(wave.astype(np.float64) ** 2)), abs=1e-9)
    assert silence == 0.0


@pytest.mark.parametrize(
    ("wave", "share"),
    [([], 0), ([1, 1], 0), ([1, 1, 1], 1), ([1, 1, 1, 0], 0.75), ([1, 1, -1, -1], 0), ([1, 1, 1, -1, -1, -1], 1)],
)
def test_runs_at_one_rail_count(wave: list[float], share: float) -> None:
    assert clipping_share(np.array(wave, dtype=np.float32)) == share
