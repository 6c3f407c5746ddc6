"""Constants with units, and the bands of the score scale."""

MUQ_RATE = 24_000  # Hz, sampling rate of MuQ's input
MUQ_FRAME_HZ = 25  # 24 000 Hz / 240-sample hop / 4 (two stride-2 convolutions)
CAMPPLUS_RATE = 16_000  # Hz, sampling rate of CAM++'s input
CAMPPLUS_MELS = 80

HOUR_SECONDS = 3600

SCORE_MIN, SCORE_MAX = 0.0, 100.0  # the scale of the labels; raters use 50 to 99
SCORE_BANDS = ((0.0, 60.0), (60.0, 70.0), (70.0, 80.0), (80.0, 85.0), (85.0, 90.0), (90.0, 95.0), (95.0, 100.0))


def band_of(score: float) -> str:
    """Return the name of the band of a score. A band includes its lower edge; the last band includes both edges.

    >>> band_of(85), band_of(84.9), band_of(100), band_of(12)
    ('85-90', '80-85', '95-100', '0-60')
    """
    for low, high in SCORE_BANDS:
        if low <= score < high or (high == SCORE_MAX and score == high):
            return f"{low:g}-{high:g}"
    raise ValueError(f"score {score} is outside {SCORE_MIN:g}-{SCORE_MAX:g}")
