import numpy as np
import pytest

from audioscore.data.acoustics import FLOOR_DB, LEVEL_BLOCK_SECONDS, clipping_share, decibels, measure_levels


def test_decibels_end_at_the_floor_and_no_samples_are_silence() -> None:
    assert measure_levels(np.zeros(0, dtype=np.float32), 24_000, 0.0) == (FLOOR_DB, 1.0, 0.0)
    np.testing.assert_allclose(decibels(np.array([1.0, 0.1, 0.0])), [0, -10, FLOOR_DB])


@pytest.mark.parametrize("extra", [0, 1, 39, 41])
def test_pieces_give_what_the_whole_gives(extra: int) -> None:
    rate = 2_000
    wave = np.random.default_rng(0).normal(0, 0.1, 2 * LEVEL_BLOCK_SECONDS * rate + extra).astype(np.float32)
    level, silence, _ = measure_levels(wave, rate, 0.0)
    assert level == pytest.approx(10 * np.log10(np.mean(wave.astype(np.float64) ** 2)), abs=1e-9)
    assert silence == 0.0


@pytest.mark.parametrize("snr", [10, 20, 30, 40])
def test_snr_is_that_of_bursts_in_noise(snr: float) -> None:
    rate, rng = 24_000, np.random.default_rng(snr)
    noise = rng.normal(0, 0.1 * 10 ** (-snr / 20), 10 * rate)
    burst = np.sqrt(2) * 0.1 * np.sin(2 * np.pi * 200 * np.arange(10 * rate) / rate)
    sung = np.arange(10 * rate) // rate % 2  # every other second
    wave = (burst * sung + noise).astype(np.float32)
    expected = 10 * np.log10(1 + 10 ** (snr / 10))  # loud frames hold the noise too
    for variant in (wave, wave / 4, np.concatenate([np.zeros_like(wave), wave])):
        assert measure_levels(variant, rate, 0.0).snr_db == pytest.approx(expected, abs=1)


def test_snr_of_silence_or_without_pauses_is_zero() -> None:
    assert measure_levels(np.zeros(24_000, dtype=np.float32), 24_000, 0.0).snr_db == 0.0
    square = np.tile([0.1, -0.1], 12_000).astype(np.float32)
    assert measure_levels(square, 24_000, 0.0).snr_db == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("wave", "share"),
    [([], 0), ([1, 1], 0), ([1, 1, 1], 1), ([1, 1, 1, 0], 0.75), ([1, 1, -1, -1], 0), ([1, 1, 1, -1, -1, -1], 1)],
)
def test_runs_at_one_rail_count(wave: list[float], share: float) -> None:
    assert clipping_share(np.array(wave, dtype=np.float32)) == share
