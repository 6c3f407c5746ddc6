"""The clip: one labelled recording."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """One recording with its label. A higher score is always better.

    `audio_file` is the name in the table or index: relative to the data folder, absolute, or a URI.
    `score` is None only for a recording of an index that has an order but no scores.
    The measured fields are None until validation has decoded the file.
    """

    audio_file: str
    score: float | None = None
    singer_id: str | None = None
    song_id: str | None = None
    source: str | None = None
    artist: str | None = None
    raters: tuple[float | None, ...] = ()  # one per rater column, in order; None if that rater gave no score
    row: int | None = None  # 1-based row of the table's data, for reports
    origin: str | None = None  # URL that the recording was downloaded from
    sha256: str | None = None  # of the file's bytes
    seconds: float | None = None
    level_db: float | None = None  # RMS, dB relative to full scale
    bytes: int | None = None
    snr_db: float | None = None  # level difference of loud and quiet 20 ms frames: a blind estimate
