"""What one scored recording is, everywhere in the project."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """One recording and what people said of it. Higher scores are better, everywhere.

    `audio_file` is the name as its table or index gives it: relative to the data folder, absolute, or a URI.
    `score` is None only for a recording from an index that carries order but no scores.
    The measured fields are None until validation has heard the file.
    """

    audio_file: str
    score: float | None = None
    singer_id: str | None = None
    song_id: str | None = None
    source: str | None = None
    artist: str | None = None
    raters: tuple[float | None, ...] = ()  # one a rater column, in their order; None where that rater gave no score
    row: int | None = None  # 1-based row of the table's data, for reports
    origin: str | None = None  # the link that the recording was downloaded from
    sha256: str | None = None  # of the file's bytes
    seconds: float | None = None
    level_db: float | None = None  # RMS, dB relative to full scale
    bytes: int | None = None
    snr_db: float | None = None  # loud 20 ms frames above quiet ones: a blind estimate
